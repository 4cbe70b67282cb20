"""Operations on boxes that torch.export can capture.

Results have a fixed number of rows and flags for those that are valid. Only the boxes between two
such results have a number that depends on the image.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from detectron2.modeling.poolers import ROIPooler, assign_boxes_to_levels
from detectron2.structures import Boxes
from torch import Tensor
from torchvision.ops import nms

__all__ = ["as_rois", "clip", "nms_in_order", "pool", "valid_rows"]

# An exported graph assumes that a number of rows that depends on the image is not 0 or 1.
SPARE_ROWS = 2


def clip(boxes: Tensor, size: Tensor) -> Tensor:
    """Clip (n, 4) boxes to the image; ``size`` is a tensor of its height and width."""
    limits = size.flip(0).repeat(2).to(boxes.dtype)
    return boxes.clamp(min=0).minimum(limits)


def valid_rows(valid: Tensor) -> Tensor:
    """The indices of the True values in (n,), then `SPARE_ROWS` indices from n on."""
    rows = F.pad(valid, (0, SPARE_ROWS), value=True).nonzero().squeeze(1)
    torch._check(rows.shape[0] >= SPARE_ROWS)
    return rows


def nms_in_order(
    boxes: Tensor, valid: Tensor, threshold: float, count: int
) -> tuple[Tensor, Tensor]:
    """NMS of boxes (n, 4), sorted by score, with results of fixed shape.

    Returns:
        index: (count,), the boxes that are kept, in order.
        is_kept: (count,) bool, False for the entries after the last box that is kept.
    """
    rows = valid_rows(valid)
    # The spare rows are points, which suppress nothing.
    candidates = F.pad(boxes, (0, 0, 0, SPARE_ROWS))[rows]
    ranks = -torch.arange(rows.shape[0], device=boxes.device).to(boxes.dtype)
    kept = rows[nms(candidates, ranks, threshold)]
    is_kept = boxes.new_zeros(len(boxes) + SPARE_ROWS, dtype=torch.bool).scatter(0, kept, True)
    is_kept = is_kept[: len(boxes)]
    # Sorted without a shape that depends on how many are kept.
    order = torch.arange(len(boxes), device=boxes.device)
    rank, index = torch.topk(torch.where(is_kept, -order, -len(boxes)), count)
    return index, rank > -len(boxes)


def as_rois(boxes: Tensor) -> Tensor:
    """Boxes (n, 4) of the first image as regions (n, 5) of torchvision's poolers."""
    return torch.cat([torch.zeros_like(boxes[:, :1]), boxes], dim=1)


def pool(pooler: ROIPooler, maps: Sequence[Tensor], boxes: Tensor) -> Tensor:
    """What ``pooler`` pools from the maps (1, C, h, w) for boxes (n, 4): (n, C, P, P).

    ``ROIPooler.forward`` itself counts boxes in a tensor, whose value is not known in a capture.
    """
    rois, poolers = as_rois(boxes), pooler.level_poolers
    if len(poolers) == 1:
        return poolers[0](maps[0], rois)
    levels = assign_boxes_to_levels(
        [Boxes(boxes)],
        pooler.min_level,
        pooler.max_level,
        pooler.canonical_box_size,
        pooler.canonical_level,
    )
    # The last rows take the spare rows of each level.
    rois = F.pad(rois, (0, 0, 0, SPARE_ROWS))
    pooled = rois.new_zeros(rois.shape[0], maps[0].shape[1], *pooler.output_size)
    for level, (layer, x) in enumerate(zip(poolers, maps, strict=True)):
        rows = valid_rows(levels == level)
        pooled = pooled.index_copy(0, rows, layer(x, rois[rows]))
    return pooled[:-SPARE_ROWS]
