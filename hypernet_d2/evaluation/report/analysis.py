"""All figures of one model on one data set."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hypernet_d2.evaluation.size_classes import (
    COCO_SIZES,
    AveragePrecision,
    evaluate_boxes,
    quantile_sizes,
)

from .confusion import confusion_matrix
from .errors import Errors, find_errors, lost_precision
from .evaluated_set import EvaluatedSet
from .matching import Curve, Matches, match, score_curve

__all__ = ["Analysis", "analyze"]

DEFAULT_THRESHOLD = 0.5  # of a class without a right detection


@dataclass(frozen=True)
class Analysis:
    """
    Attributes:
        data, matches: the set, and its detections matched.
        curves: for each class, precision and recall against the score, at IoU 0.5.
        thresholds: for each class the score with the largest F1, None without a right detection.
        kept: (D,) bool, the detections above the threshold of their class.
        errors: those of the detections that are kept.
        ap50, lost: of `lost_precision`, of all detections.
        sizes: the quantiles of the set, see `quantile_sizes`.
        results: COCO's results for "all", for COCO's sizes and for ``sizes``.
        confusion: of the detections that are kept, see `confusion_matrix`.
    """

    data: EvaluatedSet
    matches: Matches
    curves: list[Curve]
    thresholds: list[float | None]
    kept: np.ndarray
    errors: Errors
    ap50: float
    lost: dict[str, float]
    sizes: dict[str, tuple[float, float]]
    results: dict[str, AveragePrecision]
    confusion: np.ndarray

    @property
    def found(self) -> np.ndarray:
        """(G,) bool, the objects that a detection that is kept is matched with."""
        return self.matches.found(len(self.data.areas), self.kept)

    @property
    def wrong(self) -> np.ndarray:
        """(D,) bool, the detections that are kept and matched with no object."""
        return ~np.isin(self.errors.kinds, ("", "ignored"))

    def of_size(self, name: str) -> np.ndarray:
        """(G,) bool, the objects of a size class, crowds excluded."""
        low, high = {**COCO_SIZES, **self.sizes}[name]
        return self.data.objects & (self.data.areas >= low) & (self.data.areas <= high)

    def error_areas(self, kind: str) -> np.ndarray:
        """For each error of a kind the area of its object, or of the detection if it has none."""
        if kind == "missed":
            return self.data.areas[self.errors.missed]
        chosen = self.errors.kinds == kind
        x0, y0, x1, y1 = self.data.boxes[chosen].T
        about = self.errors.about[chosen]
        own = (x1 - x0) * (y1 - y0)
        areas = np.append(self.data.areas, np.nan)  # which index -1 takes
        return np.where(about >= 0, areas[about], own)

    def describe_size(self, name: str) -> str:
        """A size class in words, with its bounds as sides of squares."""
        low, high = {**COCO_SIZES, **self.sizes}[name]
        low, high = low**0.5, high**0.5
        words = {"1of3": "smallest third", "2of3": "middle third", "3of3": "largest third"}
        label = words.get(name, name.replace("of", " of "))
        if low == 0 and high >= 1e5:
            return label
        if low == 0:
            return f"{label} (to {high:.0f} px)"
        if high >= 1e5:
            return f"{label} (from {low:.0f} px)"
        return f"{label} ({low:.0f} to {high:.0f} px)"


def analyze(data: EvaluatedSet, sizes: dict[str, tuple[float, float]] | None = None) -> Analysis:
    """
    Args:
        data: the set and the detections.
        sizes: of another analysis of the same set, instead of quantiles.

    Raises:
        ValueError: the set has no objects.
    """
    if not data.objects.any():
        raise ValueError(f"data set {data.name!r} has no objects to evaluate detections with")
    matches = match(data)
    curves = []
    for label in range(len(data.classes)):
        own = data.of_class(label, matches.ignored)
        right = matches.matched[own] >= 0
        curves.append(score_curve(data.scores[own], right, data.count_objects(label)))
    thresholds = [curve.best_threshold for curve in curves]
    lowest = np.array([DEFAULT_THRESHOLD if t is None else t for t in thresholds])
    kept = data.scores >= lowest[data.labels]
    ap50, lost = lost_precision(data, matches)
    sizes = sizes or quantile_sizes(data.areas[data.objects])
    return Analysis(
        data=data,
        matches=matches,
        curves=curves,
        thresholds=thresholds,
        kept=kept,
        errors=find_errors(data, matches, kept),
        ap50=ap50,
        lost=lost,
        sizes=sizes,
        results=evaluate_boxes(
            data.truth, data.detected, {**COCO_SIZES, **sizes}, data.max_detections
        ),
        confusion=confusion_matrix(data, matches, kept),
    )
