"""Small random models of every kind that can be exported, whose boxes and scores are spread."""

from __future__ import annotations

import torch

SMALL = [
    "MODEL.DEVICE", "cpu",
    "INPUT.MIN_SIZE_TEST", 64,
    "INPUT.MAX_SIZE_TEST", 96,
    "MODEL.RPN.PRE_NMS_TOPK_TEST", 60,
    "MODEL.RPN.POST_NMS_TOPK_TEST", 20,
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.1,
    "MODEL.ROI_BOX_HEAD.FC_DIM", 16,
    "TEST.DETECTIONS_PER_IMAGE", 30,
]  # fmt: skip
HYPERNET = [
    "MODEL.HYPERNET.FEATURE.CHANNELS", 6,
    "MODEL.HYPERNET.FEATURE.KERNEL_SIZE", 3,
    "MODEL.HYPERNET.PROPOSALS.SIZES", [16, 40],
    "MODEL.HYPERNET.PROPOSALS.ASPECT_RATIOS", [1.0],
    "MODEL.HYPERNET.PROPOSALS.POOLER_RESOLUTION", 5,
    "MODEL.HYPERNET.PROPOSALS.FC_DIM", 16,
    "MODEL.HYPERNET.HYPERCOLUMN.HEATMAP_SIZE", 14,
    "MODEL.HYPERNET.HYPERCOLUMN.FC_DIM", 16,
    "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION", 5,
    "MODEL.ROI_BOX_HEAD.CONV_DIM", 8,
]  # fmt: skip
MASKS = [
    "MODEL.MASK_ON", True,
    "MODEL.ROI_MASK_HEAD.NAME", "MaskRCNNConvUpsampleHead",
    "MODEL.ROI_MASK_HEAD.NUM_CONV", 1,
    "MODEL.ROI_MASK_HEAD.CONV_DIM", 8,
]  # fmt: skip
BOTTLENECKS = ["MODEL.RESNETS.DEPTH", 50, "MODEL.RESNETS.RES2_OUT_CHANNELS", 64]
CONFIGS = {
    "c4": ("BCCD-Detection/faster_rcnn_R_18_C4.yaml", []),
    "fpn": ("BCCD-Detection/faster_rcnn_R_18_FPN.yaml", []),
    "vgg": ("PascalVOC-Detection/faster_rcnn_VGG16.yaml", []),
    "res5 with masks": (
        "BCCD-Detection/faster_rcnn_R_18_C4.yaml",
        ["MODEL.ROI_HEADS.NAME", "Res5ROIHeads", *BOTTLENECKS, *MASKS],
    ),
    "fpn with masks and keypoints": (
        "BCCD-Detection/faster_rcnn_R_18_FPN.yaml",
        [*MASKS, "MODEL.KEYPOINT_ON", True, "MODEL.ROI_KEYPOINT_HEAD.CONV_DIMS", [8, 8]],
    ),
    "hypernet with stock masks": (
        "Digits-InstanceSegmentation/mask_rcnn_R_18.yaml",
        [*HYPERNET, *MASKS],
    ),
    "hypercolumn masks": ("Digits-InstanceSegmentation/hypercolumn_R_18.yaml", HYPERNET),
    "hypercolumn masks of classes": (
        "Digits-InstanceSegmentation/hypercolumn_R_18.yaml",
        [*HYPERNET, "MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK", False],
    ),
    "parts": ("Digits-Parts/hypercolumn_R_18.yaml", HYPERNET),
    "hypercolumn keypoints": ("Digits-Keypoints/hypercolumn_R_18.yaml", HYPERNET),
    "stock keypoints": ("Digits-Keypoints/keypoint_rcnn_R_18.yaml", HYPERNET),
}


def build(name: str):
    """The model of a name in `CONFIGS`, and its config."""
    from detectron2.modeling import build_model

    from hypernet_d2 import model_zoo

    config, opts = CONFIGS[name]
    torch.manual_seed(0)
    cfg = model_zoo.get_config(config)
    cfg.merge_from_list([*SMALL, *opts])
    return spread_outputs(build_model(cfg).eval()), cfg


def spread_outputs(model):
    """Scale the last layers of a random model so that boxes and scores are spread."""
    generator, predictor = model.proposal_generator, model.roi_heads.box_predictor
    spread = {predictor.cls_score: 2.0, predictor.bbox_pred: 2.0}
    if hasattr(generator, "rpn_head"):
        spread |= {generator.rpn_head.objectness_logits: 1.0, generator.rpn_head.anchor_deltas: 0.3}
    else:
        spread |= {generator.scorer.objectness: 1.0, generator.scorer.deltas: 0.3}
    lowres = getattr(getattr(model.roi_heads, "keypoint_head", None), "score_lowres", None)
    if lowres is not None:  # the initial weights of the stock head overflow
        lowres.weight.data.mul_(0.01)
    scaled = set()

    def scale(layer, _, output):
        if layer in scaled:
            return output
        scaled.add(layer)
        factor = spread[layer] / output.std()
        layer.weight.data.mul_(factor)
        bias = layer.bias[:, None, None] if output.dim() == 4 else layer.bias
        return (output - bias) * factor + bias

    hooks = [layer.register_forward_hook(scale) for layer in spread]
    with torch.no_grad():
        image = torch.rand(3, 64, 96) * 255
        if not hasattr(generator, "rpn_head"):
            feature = model.backbone(((image - model.pixel_mean) / model.pixel_std)[None])["hyper"]
            generator.scorer.forward_boxes(
                feature, [generator.scorer.grid.boxes(feature.shape[2:])]
            )
        model.inference([{"image": image}])
    for hook in hooks:
        hook.remove()
    return model
