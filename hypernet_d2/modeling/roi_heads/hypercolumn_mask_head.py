"""Instance masks from hypercolumns (Hariharan et al., CVPR 2015)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec, cat
from detectron2.modeling.roi_heads.mask_head import (
    ROI_MASK_HEAD_REGISTRY,
    BaseMaskRCNNHead,
    mask_rcnn_inference,
)
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import get_event_storage
from torch import Tensor

from .hypercolumn_predictor import HypercolumnPredictor

__all__ = ["HypercolumnMaskHead", "box_weights", "heat_map_loss"]


def box_weights(boxes: Boxes, full_weight_size: float) -> Tensor:
    """How much each box counts in the loss, (R,) in [0, 1].

    A box whose area is below ``full_weight_size`` squared counts in proportion to its area.
    """
    if full_weight_size == 0:
        return torch.ones_like(boxes.tensor[:, 0])
    return (boxes.area() / full_weight_size**2).clamp(max=1)


def heat_map_loss(logits: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """The logistic loss, averaged over a box's heat maps and then, weighted, over the boxes.

    Args:
        logits, targets: (R, L, M, M); targets of 0 and 1.
        weights: (R,), of each box.
    """
    losses = F.binary_cross_entropy_with_logits(logits, targets.to(logits.dtype), reduction="none")
    total = weights.sum().clamp(min=torch.finfo(weights.dtype).tiny)
    return (losses.mean((1, 2, 3)) * weights).sum() / total


@ROI_MASK_HEAD_REGISTRY.register()
class HypercolumnMaskHead(BaseMaskRCNNHead):
    """Masks by K x K linear classifiers over hypercolumns; in the place of a stock mask head.

    It takes whole maps, which stock StandardROIHeads hands on where ``MODEL.ROI_MASK_HEAD.
    POOLER_TYPE`` is "". In training the heat map lies over the expanded box. At inference the same
    function is evaluated over the box itself, so that ``pred_masks`` (R, 1, M, M) is what stock
    code pastes.
    """

    @configurable
    def __init__(
        self, *, predictor: HypercolumnPredictor, full_weight_size: float = 224.0, **kwargs
    ):
        """
        Args:
            predictor: gives one heat map a box.
            full_weight_size: square root of the area in pixels from which on a box counts in full
                in the loss; 0 lets all count alike.
            kwargs: those of BaseMaskRCNNHead.
        """
        super().__init__(**kwargs)
        if full_weight_size < 0:
            raise ValueError(
                f"HYPERCOLUMN.FULL_WEIGHT_SIZE is {full_weight_size}; expected 0 or more"
            )
        self.predictor = predictor
        self.full_weight_size = full_weight_size

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: Mapping[str, ShapeSpec]) -> dict:
        """``MODEL.HYPERNET.HYPERCOLUMN`` and ``MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK``."""
        agnostic = cfg.MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK
        return {
            **super().from_config(cfg, input_shape),
            "predictor": HypercolumnPredictor(
                cfg,
                input_shape,
                num_classes=1 if agnostic else cfg.MODEL.ROI_HEADS.NUM_CLASSES,
                num_labels=cls.num_labels(cfg),
            ),
            "full_weight_size": cfg.MODEL.HYPERNET.HYPERCOLUMN.FULL_WEIGHT_SIZE,
        }

    @classmethod
    def num_labels(cls, cfg: CfgNode) -> int:
        """Heat maps a box: one."""
        return 1

    def forward(self, features: dict[str, Tensor], instances: list[Instances]):
        """Losses in training; at inference the instances with ``pred_masks``.

        Args:
            features: {name: (N, C, h, w)}.
            instances: an item an image, with ``proposal_boxes`` and ground truth, or with
                ``pred_boxes`` and ``pred_classes``.
        """
        kind = "gt_classes" if self.training else "pred_classes"
        boxes = [x.proposal_boxes if self.training else x.pred_boxes for x in instances]
        classes = cat([x.get(kind) for x in instances])
        logits = self.predictor(features, boxes, classes, expanded=self.training)
        if self.training:
            return {"loss_mask": self.loss(logits, instances) * self.loss_weight}
        self.inference(logits, instances)
        return instances

    def loss(self, logits: Tensor, instances: list[Instances]) -> Tensor:
        """The weighted logistic loss; a picture of heat maps every ``vis_period`` steps.

        Args:
            logits: (R, L, M, M), over the expanded boxes.
            instances: the foreground proposals with their ground truth, R in all.
        """
        if len(logits) == 0:
            return logits.sum() * 0
        targets = cat([self.targets(x, logits.shape[-1]) for x in instances if len(x)])
        weights = [box_weights(x.proposal_boxes, self.full_weight_size) for x in instances]
        storage = get_event_storage()
        correct = (logits.detach() > 0) == targets
        storage.put_scalar("hypercolumn/accuracy", correct.float().mean().item())
        if self.vis_period > 0 and storage.iter % self.vis_period == 0:
            pair = torch.cat([logits.detach().sigmoid(), targets.to(logits.dtype)], dim=-1)
            for i, picture in enumerate(pair.flatten(1, 2)):
                name = f"Left: heat maps;   Right: their targets ({i})"
                storage.put_image(name, picture.expand(3, -1, -1))
        return heat_map_loss(logits, targets, cat(weights))

    def targets(self, instances: Instances, size: int) -> Tensor:
        """(R, L, M, M) bool: the ground truth over the expanded proposals of one image."""
        boxes = self.predictor.expand(instances.proposal_boxes).tensor
        return instances.gt_masks.crop_and_resize(boxes, size).to(boxes.device)[:, None]

    def inference(self, logits: Tensor, instances: list[Instances]) -> None:
        """Add the predictions to the instances; ``logits`` (R, L, M, M) lie over ``pred_boxes``."""
        mask_rcnn_inference(logits, instances)
