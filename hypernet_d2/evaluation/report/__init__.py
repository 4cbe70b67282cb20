"""The report on a trained model: figures, plots and pictures in one HTML file."""

from hypernet_d2 import _detectron2  # noqa: F401

# isort: split
from .compare import comparison_sections
from .evaluated_set import find_detections
from .write import THRESHOLDS_FILE, read_run, write_report

__all__ = [
    "THRESHOLDS_FILE",
    "comparison_sections",
    "find_detections",
    "read_run",
    "write_report",
]
