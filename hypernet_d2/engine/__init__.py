"""Training and evaluation: config set-up, trainer, schedules, predictor, drawing."""

from hypernet_d2 import _detectron2  # noqa: F401

# isort: split
from hypernet_d2.evaluation import build_evaluator

from .alternating import train_alternating, write_results
from .checks import check_test_time_augmentation, check_tiles
from .launch import launch
from .made_split import find_split, write_split
from .output_dir import check_no_earlier_run, check_writable
from .part_pictures import draw_parts
from .predictor import Predictor
from .setup import add_data_argument, register_data, setup_cfg
from .tiled import TiledDetector
from .trainer import Trainer

__all__ = [
    "Predictor",
    "TiledDetector",
    "Trainer",
    "add_data_argument",
    "build_evaluator",
    "check_no_earlier_run",
    "check_test_time_augmentation",
    "check_tiles",
    "check_writable",
    "draw_parts",
    "find_split",
    "launch",
    "register_data",
    "setup_cfg",
    "train_alternating",
    "write_results",
    "write_split",
]
