from .alexnet import AlexNet, build_alexnet_backbone
from .hyper_backbone import HyperBackbone, build_hyper_backbone
from .vgg import VGG, build_vgg_backbone

__all__ = [
    "VGG",
    "AlexNet",
    "HyperBackbone",
    "build_alexnet_backbone",
    "build_hyper_backbone",
    "build_vgg_backbone",
]
