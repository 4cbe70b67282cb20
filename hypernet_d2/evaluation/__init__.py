"""Recall of proposals, cost of models, and plots of both."""

from .. import _detectron2  # noqa: F401
from .cost import count_flops, count_parameters
from .proposal_network import proposal_evaluation_cfg, proposal_network
from .proposal_recall import ProposalRecallEvaluator

__all__ = [
    "ProposalRecallEvaluator",
    "count_flops",
    "count_parameters",
    "proposal_evaluation_cfg",
    "proposal_network",
]
