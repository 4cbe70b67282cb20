"""VGG (Simonyan and Zisserman, 2014) as a detectron2 backbone; detectron2 has none."""

from __future__ import annotations

from collections.abc import Sequence

import fvcore.nn.weight_init as weight_init
from detectron2.layers import Conv2d, ShapeSpec
from detectron2.modeling.backbone import BACKBONE_REGISTRY, Backbone
from torch import Tensor, nn

__all__ = ["VGG", "build_vgg_backbone"]

STAGES_OF_VGG16 = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


class VGG(Backbone):
    """The convolutional part of VGG, in stages ``conv1`` to ``conv5`` of stride 1, 2, 4, 8, 16.

    A stage's map is that before its pooling (paper 3.1: 1000x600, 500x300, ... for an image of
    1000x600); the pooling opens the next stage.

    Args:
        in_channels: channels of the image.
        stage_channels: for each stage the output channels of its 3x3 convolutions.
        out_features: names of the stages that ``forward`` returns.
        freeze_at: the first ``freeze_at`` stages are not trained, in 0 to 5; as in the stock
            ResNet, whose first "stage" is its stem.

    Raises:
        ValueError: if ``out_features`` is empty or names a stage that is not there.
    """

    def __init__(
        self,
        in_channels: int = 3,
        *,
        stage_channels: Sequence[Sequence[int]] = STAGES_OF_VGG16,
        out_features: Sequence[str] = ("conv5",),
        freeze_at: int = 0,
    ):
        super().__init__()
        names = [f"conv{i + 1}" for i in range(len(stage_channels))]
        unknown = sorted(set(out_features) - set(names))
        if unknown or not out_features:
            raise ValueError(f"VGG has no map {unknown}; expected one or more of {names}")
        self._out_features = [name for name in names if name in out_features]
        last = names.index(self._out_features[-1])
        self.stages = names[: last + 1]
        self._out_feature_channels = {n: c[-1] for n, c in zip(names, stage_channels, strict=True)}
        self._out_feature_strides = {n: 2**i for i, n in enumerate(names)}
        for i, name in enumerate(self.stages):
            self.add_module(name, _make_stage(in_channels, stage_channels[i], pool=i > 0))
            in_channels = stage_channels[i][-1]
        for name in self.stages[:freeze_at]:
            for parameter in getattr(self, name).parameters():
                parameter.requires_grad = False

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Image (N, C, H, W), normalised, to {stage: (N, channels, H // stride, W // stride)}."""
        if x.dim() != 4:
            raise ValueError(f"VGG takes (N, C, H, W), got a tensor of shape {tuple(x.shape)}")
        outputs = {}
        for name in self.stages:
            x = getattr(self, name)(x)
            if name in self._out_features:
                outputs[name] = x
        return outputs


def _make_stage(in_channels: int, out_channels: Sequence[int], pool: bool) -> nn.Sequential:
    layers: list[nn.Module] = [nn.MaxPool2d(2, 2)] if pool else []
    for channels in out_channels:
        conv = Conv2d(in_channels, channels, kernel_size=3, padding=1, activation=nn.ReLU())
        weight_init.c2_msra_fill(conv)
        layers.append(conv)
        in_channels = channels
    return nn.Sequential(*layers)


@BACKBONE_REGISTRY.register()
def build_vgg_backbone(cfg, input_shape: ShapeSpec) -> VGG:
    """VGG16 from a config: ``MODEL.RESNETS.OUT_FEATURES`` and ``MODEL.BACKBONE.FREEZE_AT``."""
    return VGG(
        input_shape.channels,
        out_features=cfg.MODEL.RESNETS.OUT_FEATURES,
        freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT,
    )
