"""Detects in images with an exported model, and draws what it finds."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from hypernet_d2.utils.images import draw_detections, read_image

from .detector import Detector


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m hypernet_d2.deploy", description=__doc__)
    parser.add_argument("model", help="file of tools/export_model.py, .onnx or .pt2")
    parser.add_argument("image", help="image to detect in")
    parser.add_argument("--output", type=Path, help="picture to write, .png or .jpg")
    parser.add_argument(
        "--threshold", type=float, help="least score (default: 0.5, or the model's where higher)"
    )
    parser.add_argument("--proposals", type=int, help="how many of the best (default: all)")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Returns the exit status: 0, or 2 for a user's mistake."""
    args = parse_args(argv)
    try:
        detector = Detector(args.model)
        image = read_image(args.image)
        threshold = args.threshold
        if threshold is None:
            threshold = max(0.5, detector.info.score_threshold)
        found = detector(image, score_threshold=threshold, num_proposals=args.proposals)
        names = [detector.info.classes[index] for index in found.classes]
        if args.output:
            labels = [f"{n} {s:.0%}" for n, s in zip(names, found.scores, strict=True)]
            drawn = draw_detections(image[:, :, ::-1], found.boxes, labels, found.classes)
            args.output.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.ascontiguousarray(drawn)).save(args.output)
    except (OSError, ValueError, ImportError) as error:
        print(error, file=sys.stderr)
        return 2
    for name, score, box in zip(names, found.scores, found.boxes, strict=True):
        print(f"{name} {score:.3f} " + " ".join(f"{side:.1f}" for side in box))
    return 0


if __name__ == "__main__":
    sys.exit(main())
