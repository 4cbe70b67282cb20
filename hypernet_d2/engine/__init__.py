"""Training and evaluation: config set-up, trainer, schedules, checkpointer."""

from .. import _detectron2  # noqa: F401
from .alternating import train_alternating, write_results
from .checkpoint import HyperNetCheckpointer
from .setup import default_device, setup_cfg
from .trainer import Trainer, build_evaluator

__all__ = [
    "HyperNetCheckpointer",
    "Trainer",
    "build_evaluator",
    "default_device",
    "setup_cfg",
    "train_alternating",
    "write_results",
]
