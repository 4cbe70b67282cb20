from .alexnet import AlexNet, build_alexnet_backbone
from .hyper_backbone import HyperBackbone, build_hyper_backbone
from .timm_backbone import TimmBackbone, build_timm_backbone, build_timm_fpn_backbone
from .vgg import VGG, build_vgg_backbone

__all__ = [
    "VGG",
    "AlexNet",
    "HyperBackbone",
    "TimmBackbone",
    "build_alexnet_backbone",
    "build_hyper_backbone",
    "build_timm_backbone",
    "build_timm_fpn_backbone",
    "build_vgg_backbone",
]
