from .hypernet_proposals import HyperNetProposals
from .proposal_network import proposal_evaluation_cfg, proposal_network

__all__ = ["HyperNetProposals", "proposal_evaluation_cfg", "proposal_network"]
