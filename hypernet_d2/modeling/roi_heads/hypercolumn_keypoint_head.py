"""Keypoints from hypercolumns (Hariharan et al., CVPR 2015)."""

from __future__ import annotations

from collections.abc import Mapping

from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling.roi_heads.keypoint_head import (
    ROI_KEYPOINT_HEAD_REGISTRY,
    BaseKeypointRCNNHead,
)
from detectron2.structures import Instances
from torch import Tensor

from .hypercolumn_predictor import HypercolumnPredictor

__all__ = ["HypercolumnKeypointHead"]


@ROI_KEYPOINT_HEAD_REGISTRY.register()
class HypercolumnKeypointHead(BaseKeypointRCNNHead):
    """One heat map per keypoint, by K x K linear classifiers over hypercolumns.

    Loss and decoding are those of the stock head, over the expanded boxes, so that keypoints
    slightly outside the box can be learned and predicted. All classes share the classifiers, as in
    the stock head. The input is whole feature maps: set ``MODEL.ROI_KEYPOINT_HEAD.POOLER_TYPE`` to
    "".
    """

    @configurable
    def __init__(self, *, predictor: HypercolumnPredictor, **kwargs):
        """
        Args:
            predictor: predicts ``num_keypoints`` heat maps per box.
            kwargs: see BaseKeypointRCNNHead.
        """
        super().__init__(**kwargs)
        self.predictor = predictor

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: Mapping[str, ShapeSpec]) -> dict:
        """From the keys of the stock head and ``MODEL.HYPERNET.HYPERCOLUMN``."""
        ret = super().from_config(cfg, input_shape)
        ret["predictor"] = HypercolumnPredictor(
            cfg, input_shape, num_classes=1, num_labels=ret["num_keypoints"]
        )
        return ret

    def forward(self, features: dict[str, Tensor], instances: list[Instances]):
        """
        Args:
            features: feature maps by name, (N, C, h, w).
            instances: per image ``proposal_boxes`` and the ground truth in training, ``pred_boxes``
                at inference.

        Returns:
            In training a dict of losses. At inference the instances with ``pred_keypoints``
            (R, L, 3), and ``pred_keypoint_heatmaps`` (R, L, M, M) over the expanded boxes.
        """
        name = "proposal_boxes" if self.training else "pred_boxes"
        heat_maps = self.predictor(features, [x.get(name) for x in instances], expanded=True)
        expanded = [_replace_field(x, name, self.predictor.expand(x.get(name))) for x in instances]
        result = super().forward(heat_maps, expanded)
        if self.training:
            return result
        for per_image, predicted in zip(instances, result, strict=True):
            per_image.pred_keypoints = predicted.pred_keypoints
            per_image.pred_keypoint_heatmaps = predicted.pred_keypoint_heatmaps
        return instances

    def layers(self, x: Tensor) -> Tensor:
        """Identity: the input of the stock head's ``forward`` already is the heat maps."""
        return x


def _replace_field(instances: Instances, name: str, value) -> Instances:
    """A copy of the instances with a new value of one field."""
    return Instances(instances.image_size, **{**instances.get_fields(), name: value})
