"""AlexNet with one column (Krizhevsky, 2014) as a detectron2 backbone."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from detectron2.layers import ShapeSpec
from detectron2.modeling.backbone import BACKBONE_REGISTRY
from torch import nn

from .staged_trunk import StagedTrunk, conv_relu

__all__ = ["AlexNet", "build_alexnet_backbone"]

CHANNELS = (64, 192, 384, 256, 256)
STRIDES = (4, 8, 16, 16, 16)
# (left, right, top, bottom), chosen so that each map has exactly input size / stride cells and its
# cells stay close to where ROIPooler assumes them (see AlexNet).
CONV1_PADDING = (3, 4, 3, 4)
POOL_PADDING = {1: (0, 1, 0, 1), 2: (1, 0, 1, 0)}


class AlexNet(StagedTrunk):
    """The convolutional layers of AlexNet: stages ``conv1`` to ``conv5``, strides 4, 8, 16, 16, 16.

    Layers and weights are those of torchvision's AlexNet, whose ImageNet weights are public. It has
    neither the local response normalization nor the two columns of Krizhevsky's first version. The
    map of a stage is the one before pooling; the pooling is the first layer of the next stage.

    The padding differs from torchvision's, which is made for images of 224 pixels: 2 for ``conv1``
    and 0 for the 3x3 poolings. With it a map has fewer than H / stride cells, and a cell lies up to
    7.5 pixels away from (i + 1/2) * stride, where a detector assumes it. Here ``conv1`` is padded
    by 7 in total and each pooling by 1, on the sides where the shifts cancel. Maps have H // stride
    cells, shifted by 0.5 (``conv1``), 2.5 (``conv2``) and -1.5 pixels (``conv3`` to ``conv5``).
    Away from the border the values equal torchvision's.

    Args:
        in_channels: channels of the image.
        channels: output channels of the five stages.
        out_features: names of the stages that ``forward`` returns.
        freeze_at: number of leading stages that are not trained, 0 to 5.

    Raises:
        ValueError: see :class:`StagedTrunk`.
    """

    def __init__(
        self,
        in_channels: int = 3,
        *,
        channels: Sequence[int] = CHANNELS,
        out_features: Sequence[str] = ("conv5",),
        freeze_at: int = 0,
    ):
        self._channels = tuple(channels)
        super().__init__(
            in_channels,
            channels=self._channels,
            strides=STRIDES,
            out_features=out_features,
            freeze_at=freeze_at,
        )

    def make_stage(self, index: int, in_channels: int) -> nn.Sequential:
        """Max pooling (in the second and third stage), then the convolution."""
        channels = self._channels[index]
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        if index == 0:
            layers["pad"] = nn.ZeroPad2d(CONV1_PADDING)
            conv = conv_relu(in_channels, channels, 11, stride=4)
        else:
            if index in POOL_PADDING:
                # Zeros do not change a maximum here: the input comes from a ReLU, and each pooling
                # window has at least one cell of the map.
                layers["pad"] = nn.ZeroPad2d(POOL_PADDING[index])
                layers["pool"] = nn.MaxPool2d(3, 2)
            size = 5 if index == 1 else 3
            conv = conv_relu(in_channels, channels, size, padding=size // 2)
        layers[f"conv{index + 1}_1"] = conv
        return nn.Sequential(layers)


@BACKBONE_REGISTRY.register()
def build_alexnet_backbone(cfg, input_shape: ShapeSpec) -> AlexNet:
    """AlexNet from ``MODEL.RESNETS.OUT_FEATURES`` and ``MODEL.BACKBONE.FREEZE_AT``."""
    return AlexNet(
        input_shape.channels,
        out_features=cfg.MODEL.RESNETS.OUT_FEATURES,
        freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT,
    )
