"""Drawing of part labels."""

from __future__ import annotations

import matplotlib
import torch
from detectron2.utils.visualizer import VisImage, Visualizer
from torch import Tensor

__all__ = ["draw_parts"]


def draw_parts(visualizer: Visualizer, labels: Tensor, alpha: float = 0.5) -> VisImage:
    """Draw the part labels of all objects, with one color per part.

    Args:
        visualizer: a visualizer of the image, whose metadata has ``part_names``.
        labels: (R, H, W): 0 is no part, p + 1 is part p; from
            :func:`hypernet_d2.modeling.paste_parts`, or ``gt_parts`` of the mapper. Where objects
            overlap, the first is drawn.
        alpha: opacity, in [0, 1].
    """
    names = visualizer.metadata.part_names
    colormap = matplotlib.colormaps["hsv"]
    merged = torch.zeros(labels.shape[1:], dtype=labels.dtype)
    for label in labels.cpu().flip(0):
        merged = torch.where(label > 0, label, merged)
    for part in range(len(names)):
        visualizer.draw_binary_mask(
            (merged == part + 1).numpy(), color=colormap(part / len(names))[:3], alpha=alpha
        )
    return visualizer.output
