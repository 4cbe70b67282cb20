"""Part labels within a box from hypercolumns (Hariharan et al., CVPR 2015)."""

from __future__ import annotations

import torch
from detectron2.config import CfgNode
from detectron2.layers import paste_masks_in_image
from detectron2.modeling.roi_heads.mask_head import ROI_MASK_HEAD_REGISTRY
from detectron2.structures import Instances
from torch import Tensor

from .hypercolumn_mask_head import HypercolumnMaskHead

__all__ = ["HypercolumnPartHead", "paste_parts"]


@ROI_MASK_HEAD_REGISTRY.register()
class HypercolumnPartHead(HypercolumnMaskHead):
    """A heat map a part, in the place of a mask head; trained on ``gt_parts``.

    ``gt_parts`` (R, H, W) uint8 is what :class:`hypernet_d2.data.PartDatasetMapper` makes of the
    ``parts`` of a dataset dict: 0 no part, p + 1 part p. At inference the head adds
    ``pred_part_masks`` (R, L, M, M), the probability of each part over the box, and the largest of
    them as ``pred_masks`` (R, 1, M, M), so that stock code pastes, draws and evaluates what the
    parts cover together; :func:`paste_parts` pastes the parts themselves.
    """

    @classmethod
    def num_labels(cls, cfg: CfgNode) -> int:
        """Heat maps a box: one a part."""
        return cfg.MODEL.HYPERNET.HYPERCOLUMN.NUM_PARTS

    def targets(self, instances: Instances, size: int) -> Tensor:
        """(R, L, M, M) bool: the part at the centre of each position; outside the image none."""
        boxes = self.predictor.expand(instances.proposal_boxes).tensor
        labels = sample_labels(instances.gt_parts, boxes, size)
        parts = torch.arange(1, self.predictor.classifiers.num_labels + 1, device=labels.device)
        return labels[:, None] == parts[:, None, None]

    def inference(self, logits: Tensor, instances: list[Instances]) -> None:
        """Add ``pred_part_masks`` and ``pred_masks`` to the instances."""
        probabilities = logits.sigmoid().split([x.pred_boxes.tensor.shape[0] for x in instances])
        for one, found in zip(instances, probabilities, strict=True):
            one.pred_part_masks = found
            one.pred_masks = found.amax(1, keepdim=True)


def sample_labels(labels: Tensor, boxes: Tensor, size: int) -> Tensor:
    """The labels under a regular grid of positions over each box.

    Args:
        labels: (R, H, W).
        boxes: (R, 4), x1, y1, x2, y2 in pixels; they may reach beyond the image.
        size: M.

    Returns:
        (R, M, M), 0 outside the image.
    """
    step = (torch.arange(size, device=boxes.device) + 0.5) / size
    x = (boxes[:, 0, None] + (boxes[:, 2] - boxes[:, 0])[:, None] * step).floor().long()
    y = (boxes[:, 1, None] + (boxes[:, 3] - boxes[:, 1])[:, None] * step).floor().long()
    h, w = labels.shape[1:]
    inside = ((y >= 0) & (y < h))[:, :, None] & ((x >= 0) & (x < w))[:, None, :]
    rows = torch.arange(len(boxes), device=boxes.device)[:, None, None]
    found = labels[rows, y.clamp(0, h - 1)[:, :, None], x.clamp(0, w - 1)[:, None, :]]
    return found * inside


def paste_parts(instances: Instances, threshold: float = 0.5) -> Tensor:
    """Part labels in the image of detections, by stock pasting of each part.

    Args:
        instances: with ``pred_boxes`` in pixels of its ``image_size`` and ``pred_part_masks``
            (R, L, M, M), as the model returns them.
        threshold: least probability, in [0, 1], of a pixel's most probable part; else it has none.

    Returns:
        (R, H, W) uint8 on the CPU: 0 no part, p + 1 part p.
    """
    masks, boxes = instances.pred_part_masks.cpu(), instances.pred_boxes.tensor.cpu()
    # A negative threshold asks stock pasting for probabilities, as whole numbers to 255.
    pasted = [
        paste_masks_in_image(masks[:, part], boxes, instances.image_size, threshold=-1)
        for part in range(masks.shape[1])
    ]
    best, part = torch.stack(pasted).max(0)
    return torch.where(best >= 255 * threshold, part + 1, 0).byte()
