"""Exports a trained model in each format, and measures the files beside detectron2.

Each contender runs in a process of its own, once for each number of threads, on the images of
DATASETS.TEST. The table has the seconds of an image, the size of the file, the memory that the
model adds to the process at its peak, the largest difference of a box (pixels) or score to
detectron2, and the AP. int8 is calibrated with images of DATASETS.TRAIN.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data.datasets.coco import convert_to_coco_dict
from tabulate import tabulate

from hypernet_d2.data import load_dataset
from hypernet_d2.deploy import Detections, read_image
from hypernet_d2.deploy.benchmark import Figures, measure_calls, measure_file
from hypernet_d2.deploy.evaluate import evaluate
from hypernet_d2.engine import Predictor, add_data_argument, setup_cfg
from hypernet_d2.utils.coco_json import CheckedCOCO

from .. import export
from ..arguments import add_config_arguments
from ..export_checks import difference

__all__ = ["add_arguments", "check_arguments", "run"]

DETECTRON2 = "detectron2"
# Name: (arguments of the export, runtime, the module that it needs).
CONTENDERS = {
    "onnx": (["--format", "onnx"], "onnxruntime", "onnxruntime"),
    "onnx, OpenVINO": (["--format", "onnx"], "openvino", "openvino"),
    "onnx float16": (
        ["--format", "onnx", "--quantize", "float16"], "onnxruntime", "onnxruntime"),
    "onnx int8": (["--format", "onnx", "--quantize", "int8"], "onnxruntime", "onnxruntime"),
    "onnx int8, OpenVINO": (["--format", "onnx", "--quantize", "int8"], "openvino", "openvino"),
    "onnx, resizes": (["--format", "onnx", "--resize-in-file"], "onnxruntime", "onnxruntime"),
    "torch_export": (["--format", "torch_export"], "torch", "torch"),
    "torch_export, compiled": (["--format", "torch_export"], "torch.compile", "torch"),
}  # fmt: skip


@dataclass
class Row:
    """The figures of a contender with a number of threads."""

    name: str
    threads: int
    size_mb: float
    figures: Figures


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config_arguments(parser)
    add_data_argument(parser)
    parser.add_argument("--only", nargs="+", choices=[DETECTRON2, *CONTENDERS], metavar="NAME",
                        help=f"contenders of {', '.join(CONTENDERS)} (default: all)")  # fmt: skip
    parser.add_argument("--size", type=int, nargs=2, metavar=("H", "W"), help="canvas, see export")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="(default: 1 2)")
    parser.add_argument("--images", type=int, help="number of test images (default: all)")
    parser.add_argument("--calls", type=int, default=30, help="timed calls (default: 30)")
    parser.add_argument("--calibration-images", type=int, default=50, help="(default: 50)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="file for all measurements")
    parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE")


def check_arguments(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    numbers = [*args.threads, args.calls, args.calibration_images, args.images or 1]
    if min(numbers) < 1:
        parser.error("--threads, --images, --calls, --calibration-images: expected 1 or more")


def run(args: argparse.Namespace) -> None:
    cfg = setup_cfg(args)
    cfg.MODEL.DEVICE = "cpu"
    test = load_dataset(cfg.DATASETS.TEST[0])[: args.images]
    images = [read_image(record["file_name"]) for record in test]
    names = [name for name in CONTENDERS if not args.only or name in args.only]
    with tempfile.TemporaryDirectory() as folder:
        files = export_files(args, cfg, names, Path(folder))
        coco = _index(cfg.DATASETS.TEST[0], test, Path(folder) / "annotations.json")
        rows = []
        for threads in args.threads:
            weights = Path(cfg.MODEL.WEIGHTS).stat().st_size / 1e6
            figures = _in_process(threads, _measure_detectron2, cfg, images, threads, args.calls)
            rows.append(Row(DETECTRON2, threads, weights, figures))
            for name, path in files.items():
                runtime, size = CONTENDERS[name][1], path.stat().st_size / 1e6
                arguments = (path, images, threads, args.calls, runtime)
                figures = _in_process(threads, measure_file, *arguments)
                rows.append(Row(name, threads, size, figures))
    report(rows, coco, args)


def export_files(
    args: argparse.Namespace, cfg: CfgNode, names: list[str], folder: Path
) -> dict[str, Path]:
    """The file of each contender; those that need a missing package are named and left out."""
    files, written = {}, {}
    for name in names:
        words, _, module = CONTENDERS[name]
        if find_spec(module) is None:
            print(f"{name}: left out, {module} is not installed")
            continue
        key = tuple(words)
        if key not in written:
            words = ["--config-file", args.config_file, *words, "--output", str(folder / name)]
            if args.size:
                words += ["--size", *map(str, args.size)]
            if "int8" in words:
                train = load_dataset(cfg.DATASETS.TRAIN[0])
                step = max(1, len(train) // args.calibration_images)
                for record in train[::step][: args.calibration_images]:
                    words += ["--calibration", record["file_name"]]
            export_args = export.parse_args(words)
            written[key] = export.export(export_args, cfg)
        files[name] = written[key]
    return files


def report(rows: list[Row], coco: CheckedCOCO, args: argparse.Namespace) -> None:
    """Print the table, and write ``args.json`` if given."""
    expected = rows[0].figures.detections
    table = []
    for row in rows:
        found = row.figures.detections
        pairs = zip(expected, found, strict=True)
        distance = max(max(difference(a, b), difference(b, a)) for a, b in pairs)
        metrics = evaluate(coco, dict(zip(sorted(coco.imgs), found, strict=True)))
        seconds = row.figures.seconds
        table.append(
            {
                "": row.name,
                "threads": row.threads,
                "seconds": round(float(np.median(seconds)), 4),
                "fastest": round(min(seconds), 4),
                "slowest": round(max(seconds), 4),
                "file (MB)": round(row.size_mb, 1),
                "memory (MB)": round(row.figures.memory),
                "difference": float(f"{distance:.1e}"),
                "AP": round(metrics["AP"], 2),
                "AP50": round(metrics["AP50"], 2),
            }
        )
    print(f"{len(expected)} images, median of {args.calls} calls, torch {torch.__version__}\n")
    print(tabulate(table, headers="keys", tablefmt="github"))
    if args.json:
        args.json.write_text(json.dumps(table, indent=2) + "\n")


def _in_process(threads: int, function: Callable[..., Figures], *arguments) -> Figures:
    """The result of a call in a new process, which has this number of threads."""
    os.environ["OMP_NUM_THREADS"] = str(threads)  # read by the libraries of the new process
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def _measure_detectron2(
    cfg: CfgNode, images: list[np.ndarray], threads: int, calls: int
) -> Figures:
    torch.set_num_threads(threads)

    def load() -> Callable[[np.ndarray], Detections]:
        predictor = Predictor(cfg)

        def detect(image: np.ndarray) -> Detections:
            found = predictor(image)["instances"]
            return Detections(
                found.pred_boxes.tensor.numpy(), found.scores.numpy(), found.pred_classes.numpy()
            )

        return detect

    return measure_calls(load, images, calls)


def _index(name: str, records: list[dict], path: Path) -> CheckedCOCO:
    """pycocotools' index of the first records of a registered set."""
    content = convert_to_coco_dict(name)
    # Numbered in the order of the set, as the detections are.
    keys = {str(record["image_id"]): k for k, record in enumerate(records)}
    content["images"] = [
        {**image, "id": keys[str(image["id"])]}
        for image in content["images"]
        if str(image["id"]) in keys
    ]
    content["annotations"] = [
        {**one, "image_id": keys[str(one["image_id"])]}
        for one in content["annotations"]
        if str(one["image_id"]) in keys
    ]
    path.write_text(json.dumps(content))
    return CheckedCOCO(str(path), evaluated=True)
