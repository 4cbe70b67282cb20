"""Kinds of errors of a detector, after TIDE (Bolya et al., ECCV 2020, section 2.2).

A detection is wrong if it is matched with no object. With IoU thresholds of 0.5 (foreground) and
0.1 (background) its kind is the first of these that applies, in the order of TIDE's program:

- localization: its IoU with an object of its class is 0.1 to 0.5;
- classification: its IoU with an object of another class is 0.5 or more;
- duplicate: its IoU with an object of its class is 0.5 or more, but a detection with a higher score
  is matched with that object;
- background: its IoU with every object is 0.1 or less;
- both: anything else: the wrong class and an IoU of 0.1 to 0.5.

An object is missed if no detection is matched with it, and no error of localization or
classification is about it.

Shapes: D detections, G objects.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .evaluated_set import EvaluatedSet
from .matching import FOREGROUND_IOU, Matches, average_precision

__all__ = ["BACKGROUND_IOU", "KINDS", "Errors", "find_errors", "lost_precision"]

BACKGROUND_IOU = 0.1
KINDS = ("classification", "localization", "both", "duplicate", "background", "missed")


@dataclass(frozen=True)
class Errors:
    """
    Attributes:
        kinds: (D,) of str: one of `KINDS` but "missed", "" for a right detection, or "ignored" for
            one on a crowd and for one that is not kept.
        about: (D,), the object that the error is about; -1 for none.
        missed: (G,) bool.
    """

    kinds: np.ndarray
    about: np.ndarray
    missed: np.ndarray

    def count(self, kind: str) -> int:
        return int(self.missed.sum() if kind == "missed" else (self.kinds == kind).sum())


def find_errors(data: EvaluatedSet, matches: Matches, kept: np.ndarray | None = None) -> Errors:
    """The kind of each error.

    Args:
        data: the set.
        matches: of its detections.
        kept: (D,) bool, the detections that count, by default all. With thresholds of the score
            for each class the matches of those kept are the same as without the others.
    """
    right = matches.matched >= 0
    same, other = matches.same_iou, matches.other_iou
    used = matches.found(len(data.areas), kept)
    kinds = np.select(
        [
            right,
            matches.ignored,
            (same >= BACKGROUND_IOU) & (same < FOREGROUND_IOU),
            other >= FOREGROUND_IOU,
            same >= FOREGROUND_IOU,
            np.maximum(same, other) <= BACKGROUND_IOU,
        ],
        ["", "ignored", "localization", "classification", "duplicate", "background"],
        "both",
    )
    if kept is not None:
        kinds = np.where(kept, kinds, "ignored")
    about = np.select(
        [kinds == "", np.isin(kinds, ("localization", "duplicate")), kinds == "classification"],
        [matches.matched, matches.same, matches.other],
        -1,
    )
    both = kinds == "both"
    about[both] = np.where(same > other, matches.same, matches.other)[both]
    covered = np.zeros(len(data.areas), dtype=bool)
    covered[about[np.isin(kinds, ("localization", "classification"))]] = True
    return Errors(kinds, about, data.objects & ~used & ~covered)


def lost_precision(data: EvaluatedSet, matches: Matches) -> tuple[float, dict[str, float]]:
    """AP50 of all detections, and by how much it grows if the errors of a kind are mended (dAP).

    Mending is TIDE's: an error of classification gets the object's class, one of localization its
    box, and both are removed if the object has a right detection or a better-scored one of the same
    kind; errors of the other kinds are removed; a missed object is taken out of the ground truth.
    The gains do not add up, since each is measured alone.

    Returns:
        AP50 and {kind: gain}, in percent; NaN without ground truth.
    """
    errors = find_errors(data, matches)
    none = np.zeros(len(data.areas), dtype=bool)
    base = _mean_precision(data, data.labels, errors.kinds == "", errors.kinds != "ignored", none)
    gains = {}
    used = matches.found(len(data.areas))
    for kind in KINDS:
        labels, right = data.labels.copy(), errors.kinds == ""
        counted = errors.kinds != "ignored"
        removed = errors.missed if kind == "missed" else none
        if kind != "missed":
            wrong = np.flatnonzero(errors.kinds == kind)
            counted[wrong] = False
            if kind in ("classification", "localization"):
                about = errors.about[wrong]
                usable = ~used[about]
                # Detections are sorted by score: the first of each object is the best.
                _, first = np.unique(about[usable], return_index=True)
                mended = wrong[usable][first]
                counted[mended] = right[mended] = True
                labels[mended] = data.object_labels[errors.about[mended]]
        gains[kind] = _mean_precision(data, labels, right, counted, removed) - base
    return base, gains


def _mean_precision(
    data: EvaluatedSet,
    labels: np.ndarray,
    right: np.ndarray,
    counted: np.ndarray,
    removed: np.ndarray,
) -> float:
    """AP50 in percent, for (D,) ``labels``, ``right``, ``counted`` and (G,) ``removed``."""
    objects = data.objects & ~removed
    values = []
    for label in range(len(data.classes)):
        if not data.count_objects(label):
            continue
        chosen = counted & (labels == label)
        count = int((objects & (data.object_labels == label)).sum())
        if count:
            values.append(average_precision(data.scores[chosen], right[chosen], count))
        else:  # all objects are removed: only wrong detections may be left
            values.append(float(not chosen.any()))
    return 100 * float(np.mean(values)) if values else float("nan")
