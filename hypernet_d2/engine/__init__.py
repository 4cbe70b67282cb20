"""Training and evaluation: config set-up, trainer, checkpointer."""

from .checkpoint import HyperNetCheckpointer
from .setup import default_device, setup_cfg
from .trainer import Trainer, build_evaluator

__all__ = ["HyperNetCheckpointer", "Trainer", "build_evaluator", "default_device", "setup_cfg"]
