"""Instance masks from hypercolumns (Hariharan et al., CVPR 2015).

Shape shorthand: ``R`` boxes of all images, ``L`` labels (1 for masks), ``M`` side of a heat map.
"""

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

from hypernet_d2.config import hypernet_node

from .hypercolumn_predictor import HypercolumnPredictor

__all__ = ["HypercolumnMaskHead", "box_weights", "heat_map_loss"]


def box_weights(boxes: Boxes, full_weight_size: float) -> Tensor:
    """Weight of each box in the loss, (R,) in [0, 1]: its area / full_weight_size^2, at most 1.

    With a ``full_weight_size`` of 0 all weights are 1.
    """
    if full_weight_size == 0:
        return torch.ones_like(boxes.tensor[:, 0])
    return (boxes.area() / full_weight_size**2).clamp(max=1)


def heat_map_loss(logits: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """Binary cross entropy, averaged over the heat maps of a box, then weighted over the boxes.

    Args:
        logits: (R, L, M, M).
        targets: (R, L, M, M), 0 or 1.
        weights: (R,), one per box.
    """
    losses = F.binary_cross_entropy_with_logits(logits, targets.to(logits.dtype), reduction="none")
    total = weights.sum().clamp(min=torch.finfo(weights.dtype).tiny)
    return (losses.mean((1, 2, 3)) * weights).sum() / total


@ROI_MASK_HEAD_REGISTRY.register()
class HypercolumnMaskHead(BaseMaskRCNNHead):
    """Masks by K x K linear classifiers over hypercolumns, in place of a stock mask head.

    The input is whole feature maps: set ``MODEL.ROI_MASK_HEAD.POOLER_TYPE`` to "". In training the
    heat map covers the expanded box. At inference the same function is evaluated over the box
    itself, so that stock code can paste ``pred_masks`` (R, 1, M, M).
    """

    @configurable
    def __init__(
        self, *, predictor: HypercolumnPredictor, full_weight_size: float = 224.0, **kwargs
    ):
        """
        Args:
            predictor: predicts the heat maps of each box.
            full_weight_size: side of a square box in pixels of the network's input from which on a
                box has the full weight in the loss; 0 gives all boxes the same weight.
            kwargs: see BaseMaskRCNNHead.
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
        """From ``MODEL.HYPERNET.HYPERCOLUMN`` and ``MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK``."""
        agnostic = cfg.MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK
        return {
            **super().from_config(cfg, input_shape),
            "predictor": HypercolumnPredictor(
                cfg,
                input_shape,
                num_classes=1 if agnostic else cfg.MODEL.ROI_HEADS.NUM_CLASSES,
                num_labels=cls.num_labels(cfg),
            ),
            "full_weight_size": hypernet_node(cfg).HYPERCOLUMN.FULL_WEIGHT_SIZE,
        }

    @classmethod
    def num_labels(cls, cfg: CfgNode) -> int:
        """L, the number of heat maps per box."""
        return 1

    def forward(self, features: dict[str, Tensor], instances: list[Instances]):
        """
        Args:
            features: feature maps by name, (N, C, h, w).
            instances: per image ``proposal_boxes`` and the ground truth in training, ``pred_boxes``
                and ``pred_classes`` at inference.

        Returns:
            In training a dict of losses, at inference the instances with ``pred_masks``.
        """
        boxes = [x.proposal_boxes if self.training else x.pred_boxes for x in instances]
        classes = cat([x.gt_classes if self.training else x.pred_classes for x in instances])
        logits = self.predictor(features, boxes, classes, expanded=self.training)
        if self.training:
            return {"loss_mask": self.loss(logits, instances) * self.loss_weight}
        self.inference(logits, instances)
        return instances

    def loss(self, logits: Tensor, instances: list[Instances]) -> Tensor:
        """The mask loss. Stores an image of heat maps and targets every ``vis_period`` iterations.

        Args:
            logits: (R, L, M, M), over the expanded boxes.
            instances: per image the foreground proposals with their ground truth.
        """
        if len(logits) == 0:
            return logits.sum() * 0  # keeps the parameters in the graph
        targets = cat([self.targets(x, logits.shape[-1]) for x in instances if len(x)])
        weights = [box_weights(x.proposal_boxes, self.full_weight_size) for x in instances]
        storage = get_event_storage()
        correct = (logits.detach() > 0) == targets
        storage.put_scalar("hypercolumn/accuracy", correct.float().mean().item())
        if self.vis_period > 0 and storage.iter % self.vis_period == 0:
            pairs = torch.cat([logits.detach().sigmoid(), targets.to(logits.dtype)], dim=-1)
            for i, image in enumerate(pairs.flatten(1, 2)):
                name = f"Left: heat maps;   Right: targets ({i})"
                storage.put_image(name, image.expand(3, -1, -1))
        return heat_map_loss(logits, targets, cat(weights))

    def targets(self, instances: Instances, size: int) -> Tensor:
        """The ground truth over the expanded proposals of one image, (R, L, M, M) bool."""
        boxes = self.predictor.expand(instances.proposal_boxes).tensor
        return instances.gt_masks.crop_and_resize(boxes, size).to(boxes.device)[:, None]

    def inference(self, logits: Tensor, instances: list[Instances]) -> None:
        """Add the predictions to the instances.

        Args:
            logits: (R, L, M, M), over ``pred_boxes``.
            instances: per image ``pred_boxes`` and ``pred_classes``.
        """
        mask_rcnn_inference(logits, instances)
