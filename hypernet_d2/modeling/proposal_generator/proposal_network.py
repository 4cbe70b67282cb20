"""The proposals of a detector alone, for the evaluation of their recall."""

from __future__ import annotations

from detectron2.config import CfgNode
from detectron2.modeling import GeneralizedRCNN, ProposalNetwork
from torch import nn

__all__ = ["MAX_PROPOSALS", "proposal_evaluation_cfg", "proposal_network"]

MAX_PROPOSALS = 1000
PRE_NMS_TOPK = 6000  # as in the stock C4 configs, which have 1000 proposals too


def proposal_evaluation_cfg(cfg: CfgNode) -> CfgNode:
    """A copy of ``cfg`` for a model that proposes up to 1000 regions per image.

    The list of proposals starts with those that the detector gets, in the same order: with one
    feature map, additional candidates enter the greedy NMS after the others. With several feature
    maps they would enter between those of other maps, so ``PRE_NMS_TOPK_TEST`` is not changed.
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
    """The backbone and the proposal generator of a detector as a stock ProposalNetwork.

    Raises:
        ValueError: if the model has no proposal generator.
    """
    if isinstance(model, ProposalNetwork):
        return model
    if not isinstance(model, GeneralizedRCNN) or model.proposal_generator is None:
        raise ValueError(
            f"the model, a {type(model).__name__}, has no proposal generator: expected "
            "MODEL.META_ARCHITECTURE 'GeneralizedRCNN' or 'ProposalNetwork', and a "
            "MODEL.PROPOSAL_GENERATOR.NAME other than 'PrecomputedProposals'"
        )
    network = ProposalNetwork(
        backbone=model.backbone,
        proposal_generator=model.proposal_generator,
        pixel_mean=model.pixel_mean.flatten().tolist(),
        pixel_std=model.pixel_std.flatten().tolist(),
    )
    return network.to(model.device).train(model.training)
