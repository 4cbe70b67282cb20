"""Photographs of a report: samples of a data set, and the pictures with the most errors."""

from __future__ import annotations

import io

import numpy as np
from detectron2.structures import BoxMode
from PIL import Image

from hypernet_d2.utils.drawing import draw_detections, make_sheet
from hypernet_d2.utils.images import read_image, resize

from .analysis import Analysis

__all__ = ["draw_errors", "draw_models", "draw_samples", "to_jpeg", "worst_images"]

_SIDE = 640  # pixels of the long side of a picture on a sheet
_SAMPLE_SIDE = 330
_MAX_LABELS = 12  # of a picture, where labels would hide the objects
_RIGHT, _WRONG, _MISSED = (60, 220, 60), (255, 150, 0), (255, 50, 50)


def to_jpeg(picture: np.ndarray) -> bytes:
    """A JPEG file of (H, W, 3) uint8, RGB."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=82)
    return buffer.getvalue()


def draw_samples(records: list[dict], classes: list[str], count: int = 12) -> np.ndarray:
    """A sheet of images, evenly spaced in a set, with their ground truth.

    Args:
        records: dataset dicts, at least one.
        classes: names.
        count: of images.

    Returns:
        (H, W, 3) uint8, RGB.
    """
    chosen = np.linspace(0, len(records) - 1, min(count, len(records))).round().astype(int)
    pictures, titles = [], []
    for record in (records[i] for i in chosen):
        objects = record.get("annotations", ())
        boxes = [BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS) for a in objects]
        labels = [a["category_id"] for a in objects]
        few = len(objects) <= _MAX_LABELS
        names = [  # of many objects only the first of each class
            classes[label] if few or label not in labels[:i] else ""
            for i, label in enumerate(labels)
        ]
        image, scale = _read(str(record["file_name"]), _SAMPLE_SIDE)
        boxes = scale * np.asarray(boxes, dtype=float).reshape(-1, 4)
        pictures.append(draw_detections(image, boxes, names, labels))
        titles.append(f"{len(objects)} objects")
    return make_sheet(pictures, titles, columns=3)


def worst_images(analysis: Analysis, count: int) -> list[int]:
    """Indices of the images with the most errors, images without errors excluded.

    Errors are wrong detections above the thresholds, and objects that no detection is matched with.
    Of two images with as many errors the one with fewer right detections comes first.
    """
    data = analysis.data
    size = len(data.images)
    wrong = np.bincount(data.image_of[analysis.wrong], minlength=size)
    lost = np.bincount(data.object_image[data.objects & ~analysis.found], minlength=size)
    right = np.bincount(data.object_image[analysis.found], minlength=size)
    order = np.lexsort((right, -(wrong + lost)))
    return [int(i) for i in order[:count] if wrong[i] + lost[i]]


def draw_errors(analysis: Analysis, image: int) -> np.ndarray:
    """Ground truth and detections of an image side by side.

    Args:
        analysis: of the model.
        image: index in ``analysis.data.images``.

    Returns:
        (H, W, 3) uint8, RGB.
    """
    data = analysis.data
    picture, scale = _read(data.images[image]["file_name"], _SIDE)
    objects = np.flatnonzero(data.objects & (data.object_image == image))
    found = analysis.found[objects]
    truth = _draw(
        picture,
        scale * data.object_boxes[objects],
        [_RIGHT if hit else _MISSED for hit in found],
        [data.classes[label] for label in data.object_labels[objects]],
        ~found,
    )
    detections, wrong, count = _draw_detections(analysis, image, picture, scale)
    titles = [
        f"ground truth: {len(objects)} objects, {int((~found).sum())} not found",
        f"{count} detections, {wrong} wrong",
    ]
    return make_sheet([truth, detections], titles, columns=2)


def draw_models(models: dict[str, Analysis], image: int) -> np.ndarray:
    """The detections of several models in an image, with the objects that each does not find.

    Args:
        models: {name: analysis}, of one data set.
        image: index in ``data.images``.

    Returns:
        (H, W, 3) uint8, RGB.
    """
    pictures, titles = [], []
    for name, analysis in models.items():
        data = analysis.data
        picture, scale = _read(data.images[image]["file_name"], _SIDE)
        lost = np.flatnonzero(data.objects & ~analysis.found & (data.object_image == image))
        labels = [data.classes[label] for label in data.object_labels[lost]]
        every = np.ones(len(lost), dtype=bool)
        boxes = scale * data.object_boxes[lost]
        picture = _draw(picture, boxes, [_MISSED] * len(lost), labels, every)
        drawn, wrong, count = _draw_detections(analysis, image, picture, scale)
        pictures.append(drawn)
        titles.append(f"{name}: {count} detections, {wrong} wrong, {len(lost)} not found")
    return make_sheet(pictures, titles, columns=len(models))


def _draw_detections(
    analysis: Analysis, image: int, picture: np.ndarray, scale: float
) -> tuple[np.ndarray, int, int]:
    """The picture with the detections above the thresholds, how many are wrong, and how many."""
    data = analysis.data
    shown = np.flatnonzero((analysis.errors.kinds != "ignored") & (data.image_of == image))
    kinds = analysis.errors.kinds[shown]
    labels = [
        f"{data.classes[data.labels[i]]} {data.scores[i]:.2f}{': ' if kind else ''}{kind}"
        for i, kind in zip(shown, kinds, strict=True)
    ]
    colors = [_WRONG if kind else _RIGHT for kind in kinds]
    drawn = _draw(picture, scale * data.boxes[shown], colors, labels, kinds != "")
    return drawn, int((kinds != "").sum()), len(shown)


def _draw(
    image: np.ndarray,
    boxes: np.ndarray,
    colors: list[tuple[int, int, int]],
    labels: list[str],
    important: np.ndarray,
) -> np.ndarray:
    """Draw boxes, the important ones above the others, and labels where there is room."""
    order = np.argsort(~important, kind="stable")
    few = len(boxes) <= _MAX_LABELS
    texts = [labels[i] if few or important[i] else "" for i in order]
    texts = [text if n < _MAX_LABELS else "" for n, text in enumerate(texts)]
    return draw_detections(image, boxes[order], texts, [colors[i] for i in order], width=2)


def _read(path: str, side: int) -> tuple[np.ndarray, float]:
    """An image, (H, W, 3), RGB, whose long side has ``side`` pixels, and the scale."""
    image = read_image(path)[:, :, ::-1]
    scale = side / max(image.shape[:2])
    height, width = (max(1, round(scale * n)) for n in image.shape[:2])
    return resize(image, (height, width)), scale
