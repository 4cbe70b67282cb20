"""A detector as one graph without data-dependent shapes, which an exporter can write down.

Legend: (H, W) the canvas in pixels, R windows of the grid, M windows that enter the suppression,
K proposals, C classes, D detections.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from detectron2.modeling import GeneralizedRCNN
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn
from torchvision.ops import nms

from hypernet_d2.modeling.proposal_generator.hypernet_proposals import HyperNetProposals
from hypernet_d2.modeling.roi_heads.hypernet_roi_heads import HyperNetROIHeads

__all__ = ["ExportableDetector"]


class ExportableDetector(nn.Module):
    """Pixels in, detections out: what ``GeneralizedRCNN.inference`` does to one image.

    The stock inference keeps as many boxes as it finds. Here every step has a fixed number, the
    largest that can be, with flags that say which of them count; otherwise the arithmetic and the
    modules are the model's own, and so are the detections.
    """

    def __init__(self, model: GeneralizedRCNN):
        """
        Args:
            model: a HyperNet that detects boxes; put into evaluation mode.

        Raises:
            ValueError: another meta-architecture, proposal generator or kind of ROI heads, ROI
                heads on several maps, or heads for masks or keypoints.
        """
        super().__init__()
        _check(model)
        self.model = model.eval()

    @torch.no_grad()
    def forward(self, image: Tensor, size: Tensor, num_proposals: Tensor) -> tuple[Tensor, ...]:
        """
        Args:
            image: (H, W, 3) uint8 in the model's channel order; the image itself is the top left
                part, and what lies beyond it is ignored.
            size: (2,) int64, height and width of the image in pixels.
            num_proposals: () int64, how many of the best proposals the detector sees, at most K.

        Returns:
            (D, 4) boxes, (D,) scores and (D,) int64 classes of the detections; (K, 4) proposals,
            (K,) their objectness as logits, and (K, 4) the windows that they arose from; the hyper
            feature, (C', H', W'). Best first, x1 y1 x2 y2 in pixels of the canvas. What does not
            count has a score of 0, or an objectness of -inf.
        """
        pixels = self._normalize(image, size)
        features = self.model.backbone(pixels[None])
        proposals, objectness, windows = self._propose(features, size, num_proposals)
        boxes, scores, classes = self._detect(features, proposals, objectness, size)
        feature = features[self.model.proposal_generator.in_feature][0]
        return boxes, scores, classes, proposals, objectness, windows, feature

    def _normalize(self, image: Tensor, size: Tensor) -> Tensor:
        """(H, W, 3) uint8 -> (3, H, W), 0 beyond the image as the stock padding has it."""
        x = image.permute(2, 0, 1).to(self.model.pixel_mean.dtype)
        x = (x - self.model.pixel_mean) / self.model.pixel_std
        rows, columns = (torch.arange(n, device=x.device) for n in x.shape[1:])
        within = (rows < size[0])[:, None] & (columns < size[1])
        return x * within

    def _propose(
        self, features: dict[str, Tensor], size: Tensor, num_proposals: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        generator = self.model.proposal_generator
        feature = features[generator.in_feature]
        grid, map_size = generator.scorer.grid, tuple(feature.shape[-2:])
        windows = grid.boxes(map_size, feature.device)
        logits, deltas = (x[0] for x in generator.scorer(feature))
        inside = grid.inside(map_size, size, feature.device)
        logits = logits.float().masked_fill(~inside, -torch.inf)
        candidates = min(generator.pre_nms_topk[False], len(windows))
        logits, best = (x[:candidates] for x in logits.sort(descending=True, stable=True))
        boxes = generator.box2box_transform.apply_deltas(deltas[best], windows[best])
        valid = logits.isfinite() & boxes.isfinite().all(dim=1)
        boxes = _clip(boxes, size)
        valid &= Boxes(boxes).nonempty(threshold=generator.min_box_size)
        count = min(generator.post_nms_topk[False], candidates)
        kept, valid = _suppress(boxes, valid, generator.nms_thresh, count)
        valid &= torch.arange(count, device=valid.device) < num_proposals
        return boxes[kept], logits[kept].masked_fill(~valid, -torch.inf), windows[best][kept]

    def _detect(
        self, features: dict[str, Tensor], proposals: Tensor, objectness: Tensor, size: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        heads = self.model.roi_heads
        predictor = heads.box_predictor
        (feature,) = (features[name] for name in heads.box_in_features)
        if heads.box_conv is not None:
            feature = heads.box_conv(feature)
        # The pooler itself counts boxes by a tensor, which an exporter cannot follow.
        rois = torch.cat([proposals.new_zeros(len(proposals), 1), proposals], dim=1)
        pooled = heads.box_pooler.level_poolers[0](feature, rois)
        predictions = predictor(heads.box_head(pooled))
        instances = [Instances((0, 0), proposal_boxes=Boxes(proposals))]
        (scores,) = predictor.predict_probs(predictions, instances)
        (boxes,) = predictor.predict_boxes(predictions, instances)
        valid = objectness.isfinite() & boxes.isfinite().all(dim=1) & scores.isfinite().all(dim=1)
        return self._select(boxes, scores[:, :-1].masked_fill(~valid[:, None], 0), size)

    def _select(self, boxes: Tensor, scores: Tensor, size: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The best detections of (K, C * 4 or 4) boxes with (K, C) scores, a class at a time."""
        predictor = self.model.roi_heads.box_predictor
        num_proposals, num_classes = scores.shape
        boxes = boxes.view(num_proposals, -1, 4).expand(-1, num_classes, -1).reshape(-1, 4)
        # A proposal's probabilities add up to 1, so that only so many can be above the threshold.
        candidates = num_proposals * num_classes
        if predictor.test_score_thresh > 0 and not predictor.use_sigmoid_ce:
            candidates = min(candidates, int(num_proposals / predictor.test_score_thresh))
        scores, best = (x[:candidates] for x in scores.flatten().sort(descending=True, stable=True))
        boxes, classes = _clip(boxes[best], size), best % num_classes
        # Boxes of different classes are moved apart, so that none suppresses another.
        apart = (classes * (size.max() + 1)).to(boxes.dtype)[:, None]
        limit = predictor.test_topk_per_image
        count = min(limit, candidates) if limit >= 0 else candidates
        kept, valid = _suppress(
            boxes + apart, scores > predictor.test_score_thresh, predictor.test_nms_thresh, count
        )
        boxes = boxes[kept].masked_fill(~valid[:, None], 0)
        return boxes, scores[kept] * valid, classes[kept] * valid


def _check(model: nn.Module) -> None:
    parts = {
        "MODEL.META_ARCHITECTURE": ("", GeneralizedRCNN),
        "MODEL.PROPOSAL_GENERATOR.NAME": ("proposal_generator", HyperNetProposals),
        "MODEL.ROI_HEADS.NAME": ("roi_heads", HyperNetROIHeads),
    }
    for key, (name, expected) in parts.items():
        part = getattr(model, name) if name else model
        if type(part) is not expected:
            raise ValueError(
                f"{key} is {type(part).__name__}; only {expected.__name__} can be exported"
            )
    heads = model.roi_heads
    if len(heads.box_in_features) != 1:
        raise ValueError(
            f"MODEL.ROI_HEADS.IN_FEATURES is {heads.box_in_features}; only one map can be exported"
        )
    if heads.mask_on or heads.keypoint_on:
        raise ValueError("MODEL.MASK_ON or MODEL.KEYPOINT_ON is True; only boxes can be exported")


def _clip(boxes: Tensor, size: Tensor) -> Tensor:
    """(n, 4) boxes within the image of `size` (height, width), a tensor."""
    limits = size.flip(0).repeat(2).to(boxes.dtype)
    return boxes.clamp(min=0).minimum(limits)


def _suppress(boxes: Tensor, valid: Tensor, threshold: float, count: int) -> tuple[Tensor, Tensor]:
    """Non-maximum suppression of boxes (n, 4), best first.

    Returns:
        (count,) the indices of those that are kept, in order, and (count,) whether there are so
        many.
    """
    order = torch.arange(len(boxes), device=boxes.device)
    # A box that does not count becomes a point, which suppresses nothing. Two more such points
    # are kept for certain, since a graph takes for granted that the suppression keeps two.
    points = F.pad(boxes.masked_fill(~valid[:, None], 0), (0, 0, 0, 2))
    kept = nms(points, -torch.arange(len(points), device=boxes.device).to(boxes.dtype), threshold)
    is_kept = boxes.new_zeros(len(points), dtype=torch.bool).scatter(0, kept, True)
    is_kept = is_kept[: len(boxes)] & valid
    # In order, and without a shape that depends on how many are kept.
    rank, index = torch.topk(torch.where(is_kept, -order, -len(boxes)), count)
    return index, rank > -len(boxes)
