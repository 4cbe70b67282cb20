"""Any model of timm with ``features_only`` as a detectron2 backbone.

Legend: N images, C channels, (H, W) the padded image in pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling.backbone import BACKBONE_REGISTRY, FPN, Backbone
from detectron2.modeling.backbone.fpn import LastLevelMaxPool
from torch import Tensor, nn

from hypernet_d2.config import hypernet_node
from hypernet_d2.utils.optional import import_optional

__all__ = ["TimmBackbone", "build_timm_backbone", "build_timm_fpn_backbone"]

NORMS = ("FrozenBN", "BN")


class TimmBackbone(Backbone):
    """The feature maps of a timm model, named by stride: ``s2``, ``s4``, ... ``s32``.

    Of several maps of one stride, the last is taken. Images come as detectron2 normalizes them,
    and are brought to the normalization that the model was trained with (see ``pixel_mean``).

    Args:
        name: name of the model in timm, for instance "tf_efficientnet_lite0". Its weights are
            random; a detectron2 checkpointer loads others (``MODEL.WEIGHTS "timm://NAME"``).
        out_features: names of the maps that ``forward`` returns.
        norm: "FrozenBN" converts batch normalization to an affine layer with fixed statistics,
            for training with few images in a batch; "BN" trains it. Other norms are kept.
        freeze_at: number of leading maps of the model, counted from its finest, up to which no
            parameter is trained; 0 trains all.
        pixel_mean, pixel_std: those by which detectron2 has normalized the image: for each channel,
            from 0 to 255.
        image_format: order of the channels of the image, "BGR" or "RGB".

    Raises:
        ModuleNotFoundError: timm is not installed.
        ValueError: timm has no such model, it has no feature maps, or ``out_features``, ``norm``,
            ``freeze_at`` or ``image_format`` is none of the possible values.
    """

    def __init__(
        self,
        name: str,
        *,
        out_features: Sequence[str],
        norm: str = "FrozenBN",
        freeze_at: int = 0,
        pixel_mean: Sequence[float] = (103.53, 116.28, 123.675),
        pixel_std: Sequence[float] = (1.0, 1.0, 1.0),
        image_format: str = "BGR",
    ):
        super().__init__()
        timm = import_optional("timm", "pretrained", "MODEL.HYPERNET.TIMM")
        if norm not in NORMS:
            raise ValueError(f"TIMM.NORM is {norm!r}; expected one of {NORMS}")
        if image_format not in ("BGR", "RGB"):
            raise ValueError(
                f"INPUT.FORMAT is {image_format!r}; timm models take BGR or RGB images"
            )
        available = _maps(timm, name)
        unknown = sorted(set(out_features) - set(available))
        if unknown or not out_features:
            raise ValueError(
                f"{name} has no map {unknown}; expected one or more of {list(available)}"
            )
        if not 0 <= freeze_at <= len(available):
            raise ValueError(f"FREEZE_AT of {name} is {freeze_at}; expected 0 to {len(available)}")
        self._out_feature_channels, self._out_feature_strides = {}, {}
        self._out_features = [map for map in available if map in out_features]
        # timm builds the model up to the last of these maps.
        indices = [available[map]["index"] for map in self._out_features]
        net = timm.create_model(name, features_only=True, out_indices=indices)
        for map, info in zip(self._out_features, net.feature_info.get_dicts(), strict=True):
            self._out_feature_channels[map] = info["num_chs"]
            self._out_feature_strides[map] = info["reduction"]
        last = net.feature_info.module_name()[-1].split(".")
        if (
            len(last) == 2 and last[0] == "blocks" and hasattr(net, "blocks")
        ):  # EfficientNet and MobileNet keep all blocks
            net.blocks = net.blocks[: int(last[1]) + 1]
        if freeze_at:
            _freeze(net, name, list(available.values())[freeze_at - 1]["module"])
        self.net = timm.layers.freeze_batch_norm_2d(net) if norm == "FrozenBN" else net
        self.channels_last = str(getattr(net, "output_fmt", "NCHW")).endswith("NHWC")
        self.reverse_channels = image_format == "BGR"
        self._set_normalization(timm.get_pretrained_cfg(name), pixel_mean, pixel_std)

    def _set_normalization(self, pretrained_cfg, mean: Sequence[float], std: Sequence[float]):
        """Buffers ``scale`` and ``shift``, (1, 3, 1, 1): from detectron2's values to timm's."""
        # In NumPy, so that a model can be built on the device "meta".
        order = slice(None, None, -1 if self.reverse_channels else 1)
        given_mean, given_std = np.array(mean)[order], np.array(std)[order]
        model_mean, model_std = 255 * np.array([pretrained_cfg.mean, pretrained_cfg.std])
        scale = given_std / model_std
        shift = (given_mean - model_mean) / model_std
        for name, value in (("scale", scale), ("shift", shift)):
            buffer = torch.tensor(value, dtype=torch.float32).view(1, -1, 1, 1)
            self.register_buffer(name, buffer, persistent=False)
        self.same_normalization = bool(abs(scale - 1).max() < 1e-3 and abs(shift).max() < 1e-3)

    @property
    def size_divisibility(self) -> int:
        """The coarsest stride."""
        return math.lcm(*(self._out_feature_strides[name] for name in self._out_features))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Images (N, 3, H, W), normalized, to {name: (N, C, H / stride, W / stride)}."""
        if self.reverse_channels:
            x = x.flip(1)
        if not self.same_normalization:
            x = x * self.scale + self.shift
        # Depthwise convolutions are about twice as fast in this format on a CPU, and no slower on
        # a GPU. Later layers keep it.
        maps = self.net(x.contiguous(memory_format=torch.channels_last))
        if self.channels_last:
            maps = [map.permute(0, 3, 1, 2).contiguous() for map in maps]
        return dict(zip(self._out_features, maps, strict=True))


