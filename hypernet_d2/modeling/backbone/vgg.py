"""VGG (Simonyan and Zisserman, 2014) as a detectron2 backbone; detectron2 has none."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from detectron2.layers import ShapeSpec
from detectron2.modeling.backbone import BACKBONE_REGISTRY
from torch import nn

from .staged_trunk import StagedTrunk, conv_relu

__all__ = ["VGG", "build_vgg_backbone"]

STAGES_OF_VGG16 = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


class VGG(StagedTrunk):
    """The convolutional part of VGG, in stages ``conv1`` to ``conv5`` of stride 1, 2, 4, 8, 16.

    A stage's map is that before its pooling (paper 3.1: 1000x600, 500x300, ... for an image of
    1000x600); the pooling opens the next stage.

    Args:
        in_channels: channels of the image.
        stage_channels: for each stage the output channels of its 3x3 convolutions.
        out_features: names of the stages that ``forward`` returns.
        freeze_at: the first ``freeze_at`` stages are not trained, in 0 to 5; Faster R-CNN's 2 for
            VGG16 trains from ``conv3`` on.

    Raises:
        ValueError: as :class:`StagedTrunk` does.
    """

    def __init__(
        self,
        in_channels: int = 3,
        *,
        stage_channels: Sequence[Sequence[int]] = STAGES_OF_VGG16,
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
        """Pooling (from the second stage on) and the stage's convolutions."""
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        if index > 0:
            layers["pool"] = nn.MaxPool2d(2, 2)
        for k, channels in enumerate(self._stage_channels[index]):
            layers[f"conv{index + 1}_{k + 1}"] = conv_relu(in_channels, channels, 3, padding=1)
            in_channels = channels
        return nn.Sequential(layers)


@BACKBONE_REGISTRY.register()
def build_vgg_backbone(cfg, input_shape: ShapeSpec) -> VGG:
    """VGG16 from a config: ``MODEL.RESNETS.OUT_FEATURES`` and ``MODEL.BACKBONE.FREEZE_AT``."""
    return VGG(
        input_shape.channels,
        out_features=cfg.MODEL.RESNETS.OUT_FEATURES,
        freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT,
    )
