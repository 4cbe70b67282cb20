"""Exports a trained detector as one file that runs without detectron2.

The file contains the whole detector, from pixels to detections, with the names of the classes.
hypernet_d2.deploy runs it; docs/DEPLOYMENT.md has the details.
"""

from __future__ import annotations

import argparse
import tempfile
from importlib.util import find_spec
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch import nn

from hypernet_d2.checkpoint import HyperNetCheckpointer
from hypernet_d2.deploy import Detector, read_image
from hypernet_d2.engine import Predictor, add_data_argument, setup_cfg
from hypernet_d2.export import (
    SCORE_THRESHOLDS,
    ExportableDetector,
    capture,
    class_names,
    describe,
    find_canvas,
    quantize_int8,
    read_score_thresholds,
    write_onnx,
    write_torch,
)

from .arguments import CommandParser, add_config_arguments
from .export_checks import check, expand_folders, time_alternating


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
    parser.add_argument(
        "--quantize",
        choices=("float16", "int8"),
        help="onnx: store the weights as 16-bit floats, or compute the convolutions with 8-bit "
        "integers, whose ranges are those in the --calibration images. Detections change, so that "
        "--check only reports the differences",
    )
    parser.add_argument(
        "--calibration",
        action="append",
        default=[],
        type=Path,
        metavar="IMAGE|FOLDER",
        help="of --quantize int8: 50 or more training images; may be repeated",
    )
    parser.add_argument(
        "--resize-in-file",
        action="store_true",
        help="onnx: the file takes images as they are, and resizes and pads them itself, which "
        "differs a little from Pillow, so that --check only reports the differences",
    )
    parser.add_argument(
        "--score-thresholds",
        type=Path,
        metavar="JSON",
        help='{"class name": threshold}, the default thresholds of the file (default: '
        f"{SCORE_THRESHOLDS} beside the weights or in OUTPUT_DIR, where it is)",
    )
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
    if args.format != "onnx" and (args.quantize or args.resize_in_file):
        parser.error("--quantize and --resize-in-file are for --format onnx")
    if (args.quantize == "int8") != bool(args.calibration):
        parser.error("--quantize int8 and --calibration FOLDER go together")
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


def find_score_thresholds(args: argparse.Namespace, cfg: CfgNode) -> Path | None:
    """The file of ``--score-thresholds``, else the one beside the weights or in OUTPUT_DIR."""
    if args.score_thresholds:
        if not args.score_thresholds.is_file():
            raise FileNotFoundError(f"--score-thresholds {args.score_thresholds}: no such file")
        return args.score_thresholds
    folders = (Path(cfg.MODEL.WEIGHTS).parent, Path(cfg.OUTPUT_DIR))
    paths = (folder / SCORE_THRESHOLDS for folder in folders)
    return next((path for path in paths if path.is_file()), None)


def export(args: argparse.Namespace, cfg: CfgNode) -> Path:
    """Write the file of the arguments and the config; returns its path."""
    model = load_model(cfg)
    detector = ExportableDetector(model, find_canvas(cfg, model, args.size))
    classes, thresholds = class_names(cfg, model), ()
    path = find_score_thresholds(args, cfg)
    if path:
        thresholds = read_score_thresholds(path, classes, cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST)
        print(f"{path}: the default score thresholds of the exported file")
    config = Path(args.config_file)
    info = describe(
        cfg,
        detector,
        classes=classes,
        config=config.name,
        score_thresholds=thresholds,
        resizes=args.resize_in_file,
    )
    program = capture(detector)
    args.output.mkdir(parents=True, exist_ok=True)
    stem = args.output / config.stem
    if args.format == "torch_export":
        return write_torch(program, info, stem)
    if args.quantize is None:
        return write_onnx(program, info, stem)
    stem = stem.with_name(f"{stem.name}_{args.quantize}")
    if args.quantize == "float16":
        return write_onnx(program, info, stem, half_weights=True)
    with tempfile.TemporaryDirectory() as folder:
        source = write_onnx(program, info, Path(folder) / "float32")
        target = stem.with_name(f"{stem.name}.onnx")
        quantize_int8(source, target, map(read_image, args.calibration))
    return target


def main(argv: list[str] | None = None) -> int:
    """Returns the exit status."""
    args = parse_args(argv)
    images = expand_folders(args.check)
    args.calibration = expand_folders(args.calibration)
    cfg = setup_cfg(args)
    cfg.MODEL.DEVICE = "cpu"
    path = export(args, cfg)
    exported = Detector(path, threads=args.threads if args.time else None)
    info = exported.info
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
    return 0 if same or args.quantize or args.resize_in_file else 1
