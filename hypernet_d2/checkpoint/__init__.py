"""Reading and writing weights."""

from hypernet_d2 import _detectron2  # noqa: F401

from .checkpointer import HyperNetCheckpointer
from .class_names import get_class_names, set_class_names
from .output_files import OUTPUT_FILES
from .package_weights import package_weights, trained_configs
from .timm_weights import has_pretrained_package, read_pretrained_package

__all__ = [
    "OUTPUT_FILES",
    "HyperNetCheckpointer",
    "get_class_names",
    "has_pretrained_package",
    "package_weights",
    "read_pretrained_package",
    "set_class_names",
    "trained_configs",
]
