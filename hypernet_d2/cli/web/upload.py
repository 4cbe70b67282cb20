"""Pictures of one's own: what a model finds in them, and how."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
from PIL import Image

from hypernet_d2.deploy import Stages, draw_detections, read_image

from .models import ExportedModel, TrainedModel

__all__ = ["NO_PICTURE", "STAGES", "draw_stages", "run_model"]

NO_PICTURE = "Drop a picture on the left."
DETECTIONS = "The detector's result: classified and refined proposals."
# Names of the tabs of an exported model besides the detections, and the caption of each.
STAGES = {
    "Proposals": "The boxes that the detector classifies, before it refines them.",
    "Windows": "The windows of the regular grid that the proposals come from, in the same colors.",
    "Hyper feature": "Every channel of the feature map that all steps read, each from 0 (black) to "
    "its own maximum.",
}
SHOWN_WIDTH = 720  # pixels; smaller pictures are enlarged before they are drawn on
SHOWN_SIDE = 3000  # pixels; larger pictures are reduced before they are drawn on


def run_model(
    model: ExportedModel | TrainedModel,
    path: str | None,
    threshold: float,
    tile: int | None,
    overlap: int | None,
) -> tuple:
    """Detect in an uploaded picture.

    Args:
        model: an exported one also gives the pictures of `STAGES`, unless it detects in tiles.
        path: of the picture; None if there is none.
        threshold: least score.
        tile: side of the tiles in pixels; 0 or None for the whole picture at once.
        overlap: of neighboring tiles in pixels; None is 0.

    Returns:
        A line of text, the picture of the detections (RGB) and, for an exported model, the three of
        `STAGES`; None for each that there is not. The text alone where the picture cannot be used.
    """
    with_stages = isinstance(model, ExportedModel)
    nothing = (None,) * (1 + len(STAGES) * with_stages)
    if path is None:
        return NO_PICTURE, *nothing
    threshold = max(threshold, model.least_score)
    tile, overlap = int(tile or 0), int(overlap or 0)
    try:
        image = read_image(path)
        start = time.perf_counter()
        stages = None
        if with_stages and not tile:
            stages = model.detector.stages(image, score_threshold=threshold)
            found = stages.detections
        else:
            found = model.detect(image, threshold, tile or None, overlap)
        seconds = time.perf_counter() - start
    except (OSError, ValueError, FloatingPointError) as error:
        # The page's server has stored the picture under its name in a folder of its own.
        return str(error).replace(path, Path(path).name), *nothing
    text = f"**Detections: {len(found.scores)}**, time: {1000 * seconds:.0f} ms"
    text += f", picture: {image.shape[1]} x {image.shape[0]} pixels"
    image, factor = scale(image[:, :, ::-1])
    labels = [
        f"{model.classes[label]} {score:.0%}"
        for label, score in zip(found.classes, found.scores, strict=True)
    ]
    picture = draw_detections(image, found.boxes * factor, labels, found.classes.tolist())
    if not with_stages:
        return text, picture
    drawn = draw_stages(image, stages, factor) if stages else nothing[1:]
    return text, picture, *drawn


def scale(image: np.ndarray) -> tuple[np.ndarray, float]:
    """The image (H, W, 3), from `SHOWN_WIDTH` wide to `SHOWN_SIDE` on a side, and the factor."""
    factor = max(1.0, SHOWN_WIDTH / image.shape[1])
    factor = min(factor, SHOWN_SIDE / max(image.shape[:2]))
    size = (max(1, round(image.shape[1] * factor)), max(1, round(image.shape[0] * factor)))
    return np.asarray(Image.fromarray(np.ascontiguousarray(image)).resize(size)), factor


def draw_stages(image: np.ndarray, stages: Stages, factor: float) -> list[np.ndarray]:
    """The pictures of `STAGES`, RGB, for an image scaled by ``factor``."""
    ranks = list(range(len(stages.proposals)))
    unlabeled = [""] * len(ranks)
    return [
        draw_detections(image, stages.proposals * factor, unlabeled, ranks),
        draw_detections(image, stages.windows * factor, unlabeled, ranks),
        tile_channels(stages.feature),
    ]


def tile_channels(feature: np.ndarray) -> np.ndarray:
    """The channels of (C, h, w) side by side, each from 0 to its own maximum; gray, as RGB."""
    count, h, w = feature.shape
    columns = round((count * (h + 2) / (w + 2)) ** 0.5) or 1  # about as wide as high
    rows = -(-count // columns)
    peak = feature.max(axis=(1, 2), keepdims=True)
    tiles = np.full((rows * columns, h + 2, w + 2), 64, np.uint8)  # a frame around each
    tiles[:count, 1:-1, 1:-1] = feature.clip(0) / np.maximum(peak, 1e-12) * 255
    sheet = tiles.reshape(rows, columns, h + 2, w + 2).swapaxes(1, 2)
    sheet = sheet.reshape(rows * (h + 2), columns * (w + 2))
    times = -(-SHOWN_WIDTH // sheet.shape[1])  # an integer, so that cells stay squares
    sheet = sheet.repeat(times, axis=0).repeat(times, axis=1)
    return np.stack([sheet] * 3, axis=2)
