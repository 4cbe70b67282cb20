#!/usr/bin/env python3
"""A contact sheet: validation images, their ground truth beside what a model detects in them."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, Metadata, MetadataCatalog
from detectron2.data.detection_utils import read_image
from detectron2.engine import DefaultPredictor
from detectron2.structures import BoxMode
from detectron2.utils.visualizer import Visualizer
from matplotlib import pyplot as plt

from hypernet_d2.engine import setup_cfg

PAIRS_PER_ROW = 2
CELL_WIDTH = 640  # pixels of one image on the sheet
LABEL_FONT, LABEL_HEIGHT = 11, 22  # points; pixels of the sheet
DPI = 160


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config-file", required=True, help="config of the model")
    parser.add_argument("--output", required=True, type=Path, help="picture to write, .png or .jpg")
    parser.add_argument("--num-images", type=int, default=8, help="images shown (default: 8)")
    parser.add_argument(
        "--score", type=float, default=0.5, help="least score that is shown (default: 0.5)"
    )
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE ..., as in train_net.py")
    args = parser.parse_args()
    if args.num_images < 1:
        parser.error(f"--num-images {args.num_images}: expected 1 or more")
    if not 0 <= args.score <= 1:
        parser.error(f"--score {args.score}: expected a number from 0 to 1")
    return args


def load_cfg(args: argparse.Namespace) -> CfgNode:
    """The config, with the score threshold set and the weights seen to be there."""
    cfg = setup_cfg(args)
    if not Path(cfg.MODEL.WEIGHTS).is_file():
        raise ValueError(f"MODEL.WEIGHTS is {cfg.MODEL.WEIGHTS!r}: expected a trained model's file")
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = args.score
    return cfg


def draw(
    image: np.ndarray, metadata: Metadata, boxes: np.ndarray, classes: list[int], texts: list[str]
) -> np.ndarray:
    """``image`` (H, W, 3, RGB), enlarged to the cell's width, with a labelled box per object.

    ``boxes`` are (n, 4), x0, y0, x1, y1 in pixels of ``image``; a class has one colour throughout.
    Not by ``Visualizer.overlay_instances``, whose labels shrink with the objects.
    """
    scale = CELL_WIDTH / image.shape[1]
    visualizer = Visualizer(image, metadata, scale=scale)
    for box, label, text in zip(boxes, classes, texts, strict=True):
        colour = matplotlib.colormaps["hsv"](label / len(metadata.thing_classes))[:3]
        visualizer.draw_box(box, alpha=1.0, edge_color=colour)
        above = box[1] - LABEL_HEIGHT / scale
        visualizer.draw_text(
            text,
            (box[0], above if above >= 0 else box[3]),
            font_size=LABEL_FONT / scale,
            color="white",
            horizontal_alignment="left",
        )
    return visualizer.output.get_image()


def draw_ground_truth(image: np.ndarray, metadata: Metadata, record: dict) -> np.ndarray:
    objects = [a for a in record["annotations"] if not a.get("iscrowd", 0)]
    boxes = [BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS) for a in objects]
    classes = [a["category_id"] for a in objects]
    texts = [metadata.thing_classes[c] for c in classes]
    return draw(image, metadata, np.asarray(boxes, dtype=float).reshape(-1, 4), classes, texts)


def draw_detections(image: np.ndarray, metadata: Metadata, predictor: DefaultPredictor):
    """The detections drawn, and how many there are."""
    instances = predictor(image[:, :, ::-1])["instances"].to("cpu")
    classes = instances.pred_classes.tolist()
    texts = [
        f"{metadata.thing_classes[c]} {score:.0%}"
        for c, score in zip(classes, instances.scores.tolist(), strict=True)
    ]
    boxes = instances.pred_boxes.tensor.numpy()
    return draw(image, metadata, boxes, classes, texts), len(instances)


def last_ap(weights: str) -> float | None:
    """Box AP that training last wrote into metrics.json beside ``weights``, if it did."""
    metrics = Path(weights).parent / "metrics.json"
    if not metrics.is_file():
        return None
    lines = [json.loads(line) for line in metrics.read_text().splitlines() if line.strip()]
    return next((line["bbox/AP"] for line in reversed(lines) if "bbox/AP" in line), None)


def make_sheet(args: argparse.Namespace, cfg: CfgNode) -> plt.Figure:
    name = cfg.DATASETS.TEST[0]
    records, metadata = DatasetCatalog.get(name), MetadataCatalog.get(name)
    # Spread over the set: neighbours in it are often alike.
    picked = np.linspace(0, len(records) - 1, min(args.num_images, len(records))).round()
    predictor = DefaultPredictor(cfg)

    rows = -(-len(picked) // PAIRS_PER_ROW)
    inches = CELL_WIDTH / DPI
    figure, axes = plt.subplots(
        rows,
        2 * PAIRS_PER_ROW,
        figsize=(2 * PAIRS_PER_ROW * inches, rows * (inches * 0.75 + 0.35) + 0.4),
        squeeze=False,
        dpi=DPI,
        layout="constrained",
    )
    for axis in axes.flat:
        axis.axis("off")
    for index, pair in zip(picked.astype(int), axes.reshape(-1, 2), strict=False):
        record = records[index]
        image = read_image(record["file_name"], format="RGB")
        pair[0].imshow(draw_ground_truth(image, metadata, record))
        pair[0].set_title(
            f"{Path(record['file_name']).name}: ground truth, {len(record['annotations'])}"
        )
        drawn, count = draw_detections(image, metadata, predictor)
        pair[1].imshow(drawn)
        pair[1].set_title(f"detections, {count}")
    figure.suptitle(title(args, cfg, name), fontsize=14)
    return figure


def title(args: argparse.Namespace, cfg: CfgNode, dataset: str) -> str:
    ap = last_ap(cfg.MODEL.WEIGHTS)
    parts = [args.config_file, f"{dataset}" + (f", AP {ap:.1f}" if ap is not None else "")]
    return "   |   ".join([*parts, f"detections with score {args.score:g} or more"])


def main() -> None:
    args = parse_args()
    figure = make_sheet(args, load_cfg(args))
    args.output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(args.output)
    print(args.output)


if __name__ == "__main__":
    main()
