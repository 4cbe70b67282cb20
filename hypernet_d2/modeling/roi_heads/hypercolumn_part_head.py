"""Part labels from hypercolumns (Hariharan et al., CVPR 2015).

Shape shorthand: ``R`` boxes, ``L`` parts, ``M`` side of a heat map, ``H`` x ``W`` pixels.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec, paste_masks_in_image
from detectron2.modeling.roi_heads.mask_head import ROI_MASK_HEAD_REGISTRY
from detectron2.structures import Instances
from torch import Tensor

from hypernet_d2.config import hypernet_node

from .hypercolumn_mask_head import HypercolumnMaskHead

__all__ = ["HypercolumnPartHead", "paste_parts"]


@ROI_MASK_HEAD_REGISTRY.register()
class HypercolumnPartHead(HypercolumnMaskHead):
    """One heat map per part, in place of a mask head; trained on ``gt_parts``.

    :class:`hypernet_d2.data.PartDatasetMapper` converts the ``parts`` of a dataset dict to
    ``gt_parts`` (R, H, W) uint8: 0 is no part, p + 1 is part p. At inference the head adds
    ``pred_part_masks`` (R, L, M, M), the probability of each part over the box, and their maximum
    over the parts as ``pred_masks`` (R, 1, M, M), which stock code pastes, draws and evaluates.
    :func:`paste_parts` pastes the parts.

    Raises:
        ValueError: if ``TEST.AUG.ENABLED`` is True: detectron2's test-time augmentation merges
            ``pred_masks`` only, and the evaluation of parts would have no predictions.
    """

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: Mapping[str, ShapeSpec]) -> dict:
        """See :class:`HypercolumnMaskHead`."""
        if cfg.TEST.AUG.ENABLED:
            raise ValueError(
                "TEST.AUG.ENABLED is True: expected False with MODEL.ROI_MASK_HEAD.NAME "
                "HypercolumnPartHead, since detectron2's test-time augmentation merges boxes and "
                "masks, but no part labels"
            )
        return super().from_config(cfg, input_shape)

    @classmethod
    def num_labels(cls, cfg: CfgNode) -> int:
        """L, the number of parts."""
        return hypernet_node(cfg).HYPERCOLUMN.NUM_PARTS

    def targets(self, instances: Instances, size: int) -> Tensor:
        """Whether each part is at the center of each position, (R, L, M, M) bool."""
        boxes = self.predictor.expand(instances.proposal_boxes).tensor
        labels = sample_labels(instances.gt_parts, boxes, size)
        parts = torch.arange(1, self.predictor.classifiers.num_labels + 1, device=labels.device)
        return labels[:, None] == parts[:, None, None]

    def inference(self, logits: Tensor, instances: list[Instances]) -> None:
        """Add ``pred_part_masks`` and ``pred_masks`` to the instances."""
        counts = [x.pred_boxes.tensor.shape[0] for x in instances]
        for per_image, part_masks in zip(instances, logits.sigmoid().split(counts), strict=True):
            per_image.pred_part_masks = part_masks
            per_image.pred_masks = part_masks.amax(1, keepdim=True)


def sample_labels(labels: Tensor, boxes: Tensor, size: int) -> Tensor:
    """Sample label maps at a regular grid of positions over each box.

    Args:
        labels: (R, H, W).
        boxes: (R, 4) in pixels; they may extend beyond the image.
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
    sampled = labels[rows, y.clamp(0, h - 1)[:, :, None], x.clamp(0, w - 1)[:, None, :]]
    return sampled * inside


def paste_parts(instances: Instances, threshold: float = 0.5) -> Tensor:
    """Paste the part masks of detections into the image.

    Args:
        instances: ``pred_boxes`` in pixels of the image and ``pred_part_masks`` (R, L, M, M), as
            the model returns them.
        threshold: a pixel has the part of highest probability if that is at least the threshold,
            in [0, 1], else no part.

    Returns:
        (R, H, W) uint8 on the CPU: 0 is no part, p + 1 is part p.
    """
    masks, boxes = instances.pred_part_masks.cpu(), instances.pred_boxes.tensor.cpu()
    # With a negative threshold the stock function returns probabilities, scaled to 0 to 255.
    pasted = [
        paste_masks_in_image(masks[:, part], boxes, instances.image_size, threshold=-1)
        for part in range(masks.shape[1])
    ]
    best, part = torch.stack(pasted).max(0)
    return torch.where(best >= 255 * threshold, part + 1, 0).byte()
