"""Matching of detections with ground truth, precision, recall and F1 against the score.

Shapes: D detections, G objects, K classes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from pycocotools import mask as mask_utils

from .evaluated_set import EvaluatedSet

__all__ = ["FOREGROUND_IOU", "Curve", "Matches", "average_precision", "match", "score_curve"]

FOREGROUND_IOU = 0.5
_RECALLS = np.linspace(0, 1, 101)  # at which COCO reads the precision


@dataclass(frozen=True)
class Matches:
    """Each detection and the objects that it overlaps; -1 stands for no object.

    Attributes:
        matched: (D,), the object of its class that a detection is matched with, at an IoU of at
            least `FOREGROUND_IOU`, as COCO matches: the best-scored detection first, each with the
            object of the largest IoU that is still free.
        ignored: (D,) bool, detections without a match that lie on a crowd of their class.
        same, same_iou: (D,), the object of the detection's class with the largest IoU, and the IoU.
        other, other_iou: (D,), the same for objects of other classes.
    """

    matched: np.ndarray
    ignored: np.ndarray
    same: np.ndarray
    same_iou: np.ndarray
    other: np.ndarray
    other_iou: np.ndarray

    def found(self, count: int, kept: np.ndarray | None = None) -> np.ndarray:
        """(G,) bool, whether a detection, of those ``kept`` (D,), is matched with each object."""
        matched = self.matched if kept is None else self.matched[kept]
        found = np.zeros(count, dtype=bool)
        found[matched[matched >= 0]] = True
        return found


def match(data: EvaluatedSet) -> Matches:
    """Match all detections of a set, see `Matches`."""
    count = len(data.scores)
    matched = np.full(count, -1)
    ignored = np.zeros(count, dtype=bool)
    same, other = np.full(count, -1), np.full(count, -1)
    same_iou, other_iou = np.zeros(count), np.zeros(count)
    for detections, objects in _by_image(data):
        crowd = data.crowd[objects]
        overlaps = box_iou(data.boxes[detections], data.object_boxes[objects], crowd)
        equal = data.labels[detections][:, None] == data.object_labels[objects]
        for allowed, index, value in ((equal, same, same_iou), (~equal, other, other_iou)):
            among = np.where(allowed & ~crowd, overlaps, 0)
            if among.shape[1]:
                best = among.argmax(axis=1)
                value[detections] = among[np.arange(len(best)), best]
                index[detections] = np.where(value[detections] > 0, objects[best], -1)
        free = np.where(equal & ~crowd, overlaps, 0)
        on_crowd = np.where(equal & crowd, overlaps, 0).max(axis=1, initial=0)
        for row, i in enumerate(detections):  # best first
            best = free[row].argmax() if free.shape[1] else -1
            if best >= 0 and free[row, best] >= FOREGROUND_IOU:
                matched[i] = objects[best]
                free[:, best] = 0
            else:
                ignored[i] = on_crowd[row] >= FOREGROUND_IOU
    return Matches(matched, ignored, same, same_iou, other, other_iou)


def _by_image(data: EvaluatedSet) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The indices of the detections, in their order, and of the objects of each image."""
    images = range(len(data.images))
    detections = _groups(data.image_of, len(images))
    objects = _groups(data.object_image, len(images))
    for image in images:
        if len(detections[image]):
            yield detections[image], objects[image]


def _groups(image_of: np.ndarray, count: int) -> list[np.ndarray]:
    order = np.argsort(image_of, kind="stable")
    return np.split(order, np.searchsorted(image_of[order], np.arange(1, count)))


def box_iou(boxes: np.ndarray, objects: np.ndarray, crowd: np.ndarray) -> np.ndarray:
    """(D, G), IoU of boxes x0, y0, x1, y1; with a crowd the share of the detection within it."""
    if not len(boxes) or not len(objects):
        return np.zeros((len(boxes), len(objects)))
    xywh = [np.hstack([b[:, :2], b[:, 2:] - b[:, :2]]) for b in (boxes, objects)]
    return np.asarray(mask_utils.iou(*xywh, crowd.astype(np.uint8)))


@dataclass(frozen=True)
class Curve:
    """Precision and recall of the detections of a class above each score, for n scores.

    Attributes:
        scores: (n,), descending.
        precision, recall: (n,), in [0, 1].
        objects: number of objects of the class.
    """

    scores: np.ndarray
    precision: np.ndarray
    recall: np.ndarray
    objects: int

    @property
    def f1(self) -> np.ndarray:
        """(n,), in [0, 1]."""
        total = self.precision + self.recall
        return np.divide(
            2 * self.precision * self.recall, total, np.zeros_like(total), where=total > 0
        )

    @property
    def best_threshold(self) -> float | None:
        """The score with the largest F1; None if no detection is right.

        It lies halfway between the last detection that is kept and the first one that is not.
        """
        f1 = self.f1
        if not f1.size or f1.max() == 0:
            return None
        best = int(np.flatnonzero(f1 == f1.max())[-1])
        below = self.scores[best + 1] if best + 1 < len(self.scores) else self.scores[best]
        return float(self.scores[best] + below) / 2


def score_curve(scores: np.ndarray, right: np.ndarray, objects: int) -> Curve:
    """
    Args:
        scores: (D,) of the detections of a class.
        right: (D,) bool, whether each is matched.
        objects: number of objects of the class.
    """
    order = np.argsort(-scores, kind="stable")
    scores, hits = scores[order], np.cumsum(right[order])
    # One point for each score: detections with equal scores are kept or dropped together.
    last = np.append(np.flatnonzero(np.diff(scores)), len(scores) - 1) if len(scores) else []
    last = np.asarray(last, dtype=int)
    recall = hits[last] / objects if objects else np.zeros(len(last))
    return Curve(scores[last], hits[last] / (last + 1), recall, objects)


def average_precision(scores: np.ndarray, right: np.ndarray, objects: int) -> float:
    """COCO's average precision of a class at one IoU, in [0, 1]; NaN without objects.

    Arguments as for `score_curve`; detections with equal scores count in their order.
    """
    if not objects:
        return float("nan")
    hits = np.cumsum(right[np.argsort(-scores, kind="stable")])
    precision = hits / np.arange(1, len(hits) + 1)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    at = np.searchsorted(hits / objects, _RECALLS, side="left")
    return float(np.append(envelope, 0)[np.minimum(at, len(envelope))].mean())
