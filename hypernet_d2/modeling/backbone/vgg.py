"""VGG (Simonyan and Zisserman, 2014) as a detectron2 backbone."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from detectron2.layers import ShapeSpec
from detectron2.modeling.backbone import BACKBONE_REGISTRY
from torch import nn

from .staged_trunk import StagedTrunk, conv_relu

__all__ = ["VGG", "build_vgg_backbone"]

VGG16_CHANNELS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


class VGG(StagedTrunk):
    """The convolutional layers of VGG: stages ``conv1`` to ``conv5``, strides 1, 2, 4, 8, 16.

    The map of a stage is the one before pooling (paper 3.1: 1000x600, 500x300, ... for an image of
    1000x600); the pooling is the first layer of the next stage.

    Args:
        in_channels: channels of the image.
        stage_channels: for each stage, the output channels of each of its 3x3 convolutions.
        out_features: names of the stages that ``forward`` returns.
        freeze_at: number of leading stages that are not trained, 0 to 5. Faster R-CNN freezes 2
            stages of VGG16.

    Raises:
        ValueError: see :class:`StagedTrunk`.
    """

    def __init__(
        self,
        in_channels: int = 3,
        *,
        stage_channels: Sequence[Sequence[int]] = VGG16_CHANNELS,
        out_features: Sequence[str] = ("conv5",),
        freeze_at: int = 0,
    ):
        self._stage_channels = [tuple(channels) for channels in stage_channels]
        super().__init__(
            in_channels,
            channels=[channels[-1] for channels in self._stage_channels],
            strides=[2**i for i in range(len(self._stage_channels))],
            out_features=out_features,
            freeze_at=freeze_at,
        )

    def make_stage(self, index: int, in_channels: int) -> nn.Sequential:
        """Max pooling (from the second stage on), then the convolutions."""
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        if index > 0:
            layers["pool"] = nn.MaxPool2d(2, 2)
        for k, channels in enumerate(self._stage_channels[index]):
            layers[f"conv{index + 1}_{k + 1}"] = conv_relu(in_channels, channels, 3, padding=1)
            in_channels = channels
        return nn.Sequential(layers)


@BACKBONE_REGISTRY.register()
def build_vgg_backbone(cfg, input_shape: ShapeSpec) -> VGG:
    """VGG16 from ``MODEL.RESNETS.OUT_FEATURES`` and ``MODEL.BACKBONE.FREEZE_AT``."""
    return VGG(
        input_shape.channels,
        out_features=cfg.MODEL.RESNETS.OUT_FEATURES,
        freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT,
    )
