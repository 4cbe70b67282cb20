"""Evaluators and pictures of what a model finds."""

from .. import _detectron2  # noqa: F401

# isort: split
from .part_evaluation import PartEvaluator
from .part_pictures import draw_parts

__all__ = ["PartEvaluator", "draw_parts"]
