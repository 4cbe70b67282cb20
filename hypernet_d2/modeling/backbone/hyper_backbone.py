"""A trunk and the hyper feature as one detectron2 backbone (paper 3.1)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from detectron2.config import CfgNode, get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling.backbone import BACKBONE_REGISTRY, Backbone
from torch import Tensor

from hypernet_d2.config import hypernet_node
from hypernet_d2.layers import HyperFeature

__all__ = ["HyperBackbone", "build_hyper_backbone"]

RESNET_MAPS = ("stem", "res2", "res3", "res4", "res5")


class HyperBackbone(Backbone):
    """Fuses feature maps of a trunk into one map, named ``hyper``.

    Args:
        trunk: any detectron2 backbone.
        in_features: names of the feature maps of the trunk that are fused.
        extra_features: names of the feature maps of the trunk that are returned beside ``hyper``,
            for heads over hypercolumns.
        stride, channels, kernel_size, norm, upsampling, conv_first: see
            :class:`hypernet_d2.layers.HyperFeature`.

    Raises:
        ValueError: if the trunk has no map of a name in ``in_features`` or ``extra_features``, if
            ``stride`` is not a power of 2, and as :class:`hypernet_d2.layers.HyperFeature` does.
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
        self.in_features = tuple(in_features)
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
        # A trunk that does not state its divisibility is taken to need that of its coarsest map.
        strides = {name: shape.stride for name, shape in shapes.items()}
        of_trunk = trunk.size_divisibility or math.lcm(*strides.values())
        used = [strides[name] for name in [*in_features, *extra_features]]
        self._size_divisibility = math.lcm(stride, of_trunk, *used)

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Channels and stride of ``hyper`` and of each extra map."""
        feature = self.hyper_feature
        hyper = ShapeSpec(channels=feature.out_channels, stride=feature.stride)
        return {"hyper": hyper, **self.extra_features}

    @property
    def size_divisibility(self) -> int:
        """Divisor of the padded image size with which all maps cover the same pixels."""
        return self._size_divisibility

    @property
    def padding_constraints(self) -> dict[str, int]:
        """Those of the trunk (for example a square input), with our size divisibility."""
        return {**self.trunk.padding_constraints, "size_divisibility": self._size_divisibility}

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Compute the hyper feature of a batch of normalized images.

        Args:
            x: (N, 3, H, W); H and W are multiples of :attr:`size_divisibility`.

        Returns:
            {"hyper": (N, C, H / stride, W / stride)} and the extra maps by their names.
        """
        maps = self.trunk(x)
        hyper = self.hyper_feature(maps)
        extra = {name: maps[name] for name in self.extra_features}
        unused = maps.keys() - self.in_features - extra.keys()
        if self.training and unused:
            # DistributedDataParallel needs a gradient of every parameter, also of those that only
            # such a map depends on.
            hyper = hyper + 0 * sum(maps[name].mean() for name in unused)
        return {"hyper": hyper, **extra}


def _check_features(node: str, in_features: Sequence[str], available: Sequence[str]) -> None:
    key = f"MODEL.HYPERNET.{node}.IN_FEATURES"
    missing = [name for name in in_features if name not in available]
    if missing or not in_features:
        raise ValueError(
            f"{key} is {list(in_features)}, but the trunk has only {list(available)} (stock "
            "ResNets, also below an FPN, return the maps in MODEL.RESNETS.OUT_FEATURES)"
        )
    repeated = sorted({name for name in in_features if list(in_features).count(name) > 1})
    if repeated:
        raise ValueError(f"{key} names {repeated} more than once")


@BACKBONE_REGISTRY.register()
def build_hyper_backbone(cfg, input_shape: ShapeSpec) -> HyperBackbone:
    """Build the backbone that ``MODEL.HYPERNET.TRUNK`` names, and the hyper feature over it.

    The result also returns the maps that ``MODEL.HYPERNET.HYPERCOLUMN.IN_FEATURES`` names.
    """
    feature = hypernet_node(cfg).FEATURE
    hypercolumn = [f for f in hypernet_node(cfg).HYPERCOLUMN.IN_FEATURES if f != "hyper"]
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


def _build_trunk(cfg: CfgNode, input_shape: ShapeSpec, in_features: list[str]) -> Backbone:
    """Build the trunk. A stock ResNet, VGG or AlexNet returns the maps in ``in_features``.

    Those trunks read ``MODEL.RESNETS.OUT_FEATURES``, and so does the ResNet below an FPN. A value
    that the user set is kept. The default, a single map, becomes ``MODEL.FPN.IN_FEATURES`` if that
    is set, else ``in_features``. Other trunks ignore the key.
    """
    name = hypernet_node(cfg).TRUNK
    if name not in BACKBONE_REGISTRY or name == "build_hyper_backbone":
        known = sorted(key for key, _ in BACKBONE_REGISTRY if key != "build_hyper_backbone")
        raise ValueError(f"MODEL.HYPERNET.TRUNK is {name!r}; expected one of {known}")
    build_trunk = BACKBONE_REGISTRY.get(name)
    if cfg.MODEL.RESNETS.OUT_FEATURES != get_cfg().MODEL.RESNETS.OUT_FEATURES:
        return build_trunk(cfg, input_shape)
    out_features = cfg.MODEL.FPN.IN_FEATURES or dict.fromkeys(in_features) or RESNET_MAPS
    try:
        return build_trunk(_with_out_features(cfg, out_features), input_shape)
    except AssertionError:
        # The stock ResNet has no map of one of these names. Either the names are those of a
        # pyramid above it, or they are wrong, and HyperBackbone lists the maps of the ResNet.
        return build_trunk(_with_out_features(cfg, RESNET_MAPS), input_shape)


def _with_out_features(cfg: CfgNode, out_features: Iterable[str]) -> CfgNode:
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.RESNETS.OUT_FEATURES = list(out_features)
    return cfg
