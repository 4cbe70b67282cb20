"""Exports a trained detector to ONNX or torch.export; ``hypernet_d2.deploy`` runs the files."""

from hypernet_d2 import _detectron2  # noqa: F401

from .capture import capture, write_torch
from .exportable import ExportableDetector, size_divisibility
from .info import (
    SCORE_THRESHOLDS,
    class_names,
    describe,
    find_canvas,
    read_score_thresholds,
)
from .onnx import write_onnx
from .quantize import quantize_int8

__all__ = [
    "SCORE_THRESHOLDS",
    "ExportableDetector",
    "capture",
    "class_names",
    "describe",
    "find_canvas",
    "quantize_int8",
    "read_score_thresholds",
    "size_divisibility",
    "write_onnx",
    "write_torch",
]
