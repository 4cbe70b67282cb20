"""Backbones, the proposal generator and the heads. Importing this package registers them."""

from hypernet_d2 import _detectron2  # noqa: F401

from .backbone import (
    VGG,
    AlexNet,
    HyperBackbone,
    TimmBackbone,
    build_alexnet_backbone,
    build_hyper_backbone,
    build_timm_backbone,
    build_timm_fpn_backbone,
    build_vgg_backbone,
)
from .proposal_generator import HyperNetProposals
from .roi_heads import (
    HypercolumnKeypointHead,
    HypercolumnMaskHead,
    HypercolumnPartHead,
    HypercolumnPredictor,
    HyperNetBoxHead,
    HyperNetROIHeads,
    paste_parts,
)

__all__ = [
    "VGG",
    "AlexNet",
    "HyperBackbone",
    "HypercolumnKeypointHead",
    "HypercolumnMaskHead",
    "HypercolumnPartHead",
    "HypercolumnPredictor",
    "TimmBackbone",
    "HyperNetBoxHead",
    "HyperNetProposals",
    "HyperNetROIHeads",
    "build_alexnet_backbone",
    "build_hyper_backbone",
    "build_timm_backbone",
    "build_timm_fpn_backbone",
    "build_vgg_backbone",
    "paste_parts",
]