def _maps(timm, name: str) -> dict[str, dict]:
    """{name of a map: what timm says of it}, the finest first."""
    if not timm.is_model(name):
        similar = ", ".join(timm.list_models(f"*{name.split('_')[0]}*")[:5])
        raise ValueError(
            f"MODEL.HYPERNET.TIMM.NAME is {name!r}, which timm {timm.__version__} does not have"
            + (f"; it has {similar}, ..." if similar else "")
        )
    try:
        with torch.device("meta"):
            infos = timm.create_model(name, features_only=True).feature_info.get_dicts()
    except (RuntimeError, AttributeError) as error:
        raise ValueError(
            f"MODEL.HYPERNET.TIMM.NAME is {name!r}, a model without feature maps: {error}"
        ) from error
    return {f"s{info['reduction']}": info for info in infos}


def _freeze(net: nn.Module, name: str, module: str) -> None:
    """No gradient for the layers up to the end of a module, in the order of the layers."""
    modules = dict(net.named_modules())
    # timm renames or wraps the modules of some models with features_only.
    names = {module, module.replace(".", "_"), f"model.{module}"} & modules.keys()
    if not names:
        raise ValueError(f"{name} can only be trained whole: expected MODEL.BACKBONE.FREEZE_AT 0")
    prefix = names.pop()
    inside = [i for i, key in enumerate(modules) if f"{key}.".startswith(f"{prefix}.")]
    for frozen in list(modules.values())[: max(inside) + 1]:
        for parameter in frozen.parameters(recurse=False):
            parameter.requires_grad_(False)


def _build(cfg: CfgNode, input_shape: ShapeSpec, out_features: Sequence[str]) -> TimmBackbone:
    node, weights = hypernet_node(cfg).TIMM, cfg.MODEL.WEIGHTS
    if weights.startswith("timm://"):
        other = weights.removeprefix("timm://").partition("@")[0].partition(".")[0]
        if other != node.NAME.partition(".")[0]:
            raise ValueError(
                f"MODEL.WEIGHTS is {weights!r}, but MODEL.HYPERNET.TIMM.NAME is {node.NAME!r}; "
                "expected the weights of the same model"
            )
    return TimmBackbone(
        node.NAME,
        out_features=out_features,
        norm=node.NORM,
        freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT,
        pixel_mean=cfg.MODEL.PIXEL_MEAN,
        pixel_std=cfg.MODEL.PIXEL_STD,
        image_format=cfg.INPUT.FORMAT,
    )


@BACKBONE_REGISTRY.register()
def build_timm_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> TimmBackbone:
    """A timm model from ``MODEL.HYPERNET.TIMM``; its maps from ``MODEL.RESNETS.OUT_FEATURES``."""
    return _build(cfg, input_shape, cfg.MODEL.RESNETS.OUT_FEATURES)


@BACKBONE_REGISTRY.register()
def build_timm_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """The stock FPN over the maps of a timm model that ``MODEL.FPN.IN_FEATURES`` names.

    Its maps are named as in the stock FPN: ``p2`` has stride 4, and the last has twice the stride
    of the coarsest map.
    """
    return FPN(
        bottom_up=_build(cfg, input_shape, cfg.MODEL.FPN.IN_FEATURES),
        in_features=cfg.MODEL.FPN.IN_FEATURES,
        out_channels=cfg.MODEL.FPN.OUT_CHANNELS,
        norm=cfg.MODEL.FPN.NORM,
        top_block=LastLevelMaxPool(),
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
    )
