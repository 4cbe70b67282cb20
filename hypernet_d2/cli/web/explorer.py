"""Choosing and drawing images by their detections and errors.

Shapes: D detections, G objects of the ground truth.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hypernet_d2.evaluation.report.errors import KINDS, Errors, find_errors
from hypernet_d2.evaluation.report.evaluated_set import EvaluatedSet
from hypernet_d2.evaluation.report.matching import match
from hypernet_d2.evaluation.size_classes import COCO_SIZES, quantile_sizes
from hypernet_d2.utils.drawing import draw_detections, make_sheet
from hypernet_d2.utils.images import read_image, resize

__all__ = ["ANY", "RIGHT", "Choice", "Explorer", "Filters"]

ANY, RIGHT = "any", "right"
SIZES = ("small", "medium", "large")
COLORS = {  # red, green, blue
    RIGHT: (70, 220, 70),
    "classification": (230, 120, 255),
    "localization": (255, 190, 0),
    "both": (255, 120, 40),
    "duplicate": (0, 220, 240),
    "background": (90, 150, 255),
    "missed": (255, 60, 60),
}
FADED = (150, 150, 150)  # what the filters leave out
DETAIL_SIDE, THUMBNAIL_SIDE = 1200, 360  # pixels of the long side
MAX_LABELS = 40  # of a picture


@dataclass(frozen=True)
class Filters:
    """
    Attributes:
        threshold: least score of a detection; below it a detection does not exist.
        most: largest score.
        classes: names; empty for all.
        size: a key of ``Explorer.sizes``.
        kind: `ANY`, `RIGHT` or one of `KINDS`.
    """

    threshold: float = 0.5
    most: float = 1.0
    classes: tuple[str, ...] = ()
    size: str = ANY
    kind: str = ANY

    @property
    def narrow(self) -> bool:
        """Whether they leave anything out but low scores."""
        return bool(self.classes) or self.most < 1 or self.size != ANY or self.kind != ANY


@dataclass(frozen=True)
class Choice:
    """What filters choose.

    Attributes:
        errors: at the threshold.
        detections: (D,) bool.
        objects: (G,) bool.
        images: indices of the images to show, in order.
    """

    errors: Errors
    detections: np.ndarray
    objects: np.ndarray
    images: list[int]


class Explorer:
    """The images of a set with its detections.

    Attributes:
        data: the set.
        labeled: whether it has ground truth.
        sizes: {name: (least, largest area in square pixels)}; thirds of the objects, or COCO's
            sizes without objects.
        size_labels: {name: the same in words}.
        kinds: names for a filter, those that there can be.
    """

    def __init__(self, data: EvaluatedSet, labeled: bool):
        self.data, self.labeled = data, labeled
        self._matches = match(data)
        x0, y0, x1, y1 = data.boxes.T
        self._areas = (x1 - x0) * (y1 - y0)
        self.sizes, self.size_labels = {ANY: (0.0, np.inf)}, {ANY: ANY}
        bounds = list((quantile_sizes(data.areas[data.objects]) or COCO_SIZES).values())
        names = SIZES if len(bounds) > 2 else (SIZES[0], SIZES[-1])
        for i, ((low, high), name) in enumerate(zip(bounds, names, strict=False)):
            # The first and the last also take detections beyond the objects' sizes.
            low, high = low if i else 0.0, high if i + 1 < len(bounds) else np.inf
            self.sizes[name] = (low, high)
            words = [f"from {low**0.5:.0f}"] if i else []
            words += [f"to {high**0.5:.0f}"] if high < np.inf else []
            self.size_labels[name] = f"{name}, side {' '.join(words) or 'of all'} pixels"
        self.kinds = [ANY, RIGHT, *KINDS] if labeled else [ANY]

    def choose(self, filters: Filters, worst_first: bool = True) -> Choice:
        """
        Args:
            filters: what to look for.
            worst_first: whether images with more of what is looked for come first (without filters:
                with more errors), instead of in the order of the set.

        Returns:
            All images without filters, otherwise those with a detection or object that all filters
            choose.
        """
        data = self.data
        kept = data.scores >= filters.threshold
        errors = find_errors(data, self._matches, kept)
        kinds = np.where(errors.kinds == "", RIGHT, errors.kinds)
        detections = kept & (data.scores <= filters.most)
        detections &= self._fits(filters, data.labels, self._areas)
        objects = data.objects & self._fits(filters, data.object_labels, data.areas)
        if filters.most < 1:  # objects have no score
            objects[:] = False
        if filters.kind != ANY:
            detections &= kinds == filters.kind
            objects &= self._object_kinds(errors) == filters.kind
        count = len(data.images)
        wrong = kept & ~np.isin(kinds, (RIGHT, "ignored")) if self.labeled else kept
        if filters.narrow:
            number = np.bincount(data.image_of[detections], minlength=count)
            number = number + np.bincount(data.object_image[objects], minlength=count)
            shown = number > 0
        else:
            number = np.bincount(data.image_of[wrong], minlength=count)
            number = number + np.bincount(data.object_image[errors.missed], minlength=count)
            shown = np.ones(count, dtype=bool)
        order = np.argsort(-number, kind="stable") if worst_first else np.arange(count)
        return Choice(errors, detections, objects, [int(i) for i in order if shown[i]])

    def _fits(self, filters: Filters, labels: np.ndarray, areas: np.ndarray) -> np.ndarray:
        fits = np.ones(len(labels), dtype=bool)
        if filters.classes:
            numbers = [self.data.classes.index(name) for name in filters.classes]
            fits &= np.isin(labels, numbers)
        low, high = self.sizes[filters.size]
        return fits & (areas >= low) & (areas <= high)

    def summary(self, filters: Filters, choice: Choice) -> str:
        """Counts of the whole set at the threshold, and of what is chosen; Markdown."""
        data, errors = self.data, choice.errors
        kept = data.scores >= filters.threshold
        text = f"{data.name}: **{len(choice.images)}** of {len(data.images)} images"
        if filters.narrow:
            text += f". The filters choose detections: **{int(choice.detections.sum())}**"
            if self.labeled:
                text += f", objects: **{int(choice.objects.sum())}**"
        if not self.labeled:
            return f"{text}. Detections at this threshold: **{int(kept.sum())}**. No ground truth."
        right = int((errors.kinds == "").sum())
        objects = int(data.objects.sum())
        counts = [f"{kind} {errors.count(kind)}" for kind in KINDS if errors.count(kind)]
        return (
            f"{text}. At this threshold: precision **{_percent(right, int(kept.sum()))}**, recall "
            f"**{_percent(right, objects)}** ({right} of {objects} objects). Errors: "
            f"{', '.join(counts) or 'none'}."
        )

    def caption(self, image: int, choice: Choice) -> str:
        """The file's name and the numbers of its detections and errors."""
        data, errors = self.data, choice.errors
        name = Path(data.images[image]["file_name"]).name
        kinds = errors.kinds[data.image_of == image]
        found = int((kinds != "ignored").sum())
        if not self.labeled:
            return f"{name}: {found} detections"
        wrong = int((~np.isin(kinds, ("", "ignored"))).sum())
        missed = int(errors.missed[data.object_image == image].sum())
        return f"{name}: {found - wrong} right, {wrong} wrong, {missed} missed"

    def thumbnail(self, image: int, choice: Choice) -> np.ndarray:
        """Detections and missed objects on a small picture (H, W, 3), RGB."""
        picture, scale = self._picture(image, THUMBNAIL_SIDE)
        boxes, colors, _ = self._detections(image, choice)
        missed = np.flatnonzero(choice.errors.missed & (self.data.object_image == image))
        boxes = np.concatenate([boxes, self.data.object_boxes[missed]])
        colors += [COLORS["missed"] if choice.objects[i] else FADED for i in missed]
        return draw_detections(picture, scale * boxes, [""] * len(boxes), colors)

    def detail(self, image: int, choice: Choice) -> np.ndarray:
        """Ground truth beside detections (H, W, 3), RGB; detections alone without ground truth."""
        data = self.data
        picture, scale = self._picture(image, DETAIL_SIDE)
        boxes, colors, labels = self._detections(image, choice)
        detections = draw_detections(picture, scale * boxes, labels, colors)
        if not self.labeled:
            return detections
        objects = np.flatnonzero(data.objects & (data.object_image == image))
        kinds = self._object_kinds(choice.errors)
        objects = objects[np.argsort(kinds[objects] == RIGHT, kind="stable")]
        labels = [data.classes[label] for label in data.object_labels[objects]]
        colors = [COLORS[kinds[i]] if choice.objects[i] else FADED for i in objects]
        truth = draw_detections(picture, scale * data.object_boxes[objects], _first(labels), colors)
        titles = [f"ground truth: {len(objects)} objects", f"detections: {len(boxes)}"]
        return make_sheet([truth, detections], titles, columns=1 if _is_wide(picture) else 2)

    def _object_kinds(self, errors: Errors) -> np.ndarray:
        """(G,): `RIGHT`, "missed", or the kind of the error that is about the object."""
        kinds = np.full(len(self.data.areas), RIGHT, dtype=object)
        wrong = np.isin(errors.kinds, ("classification", "localization"))
        kinds[errors.about[wrong]] = errors.kinds[wrong]
        kinds[errors.about[errors.kinds == ""]] = RIGHT
        kinds[errors.missed] = "missed"
        return kinds

    def _detections(
        self, image: int, choice: Choice
    ) -> tuple[np.ndarray, list[int | tuple[int, int, int]], list[str]]:
        """Boxes, colors and labels of the detections, those that are chosen first.

        Without ground truth the color is the class's.
        """
        data, kinds = self.data, choice.errors.kinds
        shown = np.flatnonzero((data.image_of == image) & (kinds != "ignored"))
        shown = shown[np.argsort(~choice.detections[shown], kind="stable")]
        colors, labels = [], []
        for i in shown:
            kind = (kinds[i] or RIGHT) if self.labeled else ANY
            color = COLORS[kind] if self.labeled else int(data.labels[i])
            colors.append(color if choice.detections[i] else FADED)
            label = f"{data.classes[data.labels[i]]} {data.scores[i]:.2f}"
            labels.append(label if kind in (RIGHT, ANY) else f"{label} {kind}")
        return data.boxes[shown], colors, _first(labels)

    @functools.lru_cache(maxsize=64)  # noqa: B019 - an explorer lives as long as the page
    def _picture(self, image: int, side: int) -> tuple[np.ndarray, float]:
        """The image, (H, W, 3), RGB, with a long side of at most ``side``, and its scale.

        An image that can no longer be read is gray.
        """
        stated = self.data.images[image]
        try:
            pixels = read_image(stated["file_name"])[:, :, ::-1]
        except (OSError, ValueError):
            pixels = np.full((stated["height"], stated["width"], 3), 90, np.uint8)
        scale = side / max(pixels.shape[:2])
        size = tuple(max(1, round(scale * n)) for n in pixels.shape[:2])
        return resize(pixels, size), scale


def _first(labels: list[str]) -> list[str]:
    """The labels, those after the first `MAX_LABELS` empty."""
    return [label if i < MAX_LABELS else "" for i, label in enumerate(labels)]


def _is_wide(picture: np.ndarray) -> bool:
    return picture.shape[1] > 2 * picture.shape[0]


def _percent(part: int, whole: int) -> str:
    return f"{part / whole:.0%}" if whole else "–"
