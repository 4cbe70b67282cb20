"""What detectron2's registries get: importing this package registers all of it."""

from .. import _detectron2  # noqa: F401
from .alexnet import AlexNet, build_alexnet_backbone
from .exportable import ExportableDetector
from .hyper_backbone import HyperBackbone, build_hyper_backbone
from .hypercolumn_keypoint_head import HypercolumnKeypointHead
from .hypercolumn_mask_head import HypercolumnMaskHead
from .hypercolumn_part_head import HypercolumnPartHead, paste_parts
from .hypercolumn_predictor import HypercolumnPredictor
from .hypernet_box_head import HyperNetBoxHead
from .hypernet_proposals import HyperNetProposals
from .hypernet_roi_heads import HyperNetROIHeads
from .vgg import VGG, build_vgg_backbone

__all__ = [
    "VGG",
    "AlexNet",
    "ExportableDetector",
    "HyperBackbone",
    "HypercolumnKeypointHead",
    "HypercolumnMaskHead",
    "HypercolumnPartHead",
    "HypercolumnPredictor",
    "HyperNetBoxHead",
    "HyperNetProposals",
    "HyperNetROIHeads",
    "build_alexnet_backbone",
    "build_hyper_backbone",
    "build_vgg_backbone",
    "paste_parts",
]
