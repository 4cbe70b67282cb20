"""Exports a trained HyperNet as one file that runs without detectron2.

The file holds the whole detector, from the pixels to the detections, for one size of canvas, and
what hypernet_d2.deploy has to know of it. docs/DEPLOYMENT.md says more.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.engine import DefaultPredictor
from detectron2.modeling import build_model

import hypernet_d2
from hypernet_d2.checkpoint import HyperNetCheckpointer
from hypernet_d2.deploy import Detections, Detector, ModelInfo, read_image
from hypernet_d2.engine import setup_cfg
from hypernet_d2.export import ExportableDetector, capture, write_onnx, write_torch

from .arguments import CommandParser, add_config_arguments

# Of scores, and of boxes in pixels: what the order of additions explains.
TOLERANCE = 1e-3


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = CommandParser(
        __doc__,
        "--config BCCD-Detection/hypernet_R_18 --format onnx --output exported "
        "--size 240 320 MODEL.WEIGHTS output/bccd/model_final.pth",
    )
    add_config_arguments(parser)
    parser.add_argument("--format", required=True, choices=("onnx", "torch_export", "torchscript"))
    parser.add_argument("--output", required=True, type=Path, help="folder for the file")
    parser.add_argument(
        "--size",
        type=int,
        nargs=2,
        metavar=("H", "W"),
        help="canvas in pixels; larger images are made to fit it, smaller ones padded "
        "(default: INPUT.MIN_SIZE_TEST and MAX_SIZE_TEST)",
    )
    parser.add_argument(
        "--check",
        action="append",
        default=[],
        type=Path,
        metavar="IMAGE|FOLDER",
        help="image, or folder of images, on which the file must detect what detectron2 does; may "
        "be repeated",
    )
    parser.add_argument(
        "--time",
        type=int,
        default=0,
        metavar="ROUNDS",
        help="time the file and detectron2 in turns on the first --check image",
    )
    parser.add_argument("--threads", type=int, default=1, help="of --time (default: 1)")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE ..., as in train_net.py")
    args = parser.parse_args(argv)
    if args.format == "torchscript":
        parser.error("--format torchscript: PyTorch gave TorchScript up for torch.export; use that")
    if torch.__version__ < (2, 5):
        parser.error(
            f"torch.export of PyTorch {torch.__version__} cannot capture a detector: export with a "
            "later one (2.14 is tested); the file of --format onnx then runs without PyTorch"
        )
    if args.time and not args.check:
        parser.error("--time needs an image: --check IMAGE")
    if args.threads < 1:
        parser.error(f"--threads {args.threads}: expected 1 or more")
    if args.format == "onnx":
        needed = ("onnx", "onnxscript", "onnxruntime")  # the last to see that the file works
        missing = [name for name in needed if find_spec(name) is None]
        if missing:
            parser.error(f"--format onnx: pip install {' '.join(missing)}")
    return args


def load_model(cfg: CfgNode) -> torch.nn.Module:
    """The trained model, in evaluation mode."""
    if not Path(cfg.MODEL.WEIGHTS).is_file():
        raise ValueError(f"MODEL.WEIGHTS is {cfg.MODEL.WEIGHTS!r}: expected a trained model's file")
    model = build_model(cfg).eval()
    HyperNetCheckpointer(model, strict=True).load(cfg.MODEL.WEIGHTS)
    return model


def describe(cfg: CfgNode, detector: ExportableDetector, size: list[int] | None, name: str):
    """The metadata of the file; its canvas is `size`, rounded up to whole cells of the trunk."""
    model, shortest, longest = detector.model, cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST
    size = size or [shortest or longest, longest]
    if min(size) < 1:
        raise ValueError(f"--size {size[0]} {size[1]}: expected positive numbers of pixels")
    cells = model.backbone.size_divisibility
    classes = MetadataCatalog.get(cfg.DATASETS.TEST[0]).get("thing_classes") or []
    if len(classes) != cfg.MODEL.ROI_HEADS.NUM_CLASSES:
        raise ValueError(
            f"DATASETS.TEST names {cfg.DATASETS.TEST[0]}, of {len(classes)} classes, but "
            f"MODEL.ROI_HEADS.NUM_CLASSES is {cfg.MODEL.ROI_HEADS.NUM_CLASSES}"
        )
    return ModelInfo(
        classes=tuple(classes),
        input_format=cfg.INPUT.FORMAT,
        canvas=tuple(-(-side // cells) * cells for side in size),
        min_size=shortest,
        max_size=longest,
        score_threshold=cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST,
        max_proposals=cfg.MODEL.RPN.POST_NMS_TOPK_TEST,
        max_detections=cfg.TEST.DETECTIONS_PER_IMAGE,
        feature_stride=model.proposal_generator.scorer.grid.feature_stride,
        config=name,
        version=hypernet_d2.__version__,
    )


def list_images(paths: list[Path]) -> list[Path]:
    """The images that `paths` name, those of a folder in the order of their names."""
    images = []
    for path in paths:
        found = sorted(path.glob("*.[jp][pn]*g")) if path.is_dir() else [path]
        if not found:
            raise ValueError(f"--check {path}: no .jpg, .jpeg or .png in this folder")
        images += found
    return images


def check(detector: Detector, predictor: DefaultPredictor, images: list[Path]) -> float:
    """Print how far the file's detections are from detectron2's, and return the largest."""
    worst = 0.0
    for path in images:
        image = read_image(path)
        instances = predictor(image)["instances"].to("cpu")
        expected = Detections(
            instances.pred_boxes.tensor.numpy(),
            instances.scores.numpy(),
            instances.pred_classes.numpy(),
        )
        found = detector(image)
        worst = max(worst, difference(expected, found), difference(found, expected))
        print(f"{path}: {len(found.scores)} detections, detectron2 {len(expected.scores)}")
    print(f"{len(images)} images: largest difference {worst:.1e} (pixels and scores)")
    return worst


def time_in_turns(
    contenders: dict[str, Callable], image: np.ndarray, rounds: int, threads: int
) -> None:
    """Print the median and the range of each contender's seconds, after a warm-up."""
    seconds = {name: [] for name in contenders}
    for turn in range(rounds + 1):
        for name, detect in contenders.items():
            start = time.perf_counter()
            detect(image)
            if turn:
                seconds[name].append(time.perf_counter() - start)
    for name, values in seconds.items():
        print(
            f"{name}: {statistics.median(values):.4f} s "
            f"({min(values):.4f} to {max(values):.4f}; {rounds} rounds, threads: {threads})"
        )


