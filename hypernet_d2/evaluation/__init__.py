"""Recall of proposals, cost of models, and plots of both."""

from .. import _detectron2  # noqa: F401
from .cost import count_flops, count_parameters
from .plots import plot_precision, plot_recall
from .proposal_network import proposal_evaluation_cfg, proposal_network
from .proposal_recall import ProposalRecallEvaluator, recall_file

__all__ = [
    "ProposalRecallEvaluator",
    "count_flops",
    "count_parameters",
    "plot_precision",
    "plot_recall",
    "proposal_evaluation_cfg",
    "proposal_network",
    "recall_file",
]
