"""What a detector proposes, with the detector's own weights."""

from __future__ import annotations

from detectron2.config import CfgNode
from detectron2.modeling import GeneralizedRCNN, ProposalNetwork
from torch import nn

__all__ = ["MAX_PROPOSALS", "proposal_evaluation_cfg", "proposal_network"]

MAX_PROPOSALS = 1000
# That of the stock C4 configs, which ask for 1000 proposals too.
PRE_NMS_TOPK = 6000


def proposal_evaluation_cfg(cfg: CfgNode) -> CfgNode:
    """``cfg`` for a model that proposes up to 1000 regions an image; ``cfg`` is not changed.

    The longer list begins with the proposals that the detector sees, in the same order: more
    candidates on one map enter the greedy suppression behind those that entered before. On several
    maps they would mix with the other maps' (the number counts for each map), so that
    ``PRE_NMS_TOPK_TEST`` stays as it is there.
    """
    cfg = cfg.clone()
    cfg.defrost()
    rpn = cfg.MODEL.RPN
    rpn.POST_NMS_TOPK_TEST = max(rpn.POST_NMS_TOPK_TEST, MAX_PROPOSALS)
    if len(rpn.IN_FEATURES) == 1:
        rpn.PRE_NMS_TOPK_TEST = max(rpn.PRE_NMS_TOPK_TEST, PRE_NMS_TOPK)
    cfg.freeze()
    return cfg


def proposal_network(model: nn.Module) -> ProposalNetwork:
    """The backbone and the proposal generator of a detector, as the stock ProposalNetwork.

    Raises:
        ValueError: if the model does not propose regions by itself.
    """
    if isinstance(model, ProposalNetwork):
        return model
    if not isinstance(model, GeneralizedRCNN) or model.proposal_generator is None:
        raise ValueError(
            f"a {type(model).__name__} without a proposal generator proposes no regions; expected "
            "MODEL.META_ARCHITECTURE 'GeneralizedRCNN' or 'ProposalNetwork', and another "
            "MODEL.PROPOSAL_GENERATOR.NAME than 'PrecomputedProposals'"
        )
    network = ProposalNetwork(
        backbone=model.backbone,
        proposal_generator=model.proposal_generator,
        pixel_mean=model.pixel_mean.flatten().tolist(),
        pixel_std=model.pixel_std.flatten().tolist(),
    )
    return network.to(model.device).train(model.training)
