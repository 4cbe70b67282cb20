"""Measures what tiles gain: trains on tiles and on resized images, and evaluates whole images.

In --output two models are trained with one config, "tiles" (MODEL.HYPERNET.TILES.TRAIN_SIZE) and
"resized"; one that is there already is kept. Each is evaluated on the validation images through
tiles and resized. The table has AP and AP50 in percent, AP by size, and the recall of all
detections at an IoU of 0.5 (AR50), and its mean over the IoUs from 0.5 to 0.95 (AR). --opts apply
to all.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from tabulate import tabulate

from hypernet_d2.cli.arguments import CommandParser
from hypernet_d2.data import load_dataset, register_own_data
from hypernet_d2.evaluation.coco import records_to_coco

ROOT = Path(__file__).resolve().parents[1]
METRICS = ("AP", "AP50", "APs", "APm", "APl")
KEY = "MODEL.HYPERNET.TILES"


def parse_args(argv: list[str]) -> argparse.Namespace:
    parser = CommandParser(
        __doc__, "--data output/large_digits --tile 480 --overlap 64 --output output/tiling"
    )
    parser.add_argument("--data", required=True, help="data of one's own, with a validation split")
    parser.add_argument(
        "--config", default="Custom-Detection/hypernet_R_18", help="of the model zoo (%(default)s)"
    )
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--tile", type=int, default=640, help="side in pixels (%(default)s)")
    parser.add_argument("--overlap", type=int, default=128, help="in pixels (%(default)s)")
    parser.add_argument("--opts", nargs=argparse.REMAINDER, default=[], help="KEY VALUE ...")
    return parser.parse_args(argv)


def run(args: argparse.Namespace, folder: Path, *words: object) -> None:
    """Run train_net.py on the data, with its output in ``folder``."""
    flags = [word for word in words if str(word).startswith("--")]
    opts = [word for word in words if word not in flags]
    command = [
        sys.executable, ROOT / "train_net.py", "--config", args.config, "--data", args.data, *flags,
        *args.opts, f"{KEY}.OVERLAP", args.overlap, *opts, "OUTPUT_DIR", folder,
    ]  # fmt: skip
    command = [str(word) for word in command]
    print(" ".join(command), flush=True)
    subprocess.run(command, check=True)


def read_truth(data: str) -> tuple[str, COCO]:
    """The name of the validation split, and pycocotools' index of it."""
    name = register_own_data(data).test[0]
    truth = COCO()
    truth.dataset = records_to_coco(load_dataset(name, evaluated=True), name)
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
    return name, truth


def measure(folder: Path, truth: COCO) -> dict[str, float]:
    """The metrics of an evaluation, from the files that it has left in its folder."""
    results = json.loads((folder / "results.json").read_text())
    (found,) = results.values()
    metrics = {key: found["bbox"].get(key) for key in METRICS}
    detections = json.loads((folder / "inference/coco_instances_results.json").read_text())
    most = max(np.unique([one["image_id"] for one in detections], return_counts=True)[1], default=0)
    with contextlib.redirect_stdout(io.StringIO()):
        # loadRes does not take an empty list.
        found = truth.loadRes(detections) if detections else COCO()
        evaluation = COCOeval(truth, found, "bbox")
        evaluation.params.maxDets = [int(most)]
        evaluation.evaluate()
        evaluation.accumulate()
    recall = evaluation.eval["recall"][:, :, 0, 0]  # (IoUs, classes), of all areas
    recall = np.where(recall < 0, np.nan, recall)
    metrics |= {"AR50": 100 * np.nanmean(recall[0]), "AR": 100 * np.nanmean(recall)}
    return metrics | {"detections": len(detections)}


def main(argv: list[str]) -> None:
    args = parse_args(argv)
    name, truth = read_truth(args.data)
    rows = []
    for trained, size in (("tiles", args.tile), ("resized", 0)):
        folder = args.output / trained
        weights = folder / "model_final.pth"
        if not weights.is_file():
            run(args, folder, f"{KEY}.TRAIN_SIZE", size)
        for tested, size in (("tiles", args.tile), ("resized", 0)):
            results = args.output / f"{trained}_{tested}"
            opts = f"{KEY}.SIZE", size, "DATASETS.TEST", (name,), "MODEL.WEIGHTS", weights
            run(args, results, "--eval-only", *opts)
            rows.append({"trained on": trained, "tested on": tested, **measure(results, truth)})
    (args.output / "tiling.json").write_text(json.dumps(rows, indent=2))
    print(tabulate(rows, "keys", tablefmt="github", floatfmt=".1f", missingval="-"))


if __name__ == "__main__":
    from hypernet_d2_cli import run as run_command

    sys.exit(run_command(main))
