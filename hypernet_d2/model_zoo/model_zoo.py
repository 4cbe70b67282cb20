"""Configs by their path below ``configs/``: yaml files, or Python files in the LazyConfig form."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from detectron2.config import CfgNode, LazyConfig, get_cfg, instantiate
from detectron2.modeling import build_model
from torch import nn

from hypernet_d2.checkpoint import HyperNetCheckpointer
from hypernet_d2.config import add_hypernet_config, default_device
from hypernet_d2.utils.files import did_you_mean

if TYPE_CHECKING:
    from omegaconf import DictConfig

__all__ = ["get", "get_checkpoint_url", "get_config", "get_config_file"]

_CONFIGS = Path(__file__).parent / "configs"
_SUFFIXES = (".yaml", ".py")


def get_config_file(config_path: str) -> str:
    """Path of a config file, e.g. of "BCCD-Detection/hypernet_R_18.yaml".

    Raises:
        ValueError: there is none of that name; the message has the nearest name, or lists all.
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
    """URL of a trained model; no trained model is published yet.

    Raises:
        ValueError: always, saying whether the config at least exists.
    """
    get_config_file(config_path)
    raise ValueError(f"no trained model is published for {config_path!r}")


def get_config(config_path: str, trained: bool = False) -> CfgNode | DictConfig:
    """The config: a CfgNode, ``MODEL.HYPERNET`` included, or of a ``.py`` file its LazyConfig.

    ``trained`` sets MODEL.WEIGHTS, or ``train.init_checkpoint``, to the config's checkpoint.
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
    """The model of a config with its initial or (``trained``) final weights, in training mode.

    ``device`` is where it lies; by default a GPU if there is one.
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
