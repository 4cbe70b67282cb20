"""Evaluators of proposals and parts, cost of models, and pictures of what a model finds."""

from .. import _detectron2  # noqa: F401

# isort: split
from .cost import count_flops, count_parameters
from .part_evaluation import PartEvaluator
from .part_pictures import draw_parts
from .plots import plot_precision, plot_recall
from .proposal_network import proposal_evaluation_cfg, proposal_network
from .proposal_recall import ProposalRecallEvaluator, recall_file

__all__ = [
    "PartEvaluator",
    "ProposalRecallEvaluator",
    "count_flops",
    "count_parameters",
    "draw_parts",
    "plot_precision",
    "plot_recall",
    "proposal_evaluation_cfg",
    "proposal_network",
    "recall_file",
]
