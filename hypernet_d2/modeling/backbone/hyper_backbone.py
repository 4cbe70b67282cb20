"""The trunk and the hyper feature as one detectron2 backbone (paper 3.1)."""

from __future__ import annotations

import math
from collections.abc import Sequence

from detectron2.layers import ShapeSpec
from detectron2.modeling.backbone import BACKBONE_REGISTRY, Backbone
from torch import Tensor

from hypernet_d2.layers import HyperFeature

__all__ = ["HyperBackbone", "build_hyper_backbone"]


class HyperBackbone(Backbone):
    """A trunk whose maps are fused into one, named ``hyper``.

    Args:
        trunk: any detectron2 backbone.
        in_features: names of the trunk's maps that are fused.
        extra_features: names of the trunk's maps that are returned beside ``hyper``, for heads
            over hypercolumns.
        stride, channels, kernel_size, norm, upsampling, conv_first: see
            :class:`hypernet_d2.layers.HyperFeature`.

    Raises:
        ValueError: if the trunk lacks a map of ``in_features``, if ``stride`` is not a power of 2,
            and as :class:`hypernet_d2.layers.HyperFeature` does.
    """

    def __init__(
        self,
        trunk: Backbone,
        *,
        in_features: Sequence[str],
        extra_features: Sequence[str] = (),
        stride: int = 4,
        channels: int = 42,
        kernel_size: int = 5,
        norm: str = "LRN",
        upsampling: str = "deconv",
        conv_first: bool = False,
    ):
        super().__init__()
        shapes = trunk.output_shape()
        _check_features("FEATURE", in_features, list(shapes))
        if extra_features:
            _check_features("HYPERCOLUMN", extra_features, list(shapes))
        if stride < 1 or stride & (stride - 1):
            raise ValueError(f"FEATURE.STRIDE is {stride}; expected a power of 2")
        self.trunk = trunk
        self.in_features = list(in_features)
        self.extra_features = {name: shapes[name] for name in extra_features}
        self.hyper_feature = HyperFeature(
            {name: shapes[name].channels for name in in_features},
            {name: shapes[name].stride for name in in_features},
            stride=stride,
            channels=channels,
            kernel_size=kernel_size,
            norm=norm,
            upsampling=upsampling,
            conv_first=conv_first,
        )
        self._size_divisibility = math.lcm(
            stride,
            trunk.size_divisibility or 1,
            *(shapes[name].stride for name in [*in_features, *extra_features]),
        )

    def output_shape(self) -> dict[str, ShapeSpec]:
        """{"hyper": channels and stride of the hyper feature}, and the same of the extra maps."""
        feature = self.hyper_feature
        hyper = ShapeSpec(channels=feature.out_channels, stride=feature.stride)
        return {"hyper": hyper, **self.extra_features}

    @property
    def size_divisibility(self) -> int:
        """The coarsest stride that is fused or returned, so that all maps align."""
        return self._size_divisibility

    @property
    def padding_constraints(self) -> dict[str, int]:
        """The trunk's own wish for square input, if it has one."""
        return {**self.trunk.padding_constraints, "size_divisibility": self._size_divisibility}

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Image (N, 3, H, W), normalised, to {"hyper": (N, C, H / stride, W / stride)}, and the
        extra maps."""
        maps = self.trunk(x)
        extra = {name: maps[name] for name in self.extra_features}
        return {"hyper": self.hyper_feature(maps), **extra}


def _check_features(node: str, in_features: Sequence[str], available: Sequence[str]) -> None:
    key = f"MODEL.HYPERNET.{node}.IN_FEATURES"
    missing = [name for name in in_features if name not in available]
    if missing or not in_features:
        raise ValueError(
            f"{key} is {list(in_features)}, but the trunk has no map {missing}; it has "
            f"{list(available)}"
        )
    repeated = sorted({name for name in in_features if list(in_features).count(name) > 1})
    if repeated:
        raise ValueError(f"{key} names {repeated} more than once")


@BACKBONE_REGISTRY.register()
def build_hyper_backbone(cfg, input_shape: ShapeSpec) -> HyperBackbone:
    """The backbone that ``MODEL.HYPERNET.TRUNK`` names, under a hyper feature.

    It also returns the maps of the trunk that ``MODEL.HYPERNET.HYPERCOLUMN.IN_FEATURES`` names.
    """
    feature = cfg.MODEL.HYPERNET.FEATURE
    hypercolumn = [f for f in cfg.MODEL.HYPERNET.HYPERCOLUMN.IN_FEATURES if f != "hyper"]
    return HyperBackbone(
        _build_trunk(cfg, input_shape, [*feature.IN_FEATURES, *hypercolumn]),
        in_features=feature.IN_FEATURES,
        extra_features=hypercolumn,
        stride=feature.STRIDE,
        channels=feature.CHANNELS,
        kernel_size=feature.KERNEL_SIZE,
        norm=feature.NORM,
        upsampling=feature.UPSAMPLING,
        conv_first=feature.CONV_FIRST,
    )


def _build_trunk(cfg, input_shape: ShapeSpec, out_features: list[str]) -> Backbone:
    name = cfg.MODEL.HYPERNET.TRUNK
    if name not in BACKBONE_REGISTRY or name == "build_hyper_backbone":
        known = sorted(key for key, _ in BACKBONE_REGISTRY if key != "build_hyper_backbone")
        raise ValueError(f"MODEL.HYPERNET.TRUNK is {name!r}; expected one of {known}")
    trunk_cfg = cfg.clone()
    trunk_cfg.defrost()
    trunk_cfg.MODEL.RESNETS.OUT_FEATURES = list(dict.fromkeys(out_features))
    try:
        return BACKBONE_REGISTRY.get(name)(trunk_cfg, input_shape)
    except AssertionError as error:  # the stock ResNet's answer to a map that it lacks
        trunk_cfg.MODEL.RESNETS.OUT_FEATURES = ["res5"]
        stages = BACKBONE_REGISTRY.get(name)(trunk_cfg, input_shape).named_children()
        raise ValueError(
            f"MODEL.HYPERNET.FEATURE.IN_FEATURES and HYPERCOLUMN.IN_FEATURES name {out_features}, "
            f"but the trunk {name} has only {[stage for stage, _ in stages]}"
        ) from error
