"""Recall of proposals, cost of models, and plots of both."""

from .. import _detectron2  # noqa: F401
from .proposal_network import proposal_evaluation_cfg, proposal_network
from .proposal_recall import ProposalRecallEvaluator

__all__ = ["ProposalRecallEvaluator", "proposal_evaluation_cfg", "proposal_network"]
