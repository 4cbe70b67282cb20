"""COCO's AP and recall by classes of object size that suit a data set.

COCO's small, medium and large end at 32 and 96 pixels, which says little about a set whose objects
all have 10 to 40. The classes here are quantiles of the set: each has about as many objects as the
others.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

try:
    from detectron2.evaluation.fast_eval_api import COCOeval_opt
except ImportError:  # detectron2 was built without its C++ part for it
    COCOeval_opt = COCOeval

__all__ = ["COCO_SIZES", "AveragePrecision", "evaluate_boxes", "quantile_sizes"]

QUANTILES = 3
MAX_AREA = 1e10  # of COCO's own classes

# Bounds of an object's area in pixels of the stored image, both inclusive.
COCO_SIZES: dict[str, tuple[float, float]] = {
    "small": (0, 32**2),
    "medium": (32**2, 96**2),
    "large": (96**2, MAX_AREA),
}


def quantile_sizes(
    areas: Sequence[float], number: int = QUANTILES
) -> dict[str, tuple[float, float]]:
    """Size classes with about as many objects each.

    Args:
        areas: of the objects, in square pixels of the stored image.
        number: of the classes.

    Returns:
        {"1of3": (smallest, largest area), ...}, the smallest objects first. A bound lies between
        two areas of the set, so that each object is in one class; there are fewer classes where
        many objects have one size, and none without objects.
    """
    values, counts = np.unique(np.asarray(areas, dtype=float), return_counts=True)
    if not len(values):
        return {}
    below = np.cumsum(counts)[:-1] / counts.sum()  # share of the objects up to each gap
    gaps = np.sqrt(values[:-1] * values[1:])
    inner = []
    for i in range(1, number):
        if len(gaps):
            inner.append(gaps[np.abs(below - i / number).argmin()])
    inner = np.unique(inner).tolist()
    bounds = [0.0, *inner, MAX_AREA]
    total = len(bounds) - 1
    return {f"{i + 1}of{total}": (bounds[i], bounds[i + 1]) for i in range(total)}


@dataclass(frozen=True)
class AveragePrecision:
    """Results of COCO's evaluation of boxes, in percent; NaN where there is no ground truth.

    Shapes: T IoU thresholds 0.5 to 0.95, K classes.

    Attributes:
        precision: (T, K), average precision.
        recall: (T, K), largest recall.
    """

    precision: np.ndarray
    recall: np.ndarray

    @property
    def ap(self) -> float:
        """Mean over the IoU thresholds and the classes with ground truth."""
        return _mean(self.precision)

    @property
    def ap50(self) -> float:
        return _mean(self.precision[0])

    @property
    def ap75(self) -> float:
        return _mean(self.precision[5])

    @property
    def ar(self) -> float:
        """Average recall: the mean of the largest recall over IoU thresholds and classes."""
        return _mean(self.recall)

    def of_class(self, label: int) -> AveragePrecision:
        return AveragePrecision(
            self.precision[:, label : label + 1], self.recall[:, label : label + 1]
        )


def evaluate_boxes(
    truth: COCO, detected: COCO, sizes: Mapping[str, tuple[float, float]], max_detections: int
) -> dict[str, AveragePrecision]:
    """COCO's evaluation of boxes by object size, by pycocotools or detectron2's faster version.

    Args:
        truth, detected: ground truth and detections; see ``COCO.loadRes``.
        sizes: {name: (smallest, largest area)} in square pixels.
        max_detections: limit of the detections of a class in an image.

    Returns:
        {"all": ..., and one for each name of ``sizes``}.
    """
    evaluation = COCOeval_opt(truth, detected, "bbox")
    parameters = evaluation.params
    parameters.areaRng = [[0, MAX_AREA], *map(list, sizes.values())]
    parameters.areaRngLbl = ["all", *sizes]
    parameters.maxDets = [max_detections]
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation.evaluate()
        evaluation.accumulate()
    # (T, R, K, A, M) and (T, K, A, M) with R recalls, A areas, M limits; -1 is "no ground truth".
    precision, recall = evaluation.eval["precision"], evaluation.eval["recall"]
    results = {}
    for i, name in enumerate(parameters.areaRngLbl):
        precisions, recalls = precision[:, :, :, i, -1], recall[:, :, i, -1]
        results[name] = AveragePrecision(
            np.where(precisions.max(axis=1) < 0, np.nan, 100 * precisions.mean(axis=1)),
            np.where(recalls < 0, np.nan, 100 * recalls),
        )
    return results


def _mean(values: np.ndarray) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else float("nan")
