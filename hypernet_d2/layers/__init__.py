"""The mathematics of HyperNet in plain PyTorch; nothing here imports detectron2."""

from .hyper_feature import HyperFeature
from .window_scoring import WindowScorer
from .windows import WindowGrid

__all__ = ["HyperFeature", "WindowGrid", "WindowScorer"]
