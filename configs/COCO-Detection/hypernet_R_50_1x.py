"""LazyConfig form of hypernet_R_50_1x.yaml; for detectron2's tools/lazyconfig_train_net.py."""

from detectron2.config import LazyCall as L
from detectron2.layers import ShapeSpec
from detectron2.model_zoo import get_config
from detectron2.modeling.backbone import BasicStem, ResNet
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.meta_arch import GeneralizedRCNN
from detectron2.modeling.poolers import ROIPooler
from detectron2.modeling.roi_heads import FastRCNNOutputLayers

from hypernet_d2.layers import WindowGrid, WindowScorer
from hypernet_d2.modeling import HyperBackbone, HyperNetBoxHead, HyperNetProposals, HyperNetROIHeads

constants = get_config("common/data/constants.py").constants
dataloader = get_config("common/data/coco.py").dataloader
lr_multiplier = get_config("common/coco_schedule.py").lr_multiplier_1x
optimizer = get_config("common/optim.py").SGD
train = get_config("common/train.py").train

model = L(GeneralizedRCNN)(
    backbone=L(HyperBackbone)(
        trunk=L(ResNet)(
            stem=L(BasicStem)(in_channels=3, out_channels=64, norm="FrozenBN"),
            stages=L(ResNet.make_default_stages)(depth=50, stride_in_1x1=True, norm="FrozenBN"),
            out_features="${..in_features}",
            freeze_at=2,
        ),
        in_features=["res2", "res3", "res5"],
        stride=4,
        channels=42,
        kernel_size=5,
        norm="LRN",
        upsampling="bilinear",
        conv_first=True,
    ),
    proposal_generator=L(HyperNetProposals)(
        in_feature="hyper",
        scorer=L(WindowScorer)(
            in_channels=126,
            grid=L(WindowGrid.from_sizes)(
                sizes=[8, 16, 32, 64, 128, 256, 512],
                aspect_ratios=[0.5, 1.0, 2.0],
                feature_stride=4,
                step=0.333,
                min_stride=16.0,
            ),
            pooler_type="ROIAlignV2",
            pooler_resolution=13,
            sampling_ratio=1,
            conv_channels=4,
            fc_dim=256,
            conv_relu=False,
            conv_before_pooling=False,  # True is HyperNet-SP
        ),
        matcher=L(Matcher)(
            thresholds=[0.3, 0.45], labels=[0, -1, 1], allow_low_quality_matches=False
        ),
        box2box_transform=L(Box2BoxTransform)(weights=[1.0, 1.0, 1.0, 1.0]),
        batch_size_per_image=256,
        positive_fraction=0.5,
        pre_nms_topk=(2000, 2000),
        post_nms_topk=(200, 100),
        nms_thresh=0.7,
        box_reg_loss_weight=3.0,
    ),
    roi_heads=L(HyperNetROIHeads)(
        num_classes=80,
        batch_size_per_image=512,
        positive_fraction=0.25,
        proposal_matcher=L(Matcher)(
            thresholds=[0.5], labels=[0, 1], allow_low_quality_matches=False
        ),
        box_in_features=["hyper"],
        box_pooler=L(ROIPooler)(
            output_size=13, scales=(1.0 / 4,), sampling_ratio=0, pooler_type="ROIAlignV2"
        ),
        box_head=L(HyperNetBoxHead)(
            input_shape=ShapeSpec(channels=126, height=13, width=13),
            conv_dims=[63],
            fc_dims=[1024, 1024],
            dropout=0.25,
        ),
        box_predictor=L(FastRCNNOutputLayers)(
            input_shape=ShapeSpec(channels=1024),
            box2box_transform=L(Box2BoxTransform)(weights=[10.0, 10.0, 5.0, 5.0]),
            num_classes="${..num_classes}",
            test_score_thresh=0.05,
        ),
    ),
    pixel_mean=constants.imagenet_bgr256_mean,
    pixel_std=constants.imagenet_bgr256_std,
    input_format="BGR",
)

dataloader.train.mapper.use_instance_mask = False
train.init_checkpoint = "detectron2://ImageNetPretrained/MSRA/R-50.pkl"
