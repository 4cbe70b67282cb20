"""The whole model in stock GeneralizedRCNN: training, inference, and the odd inputs."""

import pytest
import torch
from torchvision.ops import nms

from tests.helpers import batched_inputs, tiny_cfg

pytestmark = pytest.mark.detectron2

LOSSES = {"loss_cls", "loss_box_reg", "loss_rpn_cls", "loss_rpn_loc"}


def build(*opts, **kwargs):
    from detectron2.modeling import build_model

    return build_model(tiny_cfg(*opts, **kwargs))


def train_step(model, inputs) -> dict[str, torch.Tensor]:
    from detectron2.utils.events import EventStorage

    with EventStorage():
        losses = model.train()(inputs)
    sum(losses.values()).backward()
    return losses


def detect(model, inputs):
    with torch.no_grad():
        return [output["instances"] for output in model.eval()(inputs)]


@pytest.mark.parametrize("pooler", ["ROIPool", "ROIAlignV2"])
@pytest.mark.parametrize("conv_before_pooling", [False, True])
def test_every_parameter_gets_a_gradient(pooler, conv_before_pooling):
    model = build(
        "MODEL.HYPERNET.PROPOSALS.POOLER_TYPE", pooler,
        "MODEL.ROI_BOX_HEAD.POOLER_TYPE", pooler,
        "MODEL.HYPERNET.PROPOSALS.CONV_BEFORE_POOLING", conv_before_pooling,
        "MODEL.HYPERNET.BOX_HEAD.CONV_BEFORE_POOLING", conv_before_pooling,
    )  # fmt: skip
    losses = train_step(model, batched_inputs((64, 64), (64, 64)))
    assert set(losses) == LOSSES
    assert all(torch.isfinite(loss) for loss in losses.values())
    assert [n for n, p in model.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("objects", [[0, 2], [0, 0]])
def test_images_without_objects_train_and_keep_every_parameter_in_the_graph(objects):
    model = build()
    inputs = [batched_inputs((64, 64), objects=n)[0] for n in objects]
    losses = train_step(model, inputs)
    assert set(losses) == LOSSES
    assert [n for n, p in model.named_parameters() if p.grad is None] == []
    if not any(objects):
        assert losses["loss_rpn_loc"] == losses["loss_box_reg"] == 0


@pytest.mark.parametrize("size", [(3, 3), (1, 300), (300, 1), (40, 200)])
def test_images_of_any_size_train_and_are_detected_in(size):
    model = build()
    losses = train_step(model, batched_inputs(size, size, objects=1))
    assert all(torch.isfinite(loss) for loss in losses.values())
    (instances,) = detect(model, batched_inputs(size))
    boxes = instances.pred_boxes.tensor
    assert instances.image_size == size
    assert ((boxes >= 0) & (boxes <= torch.tensor([size[1], size[0]] * 2))).all()


def test_a_batch_of_different_sizes_gives_what_each_image_gives_alone():
    model = build("MODEL.HYPERNET.FEATURE.UPSAMPLING", "bilinear", "TEST.DETECTIONS_PER_IMAGE", 5)
    inputs = batched_inputs((64, 96), (64, 96))
    together = detect(model, inputs)
    for one, alone in zip(together, (detect(model, [x])[0] for x in inputs), strict=True):
        assert torch.allclose(one.pred_boxes.tensor, alone.pred_boxes.tensor, atol=1e-3)
    small, large = detect(model, batched_inputs((48, 64), (80, 112)))
    assert (small.image_size, large.image_size) == ((48, 64), (80, 112))
    assert (small.pred_boxes.tensor <= torch.tensor([64.0, 48.0, 64.0, 48.0])).all()


def test_proposals_are_what_detectron2_expects():
    from detectron2.structures import ImageList

    model = build().eval()
    images = ImageList.from_tensors([torch.rand(3, 48, 64), torch.rand(3, 80, 60)], 16)
    with torch.no_grad():
        proposals, losses = model.proposal_generator(images, model.backbone(images.tensor))
    assert losses == {}
    for proposal, size in zip(proposals, images.image_sizes, strict=True):
        assert proposal.image_size == tuple(size)
        assert set(proposal.get_fields()) == {"proposal_boxes", "objectness_logits"}
        assert 0 < len(proposal) <= 10
        logits = proposal.objectness_logits
        assert (logits[:-1] >= logits[1:]).all()
        assert (proposal.proposal_boxes.tensor <= torch.tensor([size[1], size[0]] * 2)).all()


def test_equal_scores_are_taken_in_the_order_of_the_windows():
    generator = build("MODEL.RPN.PRE_NMS_TOPK_TEST", 30, "MODEL.RPN.NMS_THRESH", 1.0).eval()
    generator = generator.proposal_generator
    for layer in (generator.scorer.objectness, generator.scorer.deltas):
        torch.nn.init.zeros_(layer.weight)
    windows = generator.scorer.grid.boxes((16, 16))
    inside = torch.ones(len(windows), dtype=torch.bool)
    inside[:7] = False
    feature = torch.randn(2, 18, 16, 16)
    for proposal in generator.predict_proposals(feature, windows, [inside] * 2, [(64, 64)] * 2):
        assert torch.equal(proposal.proposal_boxes.tensor, windows[7:17].clamp(0, 64))


@pytest.mark.parametrize(("objects", "kept"), [(80, 10), (12, 10), (6, 6)])
def test_nms_of_the_top_scored_boxes_keeps_what_nms_of_all_boxes_keeps(objects, kept):
    """600 boxes around several objects; the 50 with the best score are around two of them."""
    opts = ["MODEL.RPN.PRE_NMS_TOPK_TEST", 600, "MODEL.RPN.POST_NMS_TOPK_TEST", 10]
    generator = build(*opts).eval().proposal_generator
    torch.manual_seed(0)
    object_of = torch.cat([torch.arange(50) % 2, torch.randint(0, objects, (550,))])
    corners = torch.stack([object_of % 10, object_of // 10], dim=1) * 30.0
    corners = corners + torch.rand(600, 2)
    boxes = torch.cat([corners, corners + 20], dim=1)
    ranks = -torch.arange(600.0)
    proposal = generator._nms(boxes, ranks, (300, 300))
    expected = nms(boxes, ranks, generator.nms_thresh)[:10]
    assert len(expected) == kept
    assert torch.equal(proposal.objectness_logits, ranks[expected])
    assert torch.equal(proposal.proposal_boxes.tensor, boxes[expected])


def test_a_score_that_is_not_finite_stops_training():
    generator = build().train().proposal_generator
    windows = generator.scorer.grid.boxes((16, 16))
    inside = [torch.ones(len(windows), dtype=torch.bool)]
    feature = torch.full((1, 18, 16, 16), torch.nan)
    with pytest.raises(FloatingPointError, match="Training has diverged"):
        generator.predict_proposals(feature, windows, inside, [(64, 64)])


def test_windows_in_the_padding_are_never_sampled():
    from detectron2.structures import Boxes

    generator = build("MODEL.RPN.BATCH_SIZE_PER_IMAGE", 100000).proposal_generator
    grid = generator.scorer.grid
    windows, inside = grid.boxes((32, 32)), grid.inside((32, 32), (40, 40))
    index, labels, _ = generator.label_and_sample_windows(
        windows, inside, Boxes(torch.tensor([[4.0, 4, 30, 30]]))
    )
    assert inside[index].all() and 0 < (~inside).sum()
    assert set(labels.tolist()) == {0, 1}


def test_windows_are_labelled_by_the_papers_thresholds():
    from detectron2.structures import Boxes
    from torchvision.ops import box_iou

    generator = build("MODEL.RPN.BATCH_SIZE_PER_IMAGE", 4000).proposal_generator
    windows = generator.scorer.grid.boxes((24, 24))
    gt = torch.tensor([[10.0, 10, 52, 50], [60, 60, 90, 88]])
    index, labels, target = generator.label_and_sample_windows(
        windows, torch.ones(len(windows), dtype=torch.bool), Boxes(gt)
    )
    iou = box_iou(windows, gt)
    best, which = iou[index].max(dim=1)
    assert (best[labels == 1] >= 0.45).all() and (best[labels == 0] < 0.3).all()
    assert (labels == 1).sum() == (iou.max(dim=1).values >= 0.45).sum() > 0
    assert torch.equal(target[labels == 1], gt[which[labels == 1]])


def test_the_loss_is_the_papers_with_its_lambda():
    """L = L_cls + 3 L_reg over the sampled windows, recomputed here from the sample."""
    import torch.nn.functional as F
    from detectron2.utils.events import EventStorage

    generator = build("MODEL.RPN.SMOOTH_L1_BETA", 1.0).proposal_generator
    grid = generator.scorer.grid
    windows = grid.boxes((16, 16))
    inside = [torch.ones(len(windows), dtype=torch.bool)]
    feature = torch.randn(1, 18, 16, 16)
    (sample,) = batched_inputs((64, 64))
    drawn = {}
    sampler = generator.label_and_sample_windows
    generator.label_and_sample_windows = lambda *a: drawn.setdefault("it", sampler(*a))
    with EventStorage():
        losses = generator.losses(feature, windows, inside, [sample["instances"]])
    index, labels, target = drawn["it"]
    logits, deltas = generator.scorer.forward_boxes(feature, [windows[index]])
    w, t = windows[index], target
    size, centre = w[:, 2:] - w[:, :2], (w[:, 2:] + w[:, :2]) / 2
    t_size, t_centre = t[:, 2:] - t[:, :2], (t[:, 2:] + t[:, :2]) / 2
    expected = torch.cat([(t_centre - centre) / size, (t_size / size).log()], dim=1)
    positive = labels == 1
    cls = F.binary_cross_entropy_with_logits(logits, labels.float(), reduction="sum") / 16
    reg = F.smooth_l1_loss(deltas[positive], expected[positive], reduction="sum") / 16
    assert positive.any()
    assert torch.allclose(losses["loss_rpn_cls"], cls)
    assert torch.allclose(losses["loss_rpn_loc"], 3 * reg)


def test_precomputed_proposals_feed_our_heads():
    from detectron2.structures import Boxes, Instances

    model = build(
        "MODEL.PROPOSAL_GENERATOR.NAME", "PrecomputedProposals", "MODEL.LOAD_PROPOSALS", True
    )
    assert model.proposal_generator is None
    inputs = batched_inputs((64, 64))
    proposals = Instances((64, 64))
    proposals.proposal_boxes = Boxes(torch.tensor([[1.0, 2, 30, 40], [5, 5, 60, 60]]))
    proposals.objectness_logits = torch.tensor([2.0, 1.0])
    inputs[0]["proposals"] = proposals
    assert set(train_step(model, inputs)) == {"loss_cls", "loss_box_reg"}
    assert len(detect(model, inputs)) == 1


def test_stock_mask_and_keypoint_heads_compose():
    from detectron2.structures import BitMasks, Keypoints

    model = build(
        "MODEL.MASK_ON", True,
        "MODEL.ROI_MASK_HEAD.NAME", "MaskRCNNConvUpsampleHead",
        "MODEL.ROI_MASK_HEAD.NUM_CONV", 1,
        "MODEL.ROI_MASK_HEAD.CONV_DIM", 4,
        "MODEL.KEYPOINT_ON", True,
        "MODEL.ROI_KEYPOINT_HEAD.CONV_DIMS", (4,),
        "MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS", 5,
    )  # fmt: skip
    inputs = batched_inputs((64, 64))
    inputs[0]["instances"].gt_masks = BitMasks(torch.ones(2, 64, 64, dtype=torch.bool))
    points = torch.cat([torch.full((2, 5, 2), 32.0), torch.full((2, 5, 1), 2.0)], dim=2)
    inputs[0]["instances"].gt_keypoints = Keypoints(points)
    assert set(train_step(model, inputs)) == LOSSES | {"loss_mask", "loss_keypoint"}
    (instances,) = detect(model, inputs)
    assert instances.pred_masks.shape[1:] == (64, 64)
    assert instances.pred_keypoints.shape[1:] == (5, 3)


def test_zero_proposals_are_ordinary_input():
    from detectron2.structures import Boxes, ImageList, Instances

    model = build().eval()
    empty = Instances((64, 64))
    empty.proposal_boxes, empty.objectness_logits = Boxes(torch.zeros(0, 4)), torch.zeros(0)
    images = ImageList.from_tensors([torch.rand(3, 64, 64)], 16)
    with torch.no_grad():
        out, _ = model.roi_heads(images, {"hyper": torch.randn(1, 18, 16, 16)}, [empty])
    assert len(out[0]) == 0


def test_test_time_augmentation_runs_through_stock_code():
    from detectron2.modeling import GeneralizedRCNNWithTTA, build_model

    cfg = tiny_cfg("TEST.AUG.MIN_SIZES", (48, 64), "MODEL.WEIGHTS", "")
    model = build_model(cfg).eval()
    image = (torch.rand(3, 60, 80) * 255).to(torch.uint8)
    inputs = [{"image": image, "height": 60, "width": 80}]
    with torch.no_grad():
        (output,) = GeneralizedRCNNWithTTA(cfg, model)(inputs)
    assert output["instances"].image_size == (60, 80)


def test_pictures_are_drawn_while_training():
    from detectron2.utils.events import EventStorage

    model = build("VIS_PERIOD", 1).train()
    with EventStorage() as storage:
        model(batched_inputs((64, 64)))
    assert len(storage._vis_data) == 1 and storage._vis_data[0][1].shape[0] == 3


def test_dropout_is_the_papers_and_only_in_training():
    from torch import nn

    node = "MODEL.HYPERNET.BOX_HEAD"
    opts = [f"{node}.CONV_BEFORE_POOLING", False, f"{node}.DROPOUT", 0.25]
    head = build(*opts).roi_heads.box_head
    assert [m.p for m in head.modules() if isinstance(m, nn.Dropout)] == [0.25, 0.25]
    x = torch.randn(4, 18, 5, 5)
    assert not torch.equal(head.train()(x), head(x))
    assert torch.equal(head.eval()(x), head(x))
    assert head(x).shape == (4, head.output_shape.channels)


def test_the_box_convolution_moves_before_pooling_on_request():
    heads = build("MODEL.HYPERNET.BOX_HEAD.CONV_BEFORE_POOLING", True).roi_heads
    assert heads.box_conv.in_channels == 18 and heads.box_conv.out_channels == 8
    assert not heads.box_head.conv_norm_relus
    plain = build("MODEL.HYPERNET.BOX_HEAD.CONV_BEFORE_POOLING", False).roi_heads
    assert plain.box_conv is None and len(plain.box_head.conv_norm_relus) == 1


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("PROPOSALS.POOLER_TYPE", "ROIAlignRotated", "ROIAlignRotated"),
        ("PROPOSALS.SIZES", [16, -1], "-1"),
        ("PROPOSALS.STEP", 0.0, "0.0"),
        ("BOX_HEAD.DROPOUT", 1.0, "DROPOUT is 1.0"),
    ],
)
def test_a_wrong_value_is_named_when_the_model_is_built(key, value, message):
    with pytest.raises(ValueError, match=message):
        build(f"MODEL.HYPERNET.{key}", value)


def test_a_map_that_is_not_there_is_named():
    with pytest.raises(ValueError, match=r"MODEL.RPN.IN_FEATURES is \['p2'\].*\['hyper'\]"):
        build("MODEL.RPN.IN_FEATURES", ["p2"])


@pytest.mark.parametrize("name", ["faster_rcnn_R_18_C4", "faster_rcnn_R_18_FPN"])
@pytest.mark.parametrize("data", ["BCCD", "Digits"])
def test_baselines_build_and_train(name, data):
    model = build("MODEL.RESNETS.RES2_OUT_CHANNELS", 64, config=f"{data}-Detection/{name}.yaml")
    assert set(train_step(model, batched_inputs((64, 64)))) == LOSSES
