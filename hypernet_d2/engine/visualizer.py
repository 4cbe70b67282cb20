"""Boxes drawn for people: one colour a class, labels of one size, nothing cut off."""

from __future__ import annotations

import math
from collections.abc import Sequence

import matplotlib
import numpy as np
from detectron2.structures import BitMasks, BoxMode, Instances
from detectron2.utils.visualizer import VisImage, Visualizer
from matplotlib.collections import PolyCollection

from hypernet_d2.utils.images import place_label

__all__ = ["BoxVisualizer", "class_colour", "score_colours"]

_LEAST_FONT = 9.0  # points of the drawn picture, at matplotlib's 100 dots an inch
_FONT_PER_SIDE = 1 / 50  # points per pixel of the picture's mean side


def class_colour(label: int, num_classes: int) -> tuple[float, float, float]:
    """Red, green and blue in [0, 1]; the classes are spread evenly over the hues."""
    return matplotlib.colormaps["hsv"](label / max(num_classes, 1))[:3]


def score_colours(scores: np.ndarray) -> np.ndarray:
    """(n, 3), red, green and blue in [0, 1], for (n,) scores in [0, 1]; 1 is the brightest."""
    return matplotlib.colormaps["plasma"](scores)[:, :3]


class BoxVisualizer(Visualizer):
    """`detectron2.utils.visualizer.Visualizer` whose colours tell the classes apart.

    The stock one gives each object a random colour, which in a video flickers, and labels that
    shrink with the object.
    """

    def __init__(self, img_rgb: np.ndarray, metadata=None, scale: float = 1.0):
        """
        Args:
            img_rgb: (H, W, 3), RGB, 0 to 255.
            metadata: of the data set, for ``thing_classes``; without it classes are numbers.
            scale: the drawn picture's side by the image's.
        """
        super().__init__(img_rgb, metadata, scale)
        side = scale * math.sqrt(self.output.height * self.output.width)
        self.font = max(_LEAST_FONT, side * _FONT_PER_SIDE) / scale

    def draw_instance_predictions(self, predictions: Instances) -> VisImage:
        """Boxes with class and score, over masks and keypoints where there are any.

        Args:
            predictions: with ``pred_boxes``, ``pred_classes`` and ``scores``, on the CPU.
        """
        classes = predictions.pred_classes.tolist()
        texts = [
            f"{self.class_name(label)} {score:.0%}"
            for label, score in zip(classes, predictions.scores.tolist(), strict=True)
        ]
        masks = keypoints = None
        if predictions.has("pred_masks"):
            masks = BitMasks(predictions.pred_masks)
        if predictions.has("pred_keypoints"):
            keypoints = predictions.pred_keypoints
        colours = [self.class_colour(label) for label in classes]
        self.overlay_instances(masks=masks, keypoints=keypoints, assigned_colors=colours)
        return self.draw_labelled_boxes(predictions.pred_boxes.tensor.numpy(), texts, colours)

    def draw_dataset_dict(self, dic: dict) -> VisImage:
        """The boxes of a dataset dict, in detectron2's standard form, with their classes."""
        objects = dic.get("annotations", [])
        boxes = [BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS) for a in objects]
        classes = [a["category_id"] for a in objects]
        texts = [
            self.class_name(label) + (" (crowd)" if a.get("iscrowd", 0) else "")
            for label, a in zip(classes, objects, strict=True)
        ]
        return self.draw_labelled_boxes(
            np.asarray(boxes, dtype=float).reshape(-1, 4),
            texts,
            [self.class_colour(label) for label in classes],
        )

    def draw_proposals(
        self, boxes: np.ndarray, scores: np.ndarray, limits: tuple[float, float] = (0.0, 1.0)
    ) -> VisImage:
        """Thin unlabelled boxes, coloured by score, the best on top.

        Args:
            boxes: (n, 4), x0, y0, x1, y1 in pixels of the image.
            scores: (n,).
            limits: the scores that get the first and the last colour.
        """
        order = np.argsort(scores, kind="stable")
        low, high = limits
        shares = (scores[order] - low) / max(high - low, np.finfo(float).tiny)
        x0, y0, x1, y1 = boxes[order].T
        corners = np.stack([[x0, x1, x1, x0], [y0, y0, y1, y1]]).transpose(2, 1, 0)
        self.output.ax.add_collection(
            PolyCollection(corners, facecolors="none", edgecolors=score_colours(shares))
        )
        return self.output

    def draw_labelled_boxes(
        self, boxes: np.ndarray, texts: Sequence[str], colours: Sequence[Sequence[float]]
    ) -> VisImage:
        """Boxes (n, 4), x0, y0, x1, y1 in pixels of the image, each with its text and colour."""
        for box, colour in zip(boxes, colours, strict=True):
            self.draw_box(box, alpha=1.0, edge_color=colour)
        taken: list[tuple[float, float, float, float]] = []
        for box, text in zip(boxes, texts, strict=True):
            self._draw_label(box, text, taken)
        return self.output

    def class_name(self, label: int) -> str:
        names = self.metadata.get("thing_classes", None)
        return str(label) if names is None else names[label]

    def class_colour(self, label: int) -> tuple[float, float, float]:
        names = self.metadata.get("thing_classes", None)
        # Ten hues where the number of classes is not known.
        return class_colour(label % 10, 10) if names is None else class_colour(label, len(names))

    def _draw_label(self, box: np.ndarray, text: str, taken: list) -> None:
        """Always within the picture, and where it hides none of those in `taken`, if it can."""
        self.draw_text(
            text, (0, 0), font_size=self.font, color="white", horizontal_alignment="left"
        )
        label = self.output.ax.texts[-1]
        extent = label.get_window_extent(self.output.canvas.get_renderer())
        pad = 3 / self.output.scale  # of the label's background, and a line's width
        size = tuple(side / self.output.scale + 2 * pad for side in (extent.width, extent.height))
        x, y = place_label(box, size, (self.output.width, self.output.height), taken)
        label.set_position((x + pad, y + pad))
