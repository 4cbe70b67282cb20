"""A detector as one graph whose shapes do not depend on the data, so that it can be exported.

Shape shorthand: ``(H, W)`` canvas, the largest image, ``(h, w)`` padded image, in pixels; ``R``
windows of the grid, ``K`` proposals, ``C`` classes, ``D`` detections.
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

__all__ = ["ExportableDetector", "size_divisibility"]


def size_divisibility(model: GeneralizedRCNN) -> int:
    """The multiple of pixels to which ``model`` pads the height and the width of an image.

    A backbone with square input (``square_size`` of ViTDet) has images padded to that size.
    """
    square_size = model.backbone.padding_constraints.get("square_size", 0)
    return max(square_size, model.backbone.size_divisibility)


class ExportableDetector(nn.Module):
    """``GeneralizedRCNN.inference`` of one image, from pixels to detections.

    The stock inference returns as many boxes as it finds. Here each step has a fixed number of
    boxes, the maximum, and flags for those that are valid. Otherwise the modules and the operations
    are those of the model, and so are the detections.

    The image is padded as the model pads it, to a multiple of its size divisibility. More padding
    would change the result: the padding of a convolution is zero, while zeros beyond the image are
    not zero after a convolution with bias. Only the windows are those of the canvas, since their
    number has to be fixed.
    """

    def __init__(self, model: GeneralizedRCNN, canvas: tuple[int, int]):
        """
        Args:
            model: a HyperNet that detects boxes; is put into evaluation mode.
            canvas: (H, W); must be multiples of the model's :func:`size_divisibility`.

        Raises:
            ValueError: for another meta-architecture, proposal generator or kind of ROI heads, for
                ROI heads on several maps, for mask or keypoint heads, or for another canvas.
        """
        super().__init__()
        _check(model)
        divisor = size_divisibility(model)
        if any(side < 1 or side % divisor for side in canvas):
            raise ValueError(f"canvas is {tuple(canvas)}; expected multiples of {divisor}")
        self.model = model.eval()
        self.canvas = tuple(canvas)

    @torch.no_grad()
    def forward(self, image: Tensor, size: Tensor, num_proposals: Tensor) -> tuple[Tensor, ...]:
        """
        Args:
            image: (h, w, 3) uint8 in the model's channel order, at most (H, W); the image, padded
                at the bottom and at the right to multiples of the size divisibility. The values of
                the padding are ignored.
            size: (2,) int64, height and width of the image without padding.
            num_proposals: () int64, number of the best proposals that are classified, at most K.

        Returns:
            boxes (D, 4), scores (D,) and classes (D,) int64 of the detections; proposals (K, 4),
            their objectness logits (K,), and the windows (K, 4) from which they were regressed; the
            hyper feature (C', h', w'). Sorted by score; boxes in pixels of the image. Entries that
            are not valid have a score of 0, or an objectness of -inf.
        """
        pixels = self._normalize(image, size)
        features = self.model.backbone(pixels[None])
        proposals, objectness, windows = self._propose(features, size, num_proposals)
        boxes, scores, classes = self._detect(features, proposals, objectness, size)
        feature = features[self.model.proposal_generator.in_feature][0]
        return boxes, scores, classes, proposals, objectness, windows, feature

    def _normalize(self, image: Tensor, size: Tensor) -> Tensor:
        """(h, w, 3) uint8 -> (3, h, w), with zeros in the padding as in the stock model."""
        x = image.permute(2, 0, 1).to(self.model.pixel_mean.dtype)
        x = (x - self.model.pixel_mean) / self.model.pixel_std
        rows, columns = (torch.arange(n, device=x.device) for n in x.shape[1:])
        inside = (rows < size[0])[:, None] & (columns < size[1])
        return x * inside

    def _propose(
        self, features: dict[str, Tensor], size: Tensor, num_proposals: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        generator = self.model.proposal_generator
        feature = features[generator.in_feature]
        grid = generator.scorer.grid
        map_size = tuple(side // grid.feature_stride for side in self.canvas)
        windows = grid.boxes(map_size, feature.device)
        logits, deltas = (x[0] for x in generator.scorer(feature, map_size))
        inside = grid.inside(map_size, size, feature.device)
        logits = logits.float().masked_fill(~inside, -torch.inf)
        candidates = min(generator.pre_nms_topk[False], len(windows))
        logits, best = (x[:candidates] for x in logits.sort(descending=True, stable=True))
        boxes = generator.box2box_transform.apply_deltas(deltas[best], windows[best])
        valid = logits.isfinite() & boxes.isfinite().all(dim=1)
        boxes = _clip(boxes, size)
        valid &= Boxes(boxes).nonempty(threshold=generator.min_box_size)
        count = min(generator.post_nms_topk[False], candidates)
        kept, valid = _nms(boxes, valid, generator.nms_thresh, count)
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
        # ROIPooler itself counts boxes in a tensor, whose value is not known during the export.
        rois = torch.cat([proposals.new_zeros(len(proposals), 1), proposals], dim=1)
        pooled = heads.box_pooler.level_poolers[0](feature, rois)
        predictions = predictor(heads.box_head(pooled))
        instances = [Instances((0, 0), proposal_boxes=Boxes(proposals))]
        (scores,) = predictor.predict_probs(predictions, instances)
        (boxes,) = predictor.predict_boxes(predictions, instances)
        valid = objectness.isfinite() & boxes.isfinite().all(dim=1) & scores.isfinite().all(dim=1)
        return self._select(boxes, scores[:, :-1].masked_fill(~valid[:, None], 0), size)

    def _select(self, boxes: Tensor, scores: Tensor, size: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Threshold and per-class NMS of (K, C * 4 or 4) boxes with (K, C) scores."""
        predictor = self.model.roi_heads.box_predictor
        num_proposals, num_classes = scores.shape
        boxes = boxes.view(num_proposals, -1, 4).expand(-1, num_classes, -1).reshape(-1, 4)
        candidates = num_proposals * num_classes
        if predictor.test_score_thresh > 0 and not predictor.use_sigmoid_ce:
            # The probabilities of a proposal sum to 1, which limits how many exceed the threshold.
            candidates = min(candidates, int(num_proposals / predictor.test_score_thresh))
        scores, best = (x[:candidates] for x in scores.flatten().sort(descending=True, stable=True))
        boxes, classes = _clip(boxes[best], size), best % num_classes
        # Boxes of different classes are shifted apart, so that none suppresses another.
        offsets = (classes * (size.max() + 1)).to(boxes.dtype)[:, None]
        limit = predictor.test_topk_per_image
        count = min(limit, candidates) if limit >= 0 else candidates
        kept, valid = _nms(
            boxes + offsets, scores > predictor.test_score_thresh, predictor.test_nms_thresh, count
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
    """Clip (n, 4) boxes to the image; ``size`` is a tensor of its height and width."""
    limits = size.flip(0).repeat(2).to(boxes.dtype)
    return boxes.clamp(min=0).minimum(limits)


def _nms(boxes: Tensor, valid: Tensor, threshold: float, count: int) -> tuple[Tensor, Tensor]:
    """NMS of boxes (n, 4), sorted by score, with results of fixed shape.

    Returns:
        index: (count,), the boxes that are kept, in order.
        is_kept: (count,) bool, False for the entries after the last box that is kept.
    """
    order = torch.arange(len(boxes), device=boxes.device)
    # Boxes that are not valid become points, which suppress nothing. Two more points make sure that
    # at least two boxes are kept, as an exported graph assumes.
    points = F.pad(boxes.masked_fill(~valid[:, None], 0), (0, 0, 0, 2))
    kept = nms(points, -torch.arange(len(points), device=boxes.device).to(boxes.dtype), threshold)
    is_kept = boxes.new_zeros(len(points), dtype=torch.bool).scatter(0, kept, True)
    is_kept = is_kept[: len(boxes)] & valid
    # Sorted without a shape that depends on how many are kept.
    rank, index = torch.topk(torch.where(is_kept, -order, -len(boxes)), count)
    return index, rank > -len(boxes)
