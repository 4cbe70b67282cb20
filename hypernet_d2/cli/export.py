"""Exports a trained HyperNet as one file that runs without detectron2.

The file contains the whole detector, from pixels to detections, with the names of the classes.
hypernet_d2.deploy runs it; docs/DEPLOYMENT.md has the details.
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
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.engine import DefaultPredictor
from detectron2.modeling import build_model
from torch import nn

import hypernet_d2
from hypernet_d2.checkpoint import HyperNetCheckpointer, get_class_names
from hypernet_d2.data import load_dataset
from hypernet_d2.deploy import Detections, Detector, ModelInfo, read_image
from hypernet_d2.engine import Predictor, add_data_argument, setup_cfg
from hypernet_d2.export import (
    ExportableDetector,
    capture,
    size_divisibility,
    write_onnx,
    write_torch,
)
from hypernet_d2.utils.images import IMAGE_SUFFIXES, list_images

from .arguments import CommandParser, add_config_arguments

# Largest difference to detectron2 in pixels and scores, due to the order of float additions.
TOLERANCE = 1e-3


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = CommandParser(
        __doc__,
        "--config Digits-Detection/hypernet_R_18_demo --format onnx --output exported "
        "--size 240 320 MODEL.WEIGHTS output/digits/model_final.pth",
    )
    add_config_arguments(parser)
    add_data_argument(parser)
    parser.add_argument("--format", required=True, choices=("onnx", "torch_export", "torchscript"))
    parser.add_argument("--output", required=True, type=Path, help="folder for the file")
    parser.add_argument(
        "--size",
        type=int,
        nargs=2,
        metavar=("H", "W"),
        help="canvas, the largest resized image in pixels; larger ones are scaled down further "
        "(default: INPUT.MAX_SIZE_TEST for both, which fits images of any aspect ratio). A smaller "
        "canvas is faster",
    )
    parser.add_argument(
        "--check",
        action="append",
        default=[],
        type=Path,
        metavar="IMAGE|FOLDER",
        help="image, or folder of images, to compare the file's detections with detectron2's; may "
        "be repeated. Exit status 1 if they differ",
    )
    parser.add_argument(
        "--time",
        type=int,
        default=0,
        metavar="ROUNDS",
        help="time the file and detectron2, alternating, on the first --check image",
    )
    parser.add_argument("--threads", type=int, default=1, help="of --time (default: 1)")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE ..., as in train_net.py")
    args = parser.parse_args(argv)
    if args.format == "torchscript":
        parser.error("--format torchscript: TorchScript is deprecated in PyTorch; use torch_export")
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
        needed = ("onnx", "onnxscript", "onnxruntime")  # the last one loads the written file
        missing = [name for name in needed if find_spec(name) is None]
        if missing:
            parser.error(f"--format onnx: pip install {' '.join(missing)}")
    return args


def load_model(cfg: CfgNode) -> nn.Module:
    """The trained model, in evaluation mode."""
    if not Path(cfg.MODEL.WEIGHTS).is_file():
        raise ValueError(f"MODEL.WEIGHTS is {cfg.MODEL.WEIGHTS!r}: expected a trained model's file")
    model = build_model(cfg).eval()
    HyperNetCheckpointer(model, strict=True).load(cfg.MODEL.WEIGHTS)
    return model


def class_names(cfg: CfgNode, model: nn.Module) -> tuple[str, ...]:
    """The names of the classes: those in the checkpoint, else those of ``DATASETS.TEST``.

    Raises:
        ValueError: if neither has as many names as the model has classes.
    """
    names = get_class_names(model)
    name = cfg.DATASETS.TEST[0] if cfg.DATASETS.TEST else ""
    if names is None and name:
        if not MetadataCatalog.get(name).get("thing_classes") and name in DatasetCatalog:
            load_dataset(name)  # sets the names
        names = MetadataCatalog.get(name).get("thing_classes")
    expected = cfg.MODEL.ROI_HEADS.NUM_CLASSES
    if names is None:
        raise ValueError(
            f"the checkpoint has no class names, and DATASETS.TEST names {name!r}, which is not "
            "registered: --data PATH registers it"
        )
    if len(names) != expected:
        raise ValueError(
            f"DATASETS.TEST names {name!r}, of {len(names)} classes, but "
            f"MODEL.ROI_HEADS.NUM_CLASSES is {expected}"
        )
    return tuple(names)


def describe(cfg: CfgNode, model: nn.Module, size: list[int] | None, name: str) -> ModelInfo:
    """The metadata of the file. The canvas is ``size``, rounded up to the size divisibility."""
    size = size or [cfg.INPUT.MAX_SIZE_TEST] * 2
    if min(size) < 1:
        raise ValueError(f"--size {size[0]} {size[1]}: expected positive numbers of pixels")
    divisor = size_divisibility(model)
    return ModelInfo(
        classes=class_names(cfg, model),
        input_format=cfg.INPUT.FORMAT,
        canvas=tuple(-(-side // divisor) * divisor for side in size),
        size_divisibility=divisor,
        min_size=cfg.INPUT.MIN_SIZE_TEST,
        max_size=cfg.INPUT.MAX_SIZE_TEST,
        score_threshold=cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST,
        max_proposals=cfg.MODEL.RPN.POST_NMS_TOPK_TEST,
        max_detections=cfg.TEST.DETECTIONS_PER_IMAGE,
        feature_stride=model.proposal_generator.scorer.grid.feature_stride,
        config=name,
        version=hypernet_d2.__version__,
    )


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
        instances = predictor(image)["instances"].to("cpu")
        expected = Detections(
            instances.pred_boxes.tensor.numpy(),
            instances.scores.numpy(),
            instances.pred_classes.numpy(),
        )
        found = detector(image)
        largest = max(difference(expected, found), difference(found, expected))
        reason = detector.info.canvas_conflict(image.shape[:2])
        if largest > TOLERANCE or reason:
            differ.append(path)
            reason = f"; DIFFERS{': ' if reason else ''}{reason}"
        print(
            f"{path}: {len(found.scores)} detections, detectron2 {len(expected.scores)}, largest "
            f"difference {largest:.1e} (pixels and scores){reason}"
        )
    print(f"{len(images)} images, {len(differ)} with a difference above {TOLERANCE:g}")
    return not differ


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
    rows_a, rows_b = (np.concatenate([x.boxes, x.scores[:, None]], axis=1) for x in (a, b))
    distance = np.abs(rows_a[:, None] - rows_b[None]).max(axis=2)
    distance[a.classes[:, None] != b.classes[None]] = np.inf
    return float(distance.min(axis=1).max())


def main(argv: list[str] | None = None) -> int:
    """Returns the exit status."""
    args = parse_args(argv)
    images = expand_folders(args.check)
    cfg = setup_cfg(args)
    cfg.MODEL.DEVICE = "cpu"
    model = load_model(cfg)
    info = describe(cfg, model, args.size, Path(args.config_file).name)
    program = capture(ExportableDetector(model, info.canvas))
    args.output.mkdir(parents=True, exist_ok=True)
    write = write_onnx if args.format == "onnx" else write_torch
    path = write(program, info, args.output / Path(args.config_file).stem)
    exported = Detector(path, threads=args.threads if args.time else None)
    print(
        f"{path}: {path.stat().st_size / 1e6:.1f} MB, {len(info.classes)} classes, canvas "
        f"{info.canvas[0]} x {info.canvas[1]} pixels (height x width)"
    )
    if not images:
        return 0
    predictor = Predictor(cfg)
    same = check(exported, predictor, images)
    if args.time:
        torch.set_num_threads(args.threads)
        detectors = {args.format: exported, "detectron2": predictor}
        time_alternating(detectors, read_image(images[0]), args.time, args.threads)
    return 0 if same else 1
