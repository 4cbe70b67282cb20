"""Pictures of part labels."""

from __future__ import annotations

import matplotlib
import torch
from detectron2.utils.visualizer import VisImage, Visualizer
from torch import Tensor

__all__ = ["draw_parts"]


def draw_parts(visualizer: Visualizer, labels: Tensor, alpha: float = 0.5) -> VisImage:
    """Colour the parts of all objects; a part has one colour throughout.

    Args:
        visualizer: of the image; its metadata has ``part_names``.
        labels: (R, H, W), 0 no part and p + 1 part p, as
            :func:`hypernet_d2.modeling.paste_parts` gives them or a mapper's ``gt_parts``. Objects
            come in the order of their scores: where two overlap the first is drawn.
        alpha: opacity, in [0, 1].
    """
    names = visualizer.metadata.part_names
    colours = matplotlib.colormaps["hsv"]
    shown = torch.zeros(labels.shape[1:], dtype=labels.dtype)
    for one in labels.cpu().flip(0):
        shown = torch.where(one > 0, one, shown)
    for part in range(len(names)):
        visualizer.draw_binary_mask(
            (shown == part + 1).numpy(), color=colours(part / len(names))[:3], alpha=alpha
        )
    return visualizer.output
