"""detectron2's Visualizer with a color for each class and labels that can be read."""

from __future__ import annotations

import math
from collections.abc import Iterable

import matplotlib
import numpy as np
from detectron2.data import Metadata
from detectron2.utils.colormap import colormap
from detectron2.utils.visualizer import ColorMode, VisImage, Visualizer
from matplotlib.collections import PolyCollection

from hypernet_d2.utils.drawing import place_label

__all__ = ["BoxVisualizer", "distinct_colors", "score_colors"]

_MIN_FONT = 9.0  # points of the drawn picture, at matplotlib's 100 dots an inch
_FONT_PER_SIDE = 1 / 50  # points per pixel of the picture's mean side
_MAX_UNNAMED_CLASSES = 1000  # of a data set without class names


def score_colors(scores: np.ndarray) -> np.ndarray:
    """(n, 3), red, green and blue in [0, 1], for (n,) scores in [0, 1]; 1 is the brightest."""
    return matplotlib.colormaps["plasma"](scores)[:, :3]


def distinct_colors(numbers: Iterable[int]) -> list[list[int]]:
    """Red, green and blue, 0 to 255, for each number; equal numbers have equal colors."""
    # Without the dark and the gray colors, which cannot be seen in many photographs.
    palette = [c.astype(int).tolist() for c in colormap(rgb=True) if c.max() > 127 < np.ptp(c)]
    return [palette[number % len(palette)] for number in numbers]


def _with_thing_colors(metadata: Metadata) -> Metadata:
    """A copy in which every class has a color, for ``ColorMode.SEGMENTATION``."""
    if metadata.get("thing_colors") is not None:
        return metadata
    count = len(metadata.get("thing_classes") or ()) or _MAX_UNNAMED_CLASSES
    return Metadata(**metadata.as_dict()).set(thing_colors=distinct_colors(range(count)))


class BoxVisualizer(Visualizer):
    """`detectron2.utils.visualizer.Visualizer` in ``ColorMode.SEGMENTATION``, for small objects.

    The stock labels shrink with the object, cover each other, and are cut off at the image's
    border; here they have one size, lie within the image, and apart where there is room. The stock
    color of a class varies at random from object to object, which flickers in a video.
    """

    def __init__(self, img_rgb: np.ndarray, metadata: Metadata | None = None, scale: float = 1.0):
        """
        Args:
            img_rgb: (H, W, 3), RGB, 0 to 255.
            metadata: of the data set, for ``thing_classes``; without it classes are numbers.
            scale: side of the drawn picture divided by the image's.
        """
        metadata = _with_thing_colors(metadata or Metadata())
        super().__init__(img_rgb, metadata, scale, ColorMode.SEGMENTATION)
        side = scale * math.sqrt(self.output.height * self.output.width)
        self._label_font = max(_MIN_FONT, side * _FONT_PER_SIDE) / scale

    def class_color(self, label: int) -> tuple[float, ...]:
        """Red, green and blue in [0, 1]."""
        return tuple(value / 255 for value in self.metadata.thing_colors[label])

    def _jitter(self, color):
        return tuple(color)

    def draw_box(self, box_coord, alpha=1.0, edge_color="g", line_style="-") -> VisImage:
        return super().draw_box(box_coord, alpha, edge_color, line_style)

    def overlay_instances(self, *, boxes=None, labels=None, **kwargs) -> VisImage:
        """As the stock method, with the labels described above."""
        super().overlay_instances(boxes=boxes, **kwargs)
        if boxes is None or labels is None:
            return self.output
        taken: list[tuple[float, float, float, float]] = []
        for box, text in zip(self._convert_boxes(boxes), labels, strict=True):
            self._draw_label(box, text, taken)
        return self.output

    def _draw_label(self, box: np.ndarray, text: str, taken: list) -> None:
        """Draw a label at a place that hides none of those in `taken`, if there is one."""
        self.draw_text(
            text, (0, 0), font_size=self._label_font, color="white", horizontal_alignment="left"
        )
        label = self.output.ax.texts[-1]
        extent = label.get_window_extent(self.output.canvas.get_renderer())
        pad = 3 / self.output.scale  # of the label's background, and a line's width
        size = tuple(side / self.output.scale + 2 * pad for side in (extent.width, extent.height))
        x, y = place_label(box, size, (self.output.width, self.output.height), taken)
        label.set_position((x + pad, y + pad))

    def draw_proposals(
        self, boxes: np.ndarray, scores: np.ndarray, limits: tuple[float, float] = (0.0, 1.0)
    ) -> VisImage:
        """Draw thin boxes without labels, colored by score, the best on top.

        Args:
            boxes: (n, 4), x0, y0, x1, y1 in pixels of the image.
            scores: (n,).
            limits: the scores that get the first and the last color.
        """
        order = np.argsort(scores, kind="stable")
        low, high = limits
        shares = (scores[order] - low) / max(high - low, np.finfo(float).tiny)
        x0, y0, x1, y1 = boxes[order].T
        corners = np.stack([[x0, x1, x1, x0], [y0, y0, y1, y1]]).transpose(2, 1, 0)
        self.output.ax.add_collection(
            PolyCollection(corners, facecolors="none", edgecolors=score_colors(shares))
        )
        return self.output
