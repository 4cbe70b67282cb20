"""The report on a trained model: figures, plots and pictures in one HTML file."""

from hypernet_d2 import _detectron2  # noqa: F401

# isort: split
from .write import THRESHOLDS_FILE, write_report

__all__ = ["THRESHOLDS_FILE", "write_report"]
