"""Evaluators of proposals and parts, and the plots of their reports."""

from hypernet_d2 import _detectron2  # noqa: F401

# isort: split
from .build import build_evaluator
from .class_mapping import MappedClassesEvaluator, map_classes
from .part_evaluation import PartEvaluator
from .plots import plot_precision, plot_recall
from .proposal_recall import ProposalRecallEvaluator, recall_file

__all__ = [
    "MappedClassesEvaluator",
    "PartEvaluator",
    "ProposalRecallEvaluator",
    "build_evaluator",
    "map_classes",
    "plot_precision",
    "plot_recall",
    "recall_file",
]
