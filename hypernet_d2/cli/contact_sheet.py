"""Draws images of the test set on one sheet, ground truth beside the detections of a model.

The images are evenly spaced in the first set of DATASETS.TEST.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from detectron2.data import Metadata, MetadataCatalog
from PIL import Image

from hypernet_d2.data import load_dataset
from hypernet_d2.data.dataset_mapper import read_named
from hypernet_d2.engine import Predictor, add_data_argument, setup_cfg
from hypernet_d2.engine.visualizer import BoxVisualizer
from hypernet_d2.utils.drawing import make_sheet

from .arguments import CommandParser, add_config_arguments

PAIRS_PER_ROW = 2
CELL_WIDTH = 480  # pixels of one image on the sheet


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = CommandParser(
        __doc__,
        "--config Digits-Detection/hypernet_R_18_demo --output sheet.png "
        "MODEL.WEIGHTS output/digits/model_final.pth",
    )
    add_config_arguments(parser)
    parser.add_argument("--output", required=True, type=Path, help="picture to write, .png or .jpg")
    parser.add_argument("--num-images", type=int, default=8, help="number of images (default: 8)")
    parser.add_argument(
        "--score", type=float, default=0.5, help="minimum score of a detection (default: 0.5)"
    )
    add_data_argument(parser)
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE ..., as in train_net.py")
    args = parser.parse_args(argv)
    if args.num_images < 1:
        parser.error(f"--num-images {args.num_images}: expected 1 or more")
    if not 0 <= args.score <= 1:
        parser.error(f"--score {args.score}: expected a number from 0 to 1")
    if args.output.suffix.lower() not in (".png", ".jpg", ".jpeg"):
        parser.error(f"--output {args.output}: expected a name that ends in .png or .jpg")
    return args


def draw_ground_truth(image: np.ndarray, metadata: Metadata, record: dict) -> np.ndarray:
    """The boxes of a record of the data set of ``metadata``, drawn on (H, W, 3), RGB."""
    objects = [
        {key: a[key] for key in ("bbox", "bbox_mode", "category_id")}  # without masks
        for a in record["annotations"]
        if not a.get("iscrowd", 0)
    ]
    visualizer = BoxVisualizer(image, metadata, scale=CELL_WIDTH / image.shape[1])
    return visualizer.draw_dataset_dict({"annotations": objects}).get_image()


def draw_detections(image: np.ndarray, predictor: Predictor) -> tuple[np.ndarray, int]:
    """The detections drawn on (H, W, 3), RGB, and their number."""
    instances = predictor(image[:, :, ::-1])["instances"].to("cpu")
    visualizer = BoxVisualizer(image, predictor.metadata, scale=CELL_WIDTH / image.shape[1])
    return visualizer.draw_instance_predictions(instances).get_image(), len(instances)


def last_ap(weights: str) -> float | None:
    """The last box AP in metrics.json beside ``weights``, if there is one."""
    metrics = Path(weights).parent / "metrics.json"
    if not metrics.is_file():
        return None
    lines = [json.loads(line) for line in metrics.read_text().splitlines() if line.strip()]
    return next((line["bbox/AP"] for line in reversed(lines) if "bbox/AP" in line), None)


def draw_sheet(predictor: Predictor, num_images: int, heading: str) -> np.ndarray:
    """(H, W, 3), RGB."""
    name = predictor.cfg.DATASETS.TEST[0]
    records, metadata = load_dataset(name), MetadataCatalog.get(name)
    indices = np.linspace(0, len(records) - 1, min(num_images, len(records))).round().astype(int)
    pictures, titles = [], []
    for record in (records[i] for i in indices):
        image = read_named(record["file_name"], format="RGB")
        drawn, count = draw_detections(image, predictor)
        pictures += [draw_ground_truth(image, metadata, record), drawn]
        file_name = Path(record["file_name"]).name
        titles.append(f"{file_name}: ground truth, {len(record['annotations'])}")
        titles.append(f"detections, {count}")
    return make_sheet(pictures, titles, columns=2 * PAIRS_PER_ROW, heading=heading)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    cfg = setup_cfg(args)
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = args.score
    predictor = Predictor(cfg)
    ap = last_ap(cfg.MODEL.WEIGHTS)
    heading = f"{args.config_file}   |   {cfg.DATASETS.TEST[0]}"
    heading += f", AP {ap:.1f}" if ap is not None else ""
    heading += f"   |   detections with a score of at least {args.score:g}"
    sheet = draw_sheet(predictor, args.num_images, heading)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(sheet).save(args.output)
    print(args.output)
