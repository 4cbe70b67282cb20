"""Configs by their path below ``configs/``: yaml files, or Python files in the LazyConfig form."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from detectron2.config import CfgNode, LazyConfig, get_cfg, instantiate
from detectron2.modeling import build_model
from torch import nn

from hypernet_d2.checkpoint import HyperNetCheckpointer, package_weights
from hypernet_d2.config import add_hypernet_config, default_device
from hypernet_d2.utils.files import did_you_mean

if TYPE_CHECKING:
    from omegaconf import DictConfig

__all__ = ["get", "get_checkpoint_url", "get_config", "get_config_file"]

_CONFIGS = Path(__file__).parent / "configs"
_SUFFIXES = (".yaml", ".py")


def get_config_file(config_path: str) -> str:
    """Path to a config file.

    Args:
        config_path: name relative to ``configs/``, e.g. "BCCD-Detection/hypernet_R_18.yaml".

    Raises:
        ValueError: if there is no such config; the message has the nearest name, or all names.
    """
    path = _CONFIGS / config_path
    if path.suffix in _SUFFIXES and path.is_file():
        return str(path)
    known = sorted(
        path.relative_to(_CONFIGS).as_posix()
        for path in _CONFIGS.glob("*/*")
        if path.suffix in _SUFFIXES and not path.name.startswith("Base-")
    )
    hint = did_you_mean(config_path, known) or f"; it has {', '.join(known)}"
    raise ValueError(f"{config_path!r} is not in the model zoo{hint}")


def get_checkpoint_url(config_path: str) -> str:
    """``MODEL.WEIGHTS`` of the trained model of a config; the package contains its weights.

    Raises:
        ValueError: there is no such config, or no trained model of it.
    """
    get_config_file(config_path)
    return package_weights(Path(config_path).with_suffix("").as_posix())


def get_config(config_path: str, trained: bool = False) -> CfgNode | DictConfig:
    """Load a config.

    Args:
        config_path: see :func:`get_config_file`.
        trained: set ``MODEL.WEIGHTS`` (``train.init_checkpoint`` in a ``.py`` config) to the
            checkpoint of the trained model.

    Returns:
        A CfgNode with ``MODEL.HYPERNET``, or the LazyConfig of a ``.py`` file.

    Raises:
        ValueError: see :func:`get_config_file` and :func:`get_checkpoint_url`.
    """
    path = get_config_file(config_path)
    weights = get_checkpoint_url(config_path) if trained else None
    if path.endswith(".py"):
        lazy = LazyConfig.load(path)
        if weights:
            lazy.train.init_checkpoint = weights
        return lazy
    cfg = get_cfg()
    add_hypernet_config(cfg)
    cfg.merge_from_file(path)
    if weights:
        cfg.MODEL.WEIGHTS = weights
    return cfg


def get(config_path: str, trained: bool = False, device: str | None = None) -> nn.Module:
    """Build the model of a config, in training mode.

    Args:
        config_path: see :func:`get_config_file`.
        trained: load the trained model's weights instead of the initial ones of the config.
        device: device of the model; by default the GPU if there is one.
    """
    cfg = get_config(config_path, trained)
    device = device or default_device()
    if isinstance(cfg, CfgNode):
        cfg.MODEL.DEVICE = device
        model, weights = build_model(cfg), cfg.MODEL.WEIGHTS
    else:
        model, weights = instantiate(cfg.model).to(device), cfg.train.init_checkpoint
    HyperNetCheckpointer(model).load(weights)
    return model
