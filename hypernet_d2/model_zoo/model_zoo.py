"""Configs by their path below ``configs/``."""

from __future__ import annotations

from pathlib import Path

import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import build_model
from torch import nn

from ..config import add_hypernet_config
from ..engine import HyperNetCheckpointer

__all__ = ["get", "get_checkpoint_url", "get_config", "get_config_file"]

_PLACES = (Path(__file__).parent / "configs", Path(__file__).parents[2] / "configs")


def get_config_file(config_path: str) -> str:
    """Path of a config file, e.g. of "BCCD-Detection/hypernet_R_18.yaml".

    Raises:
        ValueError: if there is none of that name; the message lists those there are.
    """
    places = [place for place in _PLACES if place.is_dir()]
    for place in places:
        if (place / config_path).is_file():
            return str(place / config_path)
    known = sorted({str(p.relative_to(place)) for place in places for p in place.rglob("*.yaml")})
    raise ValueError(f"{config_path!r} is not in the model zoo; it has {known}")


def get_checkpoint_url(config_path: str) -> str:
    """URL of a trained model; no trained model is published yet.

    Raises:
        ValueError: always, saying whether the config at least exists.
    """
    get_config_file(config_path)
    raise ValueError(f"no trained model is published for {config_path!r}")


def get_config(config_path: str, trained: bool = False) -> CfgNode:
    """The config, ``MODEL.HYPERNET`` included; ``trained`` sets MODEL.WEIGHTS to its checkpoint."""
    cfg = get_cfg()
    add_hypernet_config(cfg)
    cfg.merge_from_file(get_config_file(config_path))
    if trained:
        cfg.MODEL.WEIGHTS = get_checkpoint_url(config_path)
    return cfg


def get(config_path: str, trained: bool = False, device: str | None = None) -> nn.Module:
    """The model of a config, in training mode, on ``device`` (default: a GPU if there is one)."""
    cfg = get_config(config_path, trained)
    cfg.MODEL.DEVICE = device or ("cuda" if torch.cuda.is_available() else "cpu")
    model = build_model(cfg)
    HyperNetCheckpointer(model).load(cfg.MODEL.WEIGHTS)
    return model
