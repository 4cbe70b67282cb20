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
    """A heat map a keypoint by K x K linear classifiers over hypercolumns.

    Loss and decoding are the stock head's, over the expanded boxes, so that a keypoint a little
    outside of its box is learnt and found too. All classes share the classifiers, as in the stock
    head. It takes whole maps: ``MODEL.ROI_KEYPOINT_HEAD.POOLER_TYPE`` is "".
    """

    @configurable
    def __init__(self, *, predictor: HypercolumnPredictor, **kwargs):
        """
        Args:
            predictor: gives ``num_keypoints`` heat maps a box.
            kwargs: those of BaseKeypointRCNNHead.
        """
        super().__init__(**kwargs)
        self.predictor = predictor

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: Mapping[str, ShapeSpec]) -> dict:
        """The stock head's keys and ``MODEL.HYPERNET.HYPERCOLUMN``."""
        ret = super().from_config(cfg, input_shape)
        ret["predictor"] = HypercolumnPredictor(
            cfg, input_shape, num_classes=1, num_labels=ret["num_keypoints"]
        )
        return ret

    def forward(self, features: dict[str, Tensor], instances: list[Instances]):
        """Losses in training; at inference the instances with ``pred_keypoints`` (R, L, 3).

        ``pred_keypoint_heatmaps`` (R, L, M, M) lie over the expanded boxes.
        """
        name = "proposal_boxes" if self.training else "pred_boxes"
        heat_maps = self.predictor(features, [x.get(name) for x in instances], expanded=True)
        expanded = [_with(x, name, self.predictor.expand(x.get(name))) for x in instances]
        found = super().forward(heat_maps, expanded)
        if self.training:
            return found
        for one, other in zip(instances, found, strict=True):
            one.pred_keypoints = other.pred_keypoints
            one.pred_keypoint_heatmaps = other.pred_keypoint_heatmaps
        return instances

    def layers(self, x: Tensor) -> Tensor:
        """Nothing is left to do: :meth:`forward` has made heat maps of the whole maps."""
        return x


def _with(instances: Instances, name: str, value) -> Instances:
    """The instances with another value of a field; the given ones stay as they are."""
    return Instances(instances.image_size, **{**instances.get_fields(), name: value})
