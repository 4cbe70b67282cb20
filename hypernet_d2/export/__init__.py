"""Writes a trained model as ONNX or torch.export; `hypernet_d2.deploy` runs the files."""

from hypernet_d2 import _detectron2  # noqa: F401

from .export import capture, write_onnx, write_torch
from .exportable import ExportableDetector

__all__ = ["ExportableDetector", "capture", "write_onnx", "write_torch"]
