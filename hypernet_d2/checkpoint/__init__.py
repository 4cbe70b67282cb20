"""Reading and writing weights."""

from hypernet_d2 import _detectron2  # noqa: F401

from .checkpointer import HyperNetCheckpointer
from .class_names import get_class_names, set_class_names
from .output_files import OUTPUT_FILES

__all__ = ["OUTPUT_FILES", "HyperNetCheckpointer", "get_class_names", "set_class_names"]
