"""Base class of AlexNet and VGG: a sequence of stages, each of which can be an output."""

from __future__ import annotations

from collections.abc import Sequence

import fvcore.nn.weight_init as weight_init
from detectron2.layers import Conv2d
from detectron2.modeling.backbone import Backbone
from torch import Tensor, nn

__all__ = ["StagedTrunk", "conv_relu"]


def conv_relu(in_channels: int, out_channels: int, kernel_size: int, **kwargs) -> Conv2d:
    """Convolution and ReLU with MSRA initialization; ``kwargs`` are those of ``Conv2d``."""
    conv = Conv2d(in_channels, out_channels, kernel_size, activation=nn.ReLU(), **kwargs)
    weight_init.c2_msra_fill(conv)
    return conv


class StagedTrunk(Backbone):
    """Stages ``conv1``, ``conv2``, ... in sequence. Stages after the last output are not built.

    A subclass builds a stage in :meth:`make_stage`. It names a convolution after the stage and its
    index (``conv3.conv3_1``), because detectron2's checkpointer matches the keys of ImageNet
    weights by suffix, and no other module of a detector has such a suffix.

    Args:
        in_channels: channels of the image.
        channels: output channels of each stage.
        strides: stride of each stage's output, in pixels.
        out_features: names of the stages that ``forward`` returns.
        freeze_at: number of leading stages that are not trained. The stock ResNet counts its stem
            as the first stage.

    Raises:
        ValueError: if ``out_features`` is empty or has an unknown name, or if ``freeze_at`` is not
            between 0 and the number of stages.
    """

    def __init__(
        self,
        in_channels: int,
        *,
        channels: Sequence[int],
        strides: Sequence[int],
        out_features: Sequence[str],
        freeze_at: int,
    ):
        super().__init__()
        kind, names = type(self).__name__, [f"conv{i + 1}" for i in range(len(channels))]
        unknown = sorted(set(out_features) - set(names))
        if unknown or not out_features:
            raise ValueError(f"{kind} has no map {unknown}; expected one or more of {names}")
        if not 0 <= freeze_at <= len(names):
            raise ValueError(f"FREEZE_AT of {kind} is {freeze_at}; expected 0 to {len(names)}")
        self._out_features = [name for name in names if name in out_features]
        self.stages = names[: names.index(self._out_features[-1]) + 1]
        self._out_feature_channels = dict(zip(names, channels, strict=True))
        self._out_feature_strides = dict(zip(names, strides, strict=True))
        for i, name in enumerate(self.stages):
            self.add_module(name, self.make_stage(i, in_channels))
            in_channels = channels[i]
        for name in self.stages[:freeze_at]:
            getattr(self, name).requires_grad_(False)

    def make_stage(self, index: int, in_channels: int) -> nn.Module:
        """Build the stage of this index, counted from 0, for ``in_channels`` input channels."""
        raise NotImplementedError

    @property
    def size_divisibility(self) -> int:
        """The coarsest stride, so that every stage divides its input evenly."""
        return max(self._out_feature_strides[name] for name in self.stages)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Image (N, C, H, W), normalized, to {stage: (N, channels, H // stride, W // stride)}."""
        if x.dim() != 4:
            raise ValueError(
                f"{type(self).__name__} takes (N, C, H, W), got a tensor of shape {tuple(x.shape)}"
            )
        outputs = {}
        for name in self.stages:
            x = getattr(self, name)(x)
            if name in self._out_features:
                outputs[name] = x
        return outputs
