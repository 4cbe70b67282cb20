"""Faster R-CNN's loss as its paper writes it is what detectron2's RPN computes under our configs.

Ren, He, Girshick and Sun (2015), section 3.1.2, for anchor i of a mini-batch:

    L = 1 / N_cls * sum_i L_cls(p_i, p*_i) + lambda / N_reg * sum_i p*_i L_reg(t_i, t*_i)

    t*_x = (x* - x_a) / w_a    t*_w = log(w* / w_a)        x, y: centre; w, h: size;
    t*_y = (y* - y_a) / h_a    t*_h = log(h* / h_a)        a: anchor; *: object

L_cls is the log loss over two classes, L_reg the smooth L1 loss of Fast R-CNN summed over the four
coordinates, N_cls = 256 the size of the mini-batch, N_reg about 2400 the number of locations, and
lambda = 10, so that both terms weigh about the same. detectron2 divides both by N_cls.
"""

import math

import pytest
import torch

from tests.helpers import tiny_cfg

pytestmark = pytest.mark.detectron2

STRIDE = 16
# Centre, width and height: anchors of 128 pixels, and the object that the first two match.
ANCHORS = [(192, 160, 128, 128), (208, 176, 181.0, 90.5), (400, 400, 128, 128)]
OBJECT = (200, 164, 160, 120)
LOGITS = [2.0, -0.5, 1.0]
LABELS = [1, 1, 0]
PREDICTED = [(0.0, 0.0, 0.0, 0.0), (0.5, 2.0, -0.25, -1.5), (9.0, 9.0, 9.0, 9.0)]


def build_rpn(*opts):
    from detectron2.layers import ShapeSpec
    from detectron2.modeling import build_proposal_generator

    # The helper shrinks the mini-batch; the loss is to be that of the config.
    full = ["MODEL.RPN.BATCH_SIZE_PER_IMAGE", 256]
    cfg = tiny_cfg(*full, *opts, config="PascalVOC-Detection/faster_rcnn_VGG16.yaml")
    return build_proposal_generator(cfg, {"conv5": ShapeSpec(channels=8, stride=STRIDE)})


def corners(x: float, y: float, w: float, h: float) -> list[float]:
    return [x - w / 2, y - h / 2, x + w / 2, y + h / 2]


def targets(anchor: tuple, target: tuple) -> list[float]:
    (xa, ya, wa, ha), (x, y, w, h) = anchor, target
    return [(x - xa) / wa, (y - ya) / ha, math.log(w / wa), math.log(h / ha)]


def log_loss(scores: tuple[float, float], label: int) -> float:
    """Of the softmax over (background, object)."""
    return math.log(sum(math.exp(score) for score in scores)) - scores[label]


def smooth_l1(x: float) -> float:
    return 0.5 * x * x if abs(x) < 1 else abs(x) - 0.5


def paper_loss(n_cls: float, n_reg: float, lam: float) -> tuple[float, float]:
    """The two terms, from the formulas above. A logit is the difference of the two scores."""
    cls = sum(log_loss((0.3, 0.3 + z), p) for z, p in zip(LOGITS, LABELS, strict=True))
    reg = sum(
        p * sum(smooth_l1(t - t_star) for t, t_star in zip(ts, targets(a, OBJECT), strict=True))
        for a, ts, p in zip(ANCHORS, PREDICTED, LABELS, strict=True)
    )
    return cls / n_cls, lam * reg / n_reg


def rpn_loss(rpn) -> tuple[float, float]:
    from detectron2.structures import Boxes
    from detectron2.utils.events import EventStorage

    anchors = torch.tensor([corners(*anchor) for anchor in ANCHORS])
    with EventStorage():
        losses = rpn.losses(
            [Boxes(anchors)],
            [torch.tensor([LOGITS])],
            [torch.tensor(LABELS)],
            [torch.tensor([PREDICTED])],
            [torch.tensor([corners(*OBJECT)] * len(ANCHORS))],
        )
    return losses["loss_rpn_cls"].item(), losses["loss_rpn_loc"].item()


def test_the_targets_are_the_papers():
    rpn = build_rpn()
    got = rpn.box2box_transform.get_deltas(
        torch.tensor([corners(*ANCHORS[0])]), torch.tensor([corners(*OBJECT)])
    )
    expected = [8 / 128, 4 / 128, math.log(160 / 128), math.log(120 / 128)]
    assert targets(ANCHORS[0], OBJECT) == expected
    assert got[0].tolist() == pytest.approx(expected, abs=1e-6)


def test_the_loss_is_the_papers_with_both_terms_over_the_mini_batch():
    assert rpn_loss(build_rpn()) == pytest.approx(paper_loss(n_cls=256, n_reg=256, lam=1), rel=1e-5)


def test_the_papers_own_constants_are_one_key_away():
    factor = 10 * 256 / 2400  # lambda * N_cls / N_reg
    rpn = build_rpn("MODEL.RPN.BBOX_REG_LOSS_WEIGHT", factor)
    assert rpn_loss(rpn) == pytest.approx(paper_loss(n_cls=256, n_reg=2400, lam=10), rel=1e-5)
    assert factor == pytest.approx(1, abs=0.07)  # why the configs leave the key at 1


def test_a_location_has_nine_anchors_of_three_scales_and_three_ratios():
    (anchors,) = build_rpn().anchor_generator([torch.zeros(1, 8, 2, 2)])
    assert len(anchors) == 4 * 9
    w, h = (anchors.tensor[:9, 2:] - anchors.tensor[:9, :2]).unbind(1)
    expected = {(128 * 2**i, ratio) for i in range(3) for ratio in (0.5, 1.0, 2.0)}
    found = zip((w * h).sqrt().tolist(), (h / w).tolist(), strict=True)
    assert {(round(size), round(ratio, 3)) for size, ratio in found} == expected


def test_anchors_are_labelled_as_in_the_paper():
    """Positive: IoU of 0.7 or more, or the best of an object; negative: below 0.3 with all."""
    from detectron2.structures import Boxes, Instances
    from torchvision.ops import box_iou

    rpn = build_rpn("MODEL.RPN.BATCH_SIZE_PER_IMAGE", 10**6, "MODEL.RPN.POSITIVE_FRACTION", 1.0)
    size = (40 * STRIDE, 40 * STRIDE)
    anchors = rpn.anchor_generator([torch.zeros(1, 8, 40, 40)])
    # The first object fits an anchor; the second is so small that no anchor reaches 0.3.
    gt = torch.tensor([corners(322, 318, 128, 130), corners(400, 160, 40, 40)])
    instances = Instances(size)
    instances.gt_boxes = Boxes(gt)
    (labels,), _ = rpn.label_and_sample_anchors(anchors, [instances])

    boxes = anchors[0].tensor
    inside = ((boxes >= 0) & (boxes < size[0])).all(1)
    iou = box_iou(boxes, gt)
    positive = (iou.max(1).values >= 0.7) | (iou == iou.max(0).values).any(1)
    negative = (iou.max(1).values < 0.3) & ~positive
    assert iou[:, 1].max() < 0.3 and (iou[:, 0] > 0.7).any()
    assert torch.equal(labels == 1, positive & inside)
    assert torch.equal(labels == 0, negative & inside)
    assert (positive & inside).any() and (labels[~inside] == -1).all()
