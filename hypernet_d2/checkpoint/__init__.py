"""Reading and writing weights."""

from hypernet_d2 import _detectron2  # noqa: F401

from .checkpointer import HyperNetCheckpointer

__all__ = ["HyperNetCheckpointer"]
