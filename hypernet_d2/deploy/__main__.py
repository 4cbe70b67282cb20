"""Detects in images with an exported model, prints the detections and draws them."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from hypernet_d2.utils.drawing import draw_detections
from hypernet_d2.utils.images import IMAGE_SUFFIXES, list_images, read_image

from .arguments import add_tile_arguments, tile_options
from .detector import Detections, Detector
from .providers import add_runtime_arguments


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m hypernet_d2.deploy", description=__doc__)
    parser.add_argument("model", help="file that tools/export_model.py wrote, .onnx or .pt2")
    parser.add_argument("image", type=Path, help="image, or a folder of images")
    parser.add_argument(
        "--output",
        type=Path,
        help="picture to write, .png or .jpg; for a folder of images a folder",
    )
    parser.add_argument(
        "--threshold",
        type=float,
        help="least score (default: the model's for each class, else 0.5 or the model's where "
        "higher)",
    )
    parser.add_argument(
        "--proposals", type=int, help="number of proposals that are classified (default: all)"
    )
    add_tile_arguments(parser)
    add_runtime_arguments(parser)
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser.parse_args(argv)


def find_images(path: Path, output: Path | None) -> Iterator[tuple[Path, Path | None]]:
    """(image, picture to write) for an image, or for each image of a folder.

    Raises:
        ValueError: the folder has no image.
    """
    if not path.is_dir():
        yield path, output
        return
    images = list_images(path)
    if not images:
        raise ValueError(f"{path}: this folder has no image ({', '.join(IMAGE_SUFFIXES)})")
    for image in images:
        # The whole name, as a.jpg and a.png may lie side by side.
        yield image, output / f"{image.name}.png" if output else None


def draw(image: np.ndarray, found: Detections, names: list[str], path: Path) -> None:
    """Write a picture of the detections in an image (H, W, 3) uint8 BGR."""
    labels = [f"{name} {score:.0%}" for name, score in zip(names, found.scores, strict=True)]
    drawn = draw_detections(image[:, :, ::-1], found.boxes, labels, found.classes)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(drawn).save(path)


def main(argv: list[str] | None = None) -> int:
    """Returns the exit status: 0, or 1 if images of a folder could not be read.

    Raises:
        OSError, ValueError, ImportError, FloatingPointError: a user's mistake.
    """
    args = parse_args(argv)
    detector = Detector(args.model, providers=args.provider, runtime=args.runtime)
    threshold = args.threshold
    if threshold is None and not detector.info.score_thresholds:
        threshold = max(0.5, detector.info.score_threshold)
    status = 0
    for path, output in find_images(args.image, args.output):
        # With tiles a large file is read in parts, unless the picture is drawn.
        in_parts = args.tile is not None and output is None and path == args.image
        try:
            image = path if in_parts else read_image(path)
        except ValueError as error:
            if path == args.image:
                raise
            print(f"left out: {error}", file=sys.stderr)
            status = 1
            continue
        found = detector(
            image,
            score_threshold=threshold,
            num_proposals=args.proposals,
            **tile_options(args),
        )
        names = [detector.info.classes[index] for index in found.classes]
        if output:
            draw(image, found, names, output)
        prefix = "" if path == args.image else f"{path.name}: "
        for name, score, box in zip(names, found.scores, found.boxes, strict=True):
            print(f"{prefix}{name} {score:.3f} " + " ".join(f"{side:.1f}" for side in box))
    return status


if __name__ == "__main__":
    from hypernet_d2_cli import run

    sys.exit(run(main))
