"""AlexNet (Krizhevsky, 2014, one column) as a detectron2 backbone; detectron2 has none."""

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
# Left, right, top, bottom. Together they make each map exactly 1 / stride of its input, and keep
# its cells near where ROIPooler takes them to be (see AlexNet).
CONV1_PADDING = (3, 4, 3, 4)
POOL_PADDING = {1: (0, 1, 0, 1), 2: (1, 0, 1, 0)}


class AlexNet(StagedTrunk):
    """The convolutional part of AlexNet, in stages ``conv1`` to ``conv5`` of stride 4, 8, 16 x 3.

    The layers and their weights are those of torchvision's AlexNet, the one whose ImageNet weights
    are public; local response normalisation, the two columns and their groups, which Krizhevsky's
    first version had, are not in it. A stage's map is that before its pooling; the pooling opens
    the next stage.

    Padding differs. torchvision pads ``conv1`` by 2 and the 3x3 poolings by nothing, which fits
    images of 224 pixels; an image of H pixels gets maps of less than H / stride cells, and cells
    that lie up to 7.5 pixels away from where a detector takes them to be, (i + 1/2) * stride. Here
    ``conv1`` is padded by 7 in all and each pooling by 1, on the sides where the shifts cancel:
    maps have H // stride cells, shifted by 0.5 (``conv1``), 2.5 (``conv2``) and -1.5 pixels
    (``conv3`` to ``conv5``). Away from the border the values are torchvision's.

    Args:
        in_channels: channels of the image.
        channels: output channels of the five stages.
        out_features: names of the stages that ``forward`` returns.
        freeze_at: the first ``freeze_at`` stages are not trained, in 0 to 5.

    Raises:
        ValueError: as :class:`StagedTrunk` does.
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
        """Pooling (before the second and third convolution) and the stage's convolution."""
        channels = self._channels[index]
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        if index == 0:
            layers["pad"] = nn.ZeroPad2d(CONV1_PADDING)
            conv = conv_relu(in_channels, channels, 11, stride=4)
        else:
            if index in POOL_PADDING:
                # A ReLU comes before, so that a 0 beside the map never is a window's maximum
                # alone.
                layers["pad"] = nn.ZeroPad2d(POOL_PADDING[index])
                layers["pool"] = nn.MaxPool2d(3, 2)
            size = 5 if index == 1 else 3
            conv = conv_relu(in_channels, channels, size, padding=size // 2)
        layers[f"conv{index + 1}_1"] = conv
        return nn.Sequential(layers)


@BACKBONE_REGISTRY.register()
def build_alexnet_backbone(cfg, input_shape: ShapeSpec) -> AlexNet:
    """AlexNet from a config: ``MODEL.RESNETS.OUT_FEATURES`` and ``MODEL.BACKBONE.FREEZE_AT``."""
    return AlexNet(
        input_shape.channels,
        out_features=cfg.MODEL.RESNETS.OUT_FEATURES,
        freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT,
    )
