"""Compares an exported file with detectron2: its detections, and its time."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from detectron2.engine import DefaultPredictor

from hypernet_d2.deploy import Detections, Detector, Instances, read_image
from hypernet_d2.modeling.roi_heads import paste_parts
from hypernet_d2.utils.images import IMAGE_SUFFIXES, list_images

__all__ = [
    "TOLERANCE",
    "by_detectron2",
    "check",
    "difference",
    "differences",
    "expand_folders",
    "time_alternating",
]

# Largest difference to detectron2 in pixels and scores, due to the order of float additions.
TOLERANCE = 1e-3
# Largest share of a mask's pixels: those whose probability is the threshold up to rounding.
PIXEL_TOLERANCE = 0.01


def expand_folders(paths: list[Path]) -> list[Path]:
    """Replace each folder in ``paths`` by its images, sorted by name."""
    images = []
    for path in paths:
        found = list_images(path) if path.is_dir() else [path]
        if not found:
            raise ValueError(f"--check {path}: no {', '.join(IMAGE_SUFFIXES)} in this folder")
        images += found
    return images


def check(detector: Detector, predictor: DefaultPredictor, images: list[Path]) -> bool:
    """Print for each image whether the file and detectron2 detect the same; True if all do."""
    differ = []
    for path in images:
        image = read_image(path)
        expected = by_detectron2(predictor, image)
        found = detector.instances(image, score_threshold=detector.info.score_threshold)
        largest, pixels = differences(expected, found)
        reason = detector.info.canvas_conflict(image.shape[:2])
        if largest > TOLERANCE or pixels > PIXEL_TOLERANCE or reason:
            differ.append(path)
            reason = f"; DIFFERS{': ' if reason else ''}{reason}"
        if found.masks is not None or found.parts is not None:
            reason = f", {pixels:.2%} of the masks' pixels{reason}"
        print(
            f"{path}: {len(found.detections.scores)} detections, detectron2 "
            f"{len(expected.detections.scores)}, largest difference {largest:.1e} (pixels and "
            f"scores){reason}"
        )
    print(f"{len(images)} images, {len(differ)} with a difference above {TOLERANCE:g}")
    return not differ


def by_detectron2(predictor: DefaultPredictor, image: np.ndarray) -> Instances:
    """What detectron2 predicts for an image (H, W, 3) uint8 BGR."""
    instances = predictor(image)["instances"].to("cpu")
    detections = Detections(
        instances.pred_boxes.tensor.numpy(),
        instances.scores.numpy(),
        instances.pred_classes.numpy(),
    )
    masks = parts = keypoints = None
    if instances.has("pred_part_masks"):
        parts = paste_parts(instances).numpy()
    elif instances.has("pred_masks"):
        masks = instances.pred_masks.numpy()
    if instances.has("pred_keypoints"):
        keypoints = instances.pred_keypoints.numpy()
    return Instances(detections, masks, parts, keypoints)


def differences(expected: Instances, found: Instances) -> tuple[float, float]:
    """The largest difference of boxes and scores, keypoints included, and that of masks.

    Returns:
        The first in pixels and scores, as `difference`; the second as the largest share of a mask's
        pixels, or of the pixels of the parts. Both are infinite where detections are missing.
    """
    largest = max(
        difference(expected.detections, found.detections),
        difference(found.detections, expected.detections),
    )
    if not np.isfinite(largest) or not len(found.detections.scores):
        return largest, 0.0
    nearest = _distances(found.detections, expected.detections).argmin(axis=1)
    pixels = 0.0
    for one, other in ((found.masks, expected.masks), (found.parts, expected.parts)):
        if one is not None:
            wrong = (one != other[nearest]).sum(axis=(1, 2))
            size = np.maximum((one > 0).sum(axis=(1, 2)), 1)
            pixels = max(pixels, float((wrong / size).max()))
    if found.keypoints is not None:
        largest = max(largest, float(np.abs(found.keypoints - expected.keypoints[nearest]).max()))
    return largest, pixels


def time_alternating(
    detectors: dict[str, Callable], image: np.ndarray, rounds: int, threads: int
) -> None:
    """Print the median and the range of each detector's seconds, after a warm-up."""
    seconds = {name: [] for name in detectors}
    for turn in range(rounds + 1):
        for name, detect in detectors.items():
            start = time.perf_counter()
            detect(image)
            if turn:
                seconds[name].append(time.perf_counter() - start)
    for name, values in seconds.items():
        print(
            f"{name}: {statistics.median(values):.4f} s "
            f"({min(values):.4f} to {max(values):.4f}; {rounds} rounds, threads: {threads})"
        )


def difference(a: Detections, b: Detections) -> float:
    """The largest distance of a detection in ``a`` to the nearest one of its class in ``b``."""
    if not len(a.scores):
        return 0.0
    if not len(b.scores):
        return float("inf")
    return float(_distances(a, b).min(axis=1).max())


def _distances(a: Detections, b: Detections) -> np.ndarray:
    """The largest difference of the sides and the score of each pair, infinite between classes."""
    rows_a, rows_b = (np.concatenate([x.boxes, x.scores[:, None]], axis=1) for x in (a, b))
    distance = np.abs(rows_a[:, None] - rows_b[None]).max(axis=2)
    distance[a.classes[:, None] != b.classes[None]] = np.inf
    return distance
