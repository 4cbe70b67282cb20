"""Detections as json."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from ..detector import Detections

__all__ = ["REPLIES", "Found", "as_coco", "as_plain"]


class Found(NamedTuple):
    """The detections of one picture."""

    name: str
    size: tuple[int, int]  # (height, width) in pixels
    detections: Detections


def as_plain(found: Sequence[Found], classes: Sequence[str]) -> dict:
    """``images``, each with its ``detections``: class name, score and box (x1, y1, x2, y2)."""
    return {
        "images": [
            {
                "file_name": name,
                "width": width,
                "height": height,
                "detections": [
                    {"class": classes[index], "score": score, "box": box}
                    for index, score, box in _rows(detections)
                ],
            }
            for name, (height, width), detections in found
        ]
    }


def as_coco(found: Sequence[Found], classes: Sequence[str]) -> dict:
    """``images``, ``categories`` and ``annotations`` as in COCO's json.

    A category's id is the index of its class; ``bbox`` is x, y, width and height in pixels.
    """
    images, annotations = [], []
    for image_id, (name, (height, width), detections) in enumerate(found, 1):
        images.append({"id": image_id, "file_name": name, "width": width, "height": height})
        for category, score, (x1, y1, x2, y2) in _rows(detections):
            box = [x1, y1, round(x2 - x1, 4), round(y2 - y1, 4)]
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": category,
                    "bbox": box,
                    "area": round(box[2] * box[3], 4),
                    "score": score,
                    "iscrowd": 0,
                }
            )
    categories = [{"id": index, "name": name} for index, name in enumerate(classes)]
    return {"images": images, "categories": categories, "annotations": annotations}


REPLIES = {"plain": as_plain, "coco": as_coco}


def _rows(detections: Detections) -> list[tuple[int, float, list[float]]]:
    """(class, score, box) of each detection; scores to 6 digits, boxes to 4."""
    return [
        (int(index), round(float(score), 6), [round(float(side), 4) for side in box])
        for box, score, index in zip(*detections[:3], strict=True)
    ]
