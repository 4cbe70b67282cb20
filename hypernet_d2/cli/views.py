"""What ``detect --show`` draws of an image: detections, proposals or features."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from detectron2.data import Metadata
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import Instances
from torch import nn

from hypernet_d2.engine import Predictor
from hypernet_d2.engine.visualizer import BoxVisualizer, distinct_colors, score_colors
from hypernet_d2.layers import hypercolumn_picture

__all__ = ["VIEWS", "View", "Viewer", "output_of", "side_by_side"]

STRIP, PAD = 30, 8  # pixels: height of a caption, and space around its text
_UNTRACKED = [160, 160, 160]  # red, green, blue of a detection without an identity


class View(NamedTuple):
    """A picture of one image, (H, W, 3), RGB, uint8, its caption, and the detections if drawn."""

    picture: np.ndarray
    caption: str
    instances: Instances | None = None


Viewer = Callable[[np.ndarray], View]  # of an image (H, W, 3), BGR, uint8


def view_detections(
    predictor: Predictor,
    args: argparse.Namespace,
    image: np.ndarray,
    track: Callable[[Instances], Instances] | None = None,
) -> View:
    """The detections, or with ``track`` what it returns for them, in the colors of identities."""
    instances = predictor(image)["instances"].to("cpu")
    drawn, metadata = instances, predictor.metadata
    if track is not None:
        instances = track(instances)
        drawn, metadata = _with_identities(instances, metadata)
    visualizer = BoxVisualizer(image[:, :, ::-1], metadata)
    picture = visualizer.draw_instance_predictions(drawn).get_image()
    return View(picture, f"{len(instances)} detections", instances)


def _with_identities(instances: Instances, metadata: Metadata) -> tuple[Instances, Metadata]:
    """Each detection as a class of its own, with the name and color of its identity."""
    names = metadata.get("thing_classes")
    classes = [names[i] if names else str(i) for i in instances.pred_classes.tolist()]
    ids = instances.track_ids.tolist()
    labels = [f"#{id} {name}" if id else name for id, name in zip(ids, classes, strict=True)]
    colors = [_UNTRACKED if not id else distinct_colors([id])[0] for id in ids]
    drawn = Instances(instances.image_size, **instances.get_fields())
    drawn.pred_classes = torch.arange(len(instances))
    others = metadata.as_dict()
    for key in ("thing_classes", "thing_colors"):
        others.pop(key, None)
    return drawn, Metadata(**others, thing_classes=labels, thing_colors=colors)


def view_proposals(predictor: Predictor, args: argparse.Namespace, image: np.ndarray) -> View:
    """The best ``args.num_proposals`` proposals, colored by objectness."""
    with output_of(predictor.model.proposal_generator) as seen:
        predictor(image)
    (proposals,), _ = seen["output"]
    best = detector_postprocess(proposals[: args.num_proposals].to("cpu"), *image.shape[:2])
    scores = best.objectness_logits.sigmoid().numpy()
    limits = (scores.min(initial=1.0), scores.max(initial=0.0))
    boxes = best.proposal_boxes.tensor.numpy()
    visualizer = BoxVisualizer(image[:, :, ::-1])
    picture = visualizer.draw_proposals(boxes, scores, limits).get_image()
    return View(_with_color_scale(picture, len(best), limits), f"{len(best)} proposals")


def view_features(predictor: Predictor, args: argparse.Namespace, image: np.ndarray) -> View:
    """Principal components of the backbone's maps, see `hypercolumn_picture`."""
    with output_of(predictor.model.backbone) as seen:
        predictor(image)
    padded_size = tuple(seen["inputs"][0].shape[-2:])
    size = predictor.aug.get_transform(image).apply_image(image).shape[:2]
    picture = hypercolumn_picture(seen["output"], padded_size, size).numpy()
    return View(cv2.resize(picture, image.shape[1::-1]), f"maps {', '.join(seen['output'])}")


VIEWS = {
    "detections": view_detections,
    "proposals": view_proposals,
    "features": view_features,
}


@contextmanager
def output_of(module: nn.Module) -> Iterator[dict[str, Any]]:
    """A dict that receives the ``inputs`` and ``output`` of the module's next call."""
    seen: dict[str, Any] = {}
    handle = module.register_forward_hook(
        lambda _, inputs, output: seen.update(inputs=inputs, output=output)
    )
    try:
        yield seen
    finally:
        handle.remove()


def side_by_side(named: list[tuple[str, Predictor]], args: argparse.Namespace) -> Viewer:
    """A viewer that draws one image with each model; ``named`` has their config files."""
    views = [
        ("/".join(Path(name).with_suffix("").parts[-2:]), partial(VIEWS[args.show], model, args))
        for name, model in named
    ]

    def view_all(image: np.ndarray) -> View:
        pictures = []
        for name, view in views:
            picture, caption, _ = view(image)
            gap = np.full((STRIP + len(picture), PAD if pictures else 0, 3), 255, np.uint8)
            pictures += [gap, _with_caption(picture, f"{name}: {caption}")]
        return View(np.hstack(pictures), "")

    return view_all


def _with_caption(picture: np.ndarray, text: str) -> np.ndarray:
    """``picture`` below a strip with one line of text, scaled to fit its width."""
    strip = np.full((STRIP, picture.shape[1], 3), 255, np.uint8)
    _put_text(strip, text, PAD, picture.shape[1] - 2 * PAD)
    return np.vstack([strip, picture])


def _with_color_scale(picture: np.ndarray, count: int, limits: tuple[float, float]) -> np.ndarray:
    """``picture`` below a strip with the color scale of objectness within ``limits``."""
    width = picture.shape[1]
    strip = np.full((STRIP, width, 3), 255, np.uint8)
    low, high = (f"{limit:.3f}" for limit in limits)
    left = PAD + _put_text(strip, f"{count} proposals, objectness {low}", PAD, width // 2)
    right = max(int(0.85 * width), left + 1)
    colors = (255 * score_colors(np.linspace(0, 1, right - left))).astype(np.uint8)
    strip[PAD:-PAD, left:right] = colors
    _put_text(strip, high, right + PAD, width - right - 2 * PAD)
    return np.vstack([strip, picture])


def _put_text(strip: np.ndarray, text: str, x: int, width: int) -> int:
    """Write ``text`` from ``x`` on, at most ``width`` pixels wide; return where it ends."""
    font, size = cv2.FONT_HERSHEY_SIMPLEX, 0.55
    (length, _), _ = cv2.getTextSize(text, font, size, 1)
    size *= min(1.0, max(width, 1) / length)
    (length, height), _ = cv2.getTextSize(text, font, size, 1)
    cv2.putText(strip, text, (x, (STRIP + height) // 2), font, size, (0, 0, 0), 1, cv2.LINE_AA)
    return x + length
