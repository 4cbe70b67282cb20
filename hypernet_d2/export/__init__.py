"""Exports a trained model to ONNX or torch.export; ``hypernet_d2.deploy`` runs the files."""

from hypernet_d2 import _detectron2  # noqa: F401

from .capture import capture, write_torch
from .exportable import ExportableDetector, size_divisibility
from .onnx import write_onnx

__all__ = ["ExportableDetector", "capture", "size_divisibility", "write_onnx", "write_torch"]
