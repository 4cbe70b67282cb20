"""The ROI heads of HyperNet (paper 3.3)."""

from __future__ import annotations

import fvcore.nn.weight_init as weight_init
from detectron2.config import CfgNode, configurable
from detectron2.layers import Conv2d, ShapeSpec, get_norm
from detectron2.modeling.roi_heads import ROI_HEADS_REGISTRY, StandardROIHeads
from detectron2.structures import Instances
from torch import Tensor, nn

from hypernet_d2.config import hypernet_node

__all__ = ["HyperNetROIHeads"]


@ROI_HEADS_REGISTRY.register()
class HyperNetROIHeads(StandardROIHeads):
    """StandardROIHeads that can apply the convolution of the box head before RoI pooling.

    The paper convolves each region after RoI pooling. Before it, one convolution of the feature map
    costs as much as that of a few regions. Mask and keypoint heads get the map without it.

    A mask or keypoint head without a pooler (``POOLER_TYPE`` of its node is "") gets the feature
    maps in ``MODEL.HYPERNET.HYPERCOLUMN.IN_FEATURES``, or those of the box head if that is empty.
    """

    @configurable
    def __init__(self, *, box_conv: nn.Module | None = None, **kwargs):
        """
        Args:
            box_conv: applied to the feature map (N, C, H, W) before the box pooler; keeps H and W.
            kwargs: see StandardROIHeads.
        """
        super().__init__(**kwargs)
        self.box_conv = box_conv

    @classmethod
    def _init_box_head(cls, cfg, input_shape: dict[str, ShapeSpec]) -> dict:
        in_features = cfg.MODEL.ROI_HEADS.IN_FEATURES
        if not hypernet_node(cfg).BOX_HEAD.CONV_BEFORE_POOLING:
            return super()._init_box_head(cfg, input_shape)
        if len(in_features) != 1:
            raise ValueError(
                f"MODEL.ROI_HEADS.IN_FEATURES is {in_features}; expected one map, since "
                "MODEL.HYPERNET.BOX_HEAD.CONV_BEFORE_POOLING is True"
            )
        shape = input_shape[in_features[0]]
        head = cfg.MODEL.ROI_BOX_HEAD
        conv = Conv2d(
            shape.channels,
            head.CONV_DIM,
            kernel_size=3,
            padding=1,
            bias=not head.NORM,
            norm=get_norm(head.NORM, head.CONV_DIM),
            activation=nn.ReLU(),
        )
        weight_init.c2_msra_fill(conv)
        convolved = ShapeSpec(channels=head.CONV_DIM, stride=shape.stride)
        ret = super()._init_box_head(cfg, {**input_shape, in_features[0]: convolved})
        return {**ret, "box_conv": conv}

    @classmethod
    def _init_mask_head(cls, cfg, input_shape: dict[str, ShapeSpec]) -> dict:
        cfg = _with_hypercolumn_maps(cfg, cfg.MODEL.ROI_MASK_HEAD, input_shape)
        return super()._init_mask_head(cfg, input_shape)

    @classmethod
    def _init_keypoint_head(cls, cfg, input_shape: dict[str, ShapeSpec]) -> dict:
        cfg = _with_hypercolumn_maps(cfg, cfg.MODEL.ROI_KEYPOINT_HEAD, input_shape)
        return super()._init_keypoint_head(cfg, input_shape)

    def _forward_box(self, features: dict[str, Tensor], proposals: list[Instances]):
        if self.box_conv is not None:
            features = {f: self.box_conv(features[f]) for f in self.box_in_features}
        return super()._forward_box(features, proposals)


def _with_hypercolumn_maps(
    cfg: CfgNode, head: CfgNode, input_shape: dict[str, ShapeSpec]
) -> CfgNode:
    """A config with which stock code passes the maps of the hypercolumns to ``head``."""
    in_features = hypernet_node(cfg).HYPERCOLUMN.IN_FEATURES
    if head.POOLER_TYPE or not in_features:
        return cfg
    missing = [name for name in in_features if name not in input_shape]
    if missing:
        raise ValueError(
            f"MODEL.HYPERNET.HYPERCOLUMN.IN_FEATURES is {in_features}, but the backbone has no map "
            f"{missing}; it has {list(input_shape)}"
        )
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.ROI_HEADS.IN_FEATURES = in_features
    return cfg
