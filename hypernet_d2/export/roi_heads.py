"""Detections of one image, with their masks, parts and keypoints, as a graph.

Shape shorthand: ``K`` proposals, ``C`` classes, ``D`` detections, ``V`` detections that are valid
and `SPARE_ROWS` more, ``L`` parts or keypoints, ``M`` side of a mask or heat map.
"""

from __future__ import annotations

import torch.nn.functional as F
from detectron2.modeling.roi_heads import Res5ROIHeads, StandardROIHeads
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn

from hypernet_d2.modeling.roi_heads import (
    HypercolumnKeypointHead,
    HypercolumnMaskHead,
    HypercolumnPartHead,
    HypercolumnPredictor,
)

from .operations import SPARE_ROWS, as_rois, clip, nms_in_order, pool, valid_rows

__all__ = ["ExportableROIHeads"]


class ExportableROIHeads(nn.Module):
    """The inference of ``StandardROIHeads``, ``HyperNetROIHeads`` or ``Res5ROIHeads``."""

    def __init__(self, heads: StandardROIHeads | Res5ROIHeads):
        super().__init__()
        self.heads = heads

    @property
    def outputs(self) -> tuple[str, ...]:
        """The names of what `describe` returns."""
        heads, names = self.heads, []
        if heads.mask_on:
            is_part = isinstance(heads.mask_head, HypercolumnPartHead)
            names.append("part_masks" if is_part else "masks")
        if getattr(heads, "keypoint_on", False):
            names.append("keypoint_heat_maps")
        return tuple(names)

    @property
    def keypoint_margin(self) -> float:
        """How far the heat maps of keypoints extend beyond a box, as a share of its side."""
        predictor = getattr(getattr(self.heads, "keypoint_head", None), "predictor", None)
        return predictor.box_expansion if isinstance(predictor, HypercolumnPredictor) else 0.0

    def detect(
        self, features: dict[str, Tensor], proposals: Tensor, objectness: Tensor, size: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Boxes (D, 4), scores (D,), classes (D,) of proposals (K, 4) with finite objectness."""
        predictor = self.heads.box_predictor
        predictions = predictor(self._box_features(features, proposals))
        instances = [Instances((0, 0), proposal_boxes=Boxes(proposals))]
        (scores,) = predictor.predict_probs(predictions, instances)
        (boxes,) = predictor.predict_boxes(predictions, instances)
        valid = objectness.isfinite() & boxes.isfinite().all(dim=1) & scores.isfinite().all(dim=1)
        return self._select(boxes, scores[:, :-1].masked_fill(~valid[:, None], 0), size)

    def describe(
        self, features: dict[str, Tensor], boxes: Tensor, scores: Tensor, classes: Tensor
    ) -> tuple[Tensor, ...]:
        """The mask or part masks, and the heat maps of keypoints, of each valid detection.

        Returns:
            (V, 1 or L, M, M), probabilities of masks and logits of keypoints.
        """
        if not self.outputs:
            return ()
        rows = valid_rows(scores > 0)
        boxes = F.pad(boxes, (0, 0, 0, SPARE_ROWS))[rows]
        classes = F.pad(classes, (0, SPARE_ROWS))[rows]
        found = []
        if self.heads.mask_on:
            found.append(self._masks(features, boxes, classes))
        if getattr(self.heads, "keypoint_on", False):
            found.append(self._keypoints(features, boxes))
        return tuple(found)

    def _box_features(self, features: dict[str, Tensor], boxes: Tensor) -> Tensor:
        heads = self.heads
        if isinstance(heads, Res5ROIHeads):
            maps = [features[name] for name in heads.in_features]
            return heads.res5(pool(heads.pooler, maps, boxes)).mean(dim=[2, 3])
        maps = [features[name] for name in heads.box_in_features]
        if getattr(heads, "box_conv", None) is not None:  # of HyperNetROIHeads
            maps = [heads.box_conv(x) for x in maps]
        return heads.box_head(pool(heads.box_pooler, maps, boxes))

    def _select(self, boxes: Tensor, scores: Tensor, size: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Threshold and per-class NMS of (K, C * 4 or 4) boxes with (K, C) scores."""
        predictor = self.heads.box_predictor
        num_proposals, num_classes = scores.shape
        boxes = boxes.view(num_proposals, -1, 4).expand(-1, num_classes, -1).reshape(-1, 4)
        candidates = num_proposals * num_classes
        if predictor.test_score_thresh > 0 and not predictor.use_sigmoid_ce:
            # The probabilities of a proposal sum to 1, which limits how many exceed the threshold.
            candidates = min(candidates, int(num_proposals / predictor.test_score_thresh))
        scores, best = (x[:candidates] for x in scores.flatten().sort(descending=True, stable=True))
        boxes, classes = clip(boxes[best], size), best % num_classes
        # Boxes of different classes are shifted apart, so that none suppresses another.
        offsets = (classes * (size.max() + 1)).to(boxes.dtype)[:, None]
        limit = predictor.test_topk_per_image
        count = min(limit, candidates) if limit >= 0 else candidates
        kept, valid = nms_in_order(
            boxes + offsets, scores > predictor.test_score_thresh, predictor.test_nms_thresh, count
        )
        boxes = boxes[kept].masked_fill(~valid[:, None], 0)
        return boxes, scores[kept] * valid, classes[kept] * valid

    def _masks(self, features: dict[str, Tensor], boxes: Tensor, classes: Tensor) -> Tensor:
        heads = self.heads
        if isinstance(heads.mask_head, HypercolumnMaskHead):
            maps = {name: features[name] for name in heads.mask_in_features}
            logits = _hypercolumn_logits(heads.mask_head.predictor, maps, boxes, classes, False)
            return logits.sigmoid()
        if isinstance(heads, Res5ROIHeads):
            x = heads.res5(pool(heads.pooler, [features[f] for f in heads.in_features], boxes))
        else:
            x = pool(heads.mask_pooler, [features[f] for f in heads.mask_in_features], boxes)
        logits = heads.mask_head.layers(x)
        if logits.shape[1] > 1:  # else one mask for all classes
            index = classes[:, None, None, None].expand(-1, 1, *logits.shape[2:])
            logits = logits.gather(1, index)
        return logits.sigmoid()

    def _keypoints(self, features: dict[str, Tensor], boxes: Tensor) -> Tensor:
        heads, names = self.heads, self.heads.keypoint_in_features
        if isinstance(heads.keypoint_head, HypercolumnKeypointHead):
            maps = {name: features[name] for name in names}
            return _hypercolumn_logits(heads.keypoint_head.predictor, maps, boxes, None, True)
        pooled = pool(heads.keypoint_pooler, [features[name] for name in names], boxes)
        return heads.keypoint_head.layers(pooled)


def _hypercolumn_logits(
    predictor: HypercolumnPredictor,
    features: dict[str, Tensor],
    boxes: Tensor,
    classes: Tensor | None,
    expanded: bool,
) -> Tensor:
    """``HypercolumnPredictor.forward`` of one image, without counting boxes in a tensor."""
    features = {name: norm(features[name]) for name, norm in predictor.norms.items()}
    bias = None
    if predictor.box_head is not None:
        pooled = pool(predictor.pooler, [features[predictor.in_features[-1]]], boxes)
        bias = predictor.box_bias(predictor.box_head(pooled))
    area = predictor.expand(Boxes(boxes)).tensor if expanded else boxes
    return predictor.classifiers(
        features,
        as_rois(area),
        classes if predictor.classifiers.num_classes > 1 else None,
        bias,
        margin=0.0 if expanded else predictor.box_expansion,
    )
