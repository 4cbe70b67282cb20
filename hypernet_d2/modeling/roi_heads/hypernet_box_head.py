"""The box head of HyperNet (paper 3.3)."""

from __future__ import annotations

from detectron2.config import configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling.roi_heads import ROI_BOX_HEAD_REGISTRY, FastRCNNConvFCHead
from torch import nn

from hypernet_d2.config import hypernet_node

__all__ = ["HyperNetBoxHead"]


@ROI_BOX_HEAD_REGISTRY.register()
class HyperNetBoxHead(FastRCNNConvFCHead):
    """The stock FastRCNNConvFCHead with dropout after each fully connected layer.

    In the paper: a 3x3 convolution from 126 to 63 channels, then twice a fully connected layer,
    ReLU and dropout of 0.25. Input (R, C, P, P), output (R, width of the last layer).
    """

    @configurable
    def __init__(self, input_shape: ShapeSpec, *, dropout: float = 0.25, **kwargs):
        """
        Args:
            input_shape: shape of the pooled feature of a region.
            dropout: probability of dropping a value in training, in [0, 1).
            kwargs: ``conv_dims``, ``fc_dims`` and ``conv_norm`` of the stock head.

        Raises:
            ValueError: if ``dropout`` is not in [0, 1).
        """
        if not 0 <= dropout < 1:
            raise ValueError(f"BOX_HEAD.DROPOUT is {dropout}; expected a number in [0, 1)")
        super().__init__(input_shape, **kwargs)
        for k in range(len(self.fcs)):
            setattr(self, f"fc_relu{k + 1}", nn.Sequential(nn.ReLU(), nn.Dropout(dropout)))

    @classmethod
    def from_config(cls, cfg, input_shape: ShapeSpec) -> dict:
        """From the keys of the stock head and ``MODEL.HYPERNET.BOX_HEAD``."""
        box_head = hypernet_node(cfg).BOX_HEAD
        ret = super().from_config(cfg, input_shape)
        if box_head.CONV_BEFORE_POOLING:
            ret["conv_dims"] = []  # HyperNetROIHeads convolves the feature map
        return {**ret, "dropout": box_head.DROPOUT}
