"""What detectron2's registries get: importing this package registers all of it."""

from .. import _detectron2  # noqa: F401
from .alexnet import AlexNet, build_alexnet_backbone
from .exportable import ExportableDetector
from .hyper_backbone import HyperBackbone, build_hyper_backbone
from .hypernet_box_head import HyperNetBoxHead
from .hypernet_proposals import HyperNetProposals
from .hypernet_roi_heads import HyperNetROIHeads
from .vgg import VGG, build_vgg_backbone

__all__ = [
    "VGG",
    "AlexNet",
    "ExportableDetector",
    "HyperBackbone",
    "HyperNetBoxHead",
    "HyperNetProposals",
    "HyperNetROIHeads",
    "build_alexnet_backbone",
    "build_hyper_backbone",
    "build_vgg_backbone",
]
