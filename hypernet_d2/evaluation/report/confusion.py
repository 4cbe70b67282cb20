"""Confusion matrix of a detector."""

from __future__ import annotations

import numpy as np

from .evaluated_set import EvaluatedSet
from .matching import FOREGROUND_IOU, Matches, box_iou

__all__ = ["confusion_matrix"]


def confusion_matrix(data: EvaluatedSet, matches: Matches, kept: np.ndarray) -> np.ndarray:
    """Which class the objects of each class are detected as.

    Each object and each detection counts once: first those that are matched with their own class,
    see `Matches`; then, of those left over, pairs of different classes with an IoU of at least 0.5,
    the largest IoU first. An object without a detection is in the last column, a detection without
    an object in the last row.

    Args:
        data: the set, with K classes.
        matches: of its detections.
        kept: (D,) bool, the detections that count.

    Returns:
        (K + 1, K + 1) int: rows are the classes of the objects and then the background, columns
        those of the detections and then "not found".
    """
    count = len(data.classes)
    matrix = np.zeros((count + 1, count + 1), dtype=int)
    right = kept & (matches.matched >= 0)
    np.add.at(matrix, (data.labels[right], data.labels[right]), 1)
    free_object = data.objects & ~matches.found(len(data.areas), kept)
    free_detection = kept & ~right & ~matches.ignored
    for image in np.unique(data.image_of[free_detection]):
        detections = np.flatnonzero(free_detection & (data.image_of == image))
        objects = np.flatnonzero(free_object & (data.object_image == image))
        overlaps = box_iou(
            data.boxes[detections], data.object_boxes[objects], np.zeros(len(objects))
        )
        rows, columns = np.nonzero(overlaps >= FOREGROUND_IOU)
        order = np.argsort(-overlaps[rows, columns], kind="stable")
        for row, column in zip(rows[order], columns[order], strict=True):
            i, j = detections[row], objects[column]
            if free_detection[i] and free_object[j]:
                free_detection[i] = free_object[j] = False
                matrix[data.object_labels[j], data.labels[i]] += 1
    np.add.at(matrix, (data.object_labels[free_object], count), 1)
    np.add.at(matrix, (count, data.labels[free_detection]), 1)
    return matrix
