#!/usr/bin/env python3
"""Exports a trained HyperNet as one file that runs without detectron2.

    python tools/export_model.py --config-file configs/BCCD-Detection/hypernet_R_18.yaml \
        --format onnx --output exported --size 240 320 MODEL.WEIGHTS output/bccd/model_final.pth

The file holds the whole detector, from the pixels to the detections, for one size of canvas, and
what hypernet_d2.deploy has to know of it. docs/DEPLOYMENT.md says more.
"""

from __future__ import annotations

import argparse
import sys
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
from hypernet_d2.deploy import Detections, Detector, ModelInfo, read_image
from hypernet_d2.deploy.metadata import KEY, OUTPUTS
from hypernet_d2.deploy.torch_runner import check_archive
from hypernet_d2.engine import HyperNetCheckpointer, setup_cfg
from hypernet_d2.modeling import ExportableDetector

INPUTS = ("image", "size", "num_proposals")
# Of scores, and of boxes in pixels: what the order of additions, or 16 bits a weight, explain.
TOLERANCE, HALF_TOLERANCE = 1e-3, 5e-2


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--config-file", required=True, help="config of the model")
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
        "--half-weights",
        action="store_true",
        help="round the weights to 16 bits, for an ONNX file of half the size; it computes with "
        "32 bits all the same",
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
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE ..., as in train_net.py")
    args = parser.parse_args(argv)
    if args.format == "torchscript":
        parser.error("--format torchscript: PyTorch gave TorchScript up for torch.export; use that")
    if args.half_weights and args.format != "onnx":
        parser.error("--half-weights goes with --format onnx")
    if args.format == "onnx":
        missing = [name for name in ("onnx", "onnxscript") if find_spec(name) is None]
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


def capture(detector: ExportableDetector, info: ModelInfo) -> torch.export.ExportedProgram:
    """The graph, without anything of the machine that it was captured on."""
    image = torch.zeros(*info.canvas, 3, dtype=torch.uint8)
    inputs = (image, torch.tensor(info.canvas), torch.tensor(info.max_proposals))
    with torch.no_grad():
        detector(*inputs)  # builds what the scorer keeps for this size of map
        program = torch.export.export(detector, inputs, strict=False)
    for module in program.graph_module.modules():
        for node in getattr(module, "graph", torch.fx.Graph()).nodes:
            for origin in ("stack_trace", "nn_module_stack", "torch_fn", "source_fn_stack"):
                node.meta.pop(origin, None)
    program.example_inputs = None
    return program


def export_torch(program: torch.export.ExportedProgram, info: ModelInfo, stem: Path) -> Path:
    """Write STEM.pt2, an archive of torch.export."""
    path = stem.with_suffix(".pt2")
    torch.export.save(program, path, extra_files={KEY: info.to_json()})
    check_archive(path.read_bytes(), path)
    return path


def export_onnx(
    program: torch.export.ExportedProgram, info: ModelInfo, stem: Path, half: bool
) -> Path:
    """Write STEM.onnx."""
    path = stem.with_suffix(".onnx")
    result = torch.onnx.export(
        program,
        dynamo=True,
        input_names=list(INPUTS),
        output_names=list(OUTPUTS),
        custom_translation_table=translations(),
        verbose=False,
    )
    model = result.model
    # Left over: names of Python's modules, and lines of code with their paths.
    for item in (*model.graph.all_nodes(), *model.graph.initializers.values()):
        item.metadata_props.clear()
    model.graph.metadata_props.clear()
    model.metadata_props.clear()
    model.metadata_props[KEY] = info.to_json()
    if half:
        store_as_half(model)
    result.save(path, external_data=False)
    return path


def translations() -> dict[Callable, Callable]:
    """ONNX for the operators that the exporter lacks, or writes down in a way that runs slowly."""
    import onnx_ir
    from onnxscript import opset20 as op

    def sort(self, stable=True, dim=-1, descending=False):
        # TopK takes equal values in their order, as a stable sort does.
        size = op.Constant(value_ints=[int(self.shape[dim])])
        return op.TopK(self, size, axis=dim, largest=int(descending), sorted=1)

    def roi_pool(x, rois, spatial_scale, pooled_height, pooled_width):
        shape = (pooled_height, pooled_width)
        pooled = op.MaxRoiPool(x, rois, pooled_shape=shape, spatial_scale=spatial_scale)
        return pooled, pooled  # in torchvision the second tells where the maxima are; unused

    def unfold(self, dimension, size, step):
        rank = len(self.shape)
        dim = dimension % rank
        first = np.arange(0, self.shape[dim] - size + 1, step)
        index = op.Constant(value=onnx_ir.tensor(first[:, None] + np.arange(size)))
        # Gathered along the first dimension, whole rows are copied instead of single values.
        front = op.Transpose(self, perm=[dim, *(i for i in range(rank) if i != dim)])
        windows = op.Gather(front, index, axis=0)
        rest = [i + 2 for i in range(rank - 1)]
        return op.Transpose(windows, perm=[*rest[:dim], 0, *rest[dim:], 1])

    return {
        torch.ops.aten.sort.stable: sort,
        torch.ops.torchvision.roi_pool.default: roi_pool,
        torch.ops.aten.unfold.default: unfold,
    }


def store_as_half(model) -> None:
    """Keep the large constants of an ONNX graph in 16 bits, and widen them when it is loaded."""
    import onnx_ir

    for name, value in list(model.graph.initializers.items()):
        if value.dtype != onnx_ir.DataType.FLOAT or value.const_value.size < 1024:
            continue
        stored = onnx_ir.Value(
            name=f"{name}_half",
            const_value=onnx_ir.tensor(value.const_value.numpy().astype(np.float16)),
        )
        cast = onnx_ir.node("Cast", [stored], attributes={"to": onnx_ir.DataType.FLOAT})
        cast.outputs[0].dtype, cast.outputs[0].shape = value.dtype, value.shape
        value.replace_all_uses_with(cast.outputs[0])
        del model.graph.initializers[name]
        model.graph.initializers[stored.name] = stored
        model.graph.insert_before(model.graph[0], cast)


def list_images(paths: list[Path]) -> list[Path]:
    """The images that `paths` name, those of a folder in the order of their names."""
    images = []
    for path in paths:
        found = sorted(path.glob("*.[jp][pn]*g")) if path.is_dir() else [path]
        if not found:
            raise ValueError(f"--check {path}: no .jpg, .jpeg or .png in this folder")
        images += found
    return images


def check(detector: Detector, cfg: CfgNode, images: list[Path], tolerance: float) -> bool:
    """Print how far the file's detections are from detectron2's; False beyond the tolerance."""
    predictor = DefaultPredictor(cfg)
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
    print(f"{len(images)} images: largest difference {worst:.1e}, tolerance {tolerance}")
    return worst <= tolerance


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
        path = export_onnx(program, info, stem, args.half_weights)
    else:
        path = export_torch(program, info, stem)
    exported = Detector(path)
    print(f"{path}: {path.stat().st_size / 1e6:.1f} MB, for images of {info.canvas} pixels")
    tolerance = HALF_TOLERANCE if args.half_weights else TOLERANCE
    return 0 if not images or check(exported, cfg, images, tolerance) else 1


if __name__ == "__main__":
    sys.exit(main())
