"""Evaluators of proposals and parts, cost of models, and pictures of what a model finds."""

from .. import _detectron2  # noqa: F401

# isort: split
from .cost import count_flops, count_parameters
from .part_evaluation import PartEvaluator
from .part_pictures import draw_parts
from .proposal_network import proposal_evaluation_cfg, proposal_network
from .proposal_recall import ProposalRecallEvaluator

__all__ = [
    "PartEvaluator",
    "ProposalRecallEvaluator",
    "count_flops",
    "count_parameters",
    "draw_parts",
    "proposal_evaluation_cfg",
    "proposal_network",
]
