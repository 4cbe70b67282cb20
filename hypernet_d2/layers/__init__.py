"""The mathematics of HyperNet in plain PyTorch; nothing here imports detectron2."""

from .hyper_feature import HyperFeature
from .hypercolumns import hypercolumn_picture, hypercolumns
from .location_classifiers import LocationClassifiers
from .window_scoring import WindowScorer
from .windows import WindowGrid

__all__ = [
    "HyperFeature",
    "LocationClassifiers",
    "WindowGrid",
    "WindowScorer",
    "hypercolumn_picture",
    "hypercolumns",
]
