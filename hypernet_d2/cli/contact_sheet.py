"""A contact sheet: validation images, their ground truth beside what a model detects in them."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import Metadata, MetadataCatalog
from matplotlib import pyplot as plt

from hypernet_d2.data import load_dataset
from hypernet_d2.data.dataset_mapper import read_named
from hypernet_d2.engine import Predictor, add_data_argument, setup_cfg
from hypernet_d2.engine.visualizer import BoxVisualizer

PAIRS_PER_ROW = 2
CELL_WIDTH = 640  # pixels of one image on the sheet
DPI = 160


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config-file", required=True, help="config of the model")
    parser.add_argument("--output", required=True, type=Path, help="picture to write, .png or .jpg")
    parser.add_argument("--num-images", type=int, default=8, help="images shown (default: 8)")
    parser.add_argument(
        "--score", type=float, default=0.5, help="least score that is shown (default: 0.5)"
    )
    add_data_argument(parser)
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE ..., as in train_net.py")
    args = parser.parse_args(argv)
    if args.num_images < 1:
        parser.error(f"--num-images {args.num_images}: expected 1 or more")
    if not 0 <= args.score <= 1:
        parser.error(f"--score {args.score}: expected a number from 0 to 1")
    return args


def load_cfg(args: argparse.Namespace) -> CfgNode:
    """The config, with the score threshold set."""
    cfg = setup_cfg(args)
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = args.score
    return cfg


def draw_ground_truth(image: np.ndarray, metadata: Metadata, record: dict) -> np.ndarray:
    objects = [a for a in record["annotations"] if not a.get("iscrowd", 0)]
    visualizer = BoxVisualizer(image, metadata, scale=CELL_WIDTH / image.shape[1])
    return visualizer.draw_dataset_dict({"annotations": objects}).get_image()


def draw_detections(image: np.ndarray, predictor: Predictor):
    """The detections drawn, and how many there are."""
    instances = predictor(image[:, :, ::-1])["instances"].to("cpu")
    visualizer = BoxVisualizer(image, predictor.metadata, scale=CELL_WIDTH / image.shape[1])
    return visualizer.draw_instance_predictions(instances).get_image(), len(instances)


def last_ap(weights: str) -> float | None:
    """Box AP that training last wrote into metrics.json beside ``weights``, if it did."""
    metrics = Path(weights).parent / "metrics.json"
    if not metrics.is_file():
        return None
    lines = [json.loads(line) for line in metrics.read_text().splitlines() if line.strip()]
    return next((line["bbox/AP"] for line in reversed(lines) if "bbox/AP" in line), None)


def make_sheet(args: argparse.Namespace, cfg: CfgNode) -> plt.Figure:
    name = cfg.DATASETS.TEST[0]
    predictor = Predictor(cfg)
    # The class numbers of the set may be others than the model's.
    records, metadata = load_dataset(name), MetadataCatalog.get(name)
    # Spread over the set: neighbours in it are often alike.
    picked = np.linspace(0, len(records) - 1, min(args.num_images, len(records))).round()

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
        image = read_named(record["file_name"], format="RGB")
        pair[0].imshow(draw_ground_truth(image, metadata, record))
        pair[0].set_title(
            f"{Path(record['file_name']).name}: ground truth, {len(record['annotations'])}"
        )
        drawn, count = draw_detections(image, predictor)
        pair[1].imshow(drawn)
        pair[1].set_title(f"detections, {count}")
    figure.suptitle(title(args, cfg, name), fontsize=14)
    return figure


def title(args: argparse.Namespace, cfg: CfgNode, dataset: str) -> str:
    ap = last_ap(cfg.MODEL.WEIGHTS)
    parts = [args.config_file, f"{dataset}" + (f", AP {ap:.1f}" if ap is not None else "")]
    return "   |   ".join([*parts, f"detections with score {args.score:g} or more"])


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    figure = make_sheet(args, load_cfg(args))
    args.output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(args.output)
    print(args.output)
