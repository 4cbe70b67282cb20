"""Reading and writing weights."""

from hypernet_d2 import _detectron2  # noqa: F401

from .checkpointer import HyperNetCheckpointer
from .output_files import OUTPUT_FILES

__all__ = ["OUTPUT_FILES", "HyperNetCheckpointer"]