def difference(some: Detections, others: Detections) -> float:
    """How far, at most, one of `some` is from the nearest of `others` of its class."""
    if not len(some.scores):
        return 0.0
    if not len(others.scores):
        return float("inf")
    a, b = (np.concatenate([x.boxes, x.scores[:, None]], axis=1) for x in (some, others))
    distance = np.abs(a[:, None] - b[None]).max(axis=2)
    distance[some.classes[:, None] != others.classes[None]] = np.inf
    return float(distance.min(axis=1).max())


def main(argv: list[str] | None = None) -> int:
    """Returns the exit status."""
    args = parse_args(argv)
    images = list_images(args.check)
    cfg = setup_cfg(args)
    cfg.MODEL.DEVICE = "cpu"
    model = load_model(cfg)
    detector = ExportableDetector(model)
    info = describe(cfg, detector, args.size, Path(args.config_file).name)
    args.output.mkdir(parents=True, exist_ok=True)
    stem = args.output / Path(args.config_file).stem
    program = capture(detector, info)
    if args.format == "onnx":
        path = write_onnx(program, info, stem)
    else:
        path = write_torch(program, info, stem)
    exported = Detector(path, threads=args.threads if args.time else None)
    print(f"{path}: {path.stat().st_size / 1e6:.1f} MB, for images of {info.canvas} pixels")
    if not images:
        return 0
    predictor = DefaultPredictor(cfg)
    worst = check(exported, predictor, images)
    if args.time:
        torch.set_num_threads(args.threads)
        contenders = {args.format: exported, "detectron2": predictor}
        time_in_turns(contenders, read_image(images[0]), args.time, args.threads)
    return 0 if worst <= TOLERANCE else 1
