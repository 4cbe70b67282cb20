"""Training and evaluation: config set-up, trainer, schedules, checkpointer."""

from .. import _detectron2  # noqa: F401
from .alternating import train_alternating, write_results
from .checkpoint import HyperNetCheckpointer
from .predictor import Predictor
from .setup import add_data_argument, default_device, register_data, setup_cfg
from .sigterm import launch
from .trainer import Trainer, build_evaluator

__all__ = [
    "HyperNetCheckpointer",
    "Predictor",
    "Trainer",
    "add_data_argument",
    "build_evaluator",
    "default_device",
    "launch",
    "register_data",
    "setup_cfg",
    "train_alternating",
    "write_results",
]
