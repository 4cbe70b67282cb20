"""Draws a data set's boxes before training, counts them, and lists those that look wrong.

    python tools/visualize_data.py --data my_data.py --dataset my_train --output output/my_train

Pictures go into ``--output``: the images with suspicious boxes first, then others, spread over the
set. On the pictures a suspicious box says what is odd about it.
"""

from __future__ import annotations

import argparse
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Boxes, BoxMode, pairwise_iou
from PIL import Image
from tqdm import tqdm

from hypernet_d2.data import load_dataset
from hypernet_d2.data.dataset_mapper import read_named
from hypernet_d2.engine import add_data_argument, register_data
from hypernet_d2.engine.visualizer import BoxVisualizer

# COCO's bounds between small, medium and large: areas in pixels of the image.
SIZES = {"small": 32**2, "medium": 96**2, "large": float("inf")}
LEAST_BOXES = 20  # of a category, to tell which sizes are usual in it
LEAST_SIDE = 4  # pixels
MOST_ELONGATED = 10
ALMOST_ALL = 0.95  # of the image's area
DUPLICATE_IOU = 0.95
PICTURE_SIDE = 800  # pixels: smaller images are enlarged to it
SHOWN = 20  # suspicious boxes that are printed


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dataset", required=True, help="name of the registered data set")
    parser.add_argument("--output", required=True, type=Path, help="folder for the pictures")
    parser.add_argument("--num-images", type=int, default=20, help="most pictures (default: 20)")
    add_data_argument(parser)
    args = parser.parse_args(argv)
    if args.num_images < 1:
        parser.error(f"--num-images {args.num_images}: expected 1 or more")
    return args


def load(name: str) -> list[dict]:
    """The set's records.

    Raises:
        ValueError: no set has the name, or it holds no image.
    """
    if name not in DatasetCatalog:
        raise ValueError(
            f"no data set is called {name!r}; registered are {', '.join(sorted(DatasetCatalog))}"
        )
    records = load_dataset(name, keep_odd_boxes=True)
    if not records:
        raise ValueError(f"data set {name!r} holds no image")
    return records


def boxes_of(record: dict) -> np.ndarray:
    """(n, 4), x0, y0, x1, y1 in pixels."""
    boxes = [
        BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS) for a in record["annotations"]
    ]
    return np.asarray(boxes, dtype=float).reshape(-1, 4)


def usual_sides(records: list[dict]) -> dict[int, tuple[float, float]]:
    """For each category the least and the largest side (root of the area) that is not far out.

    By Tukey's outer fences, three times the distance of the quartiles beyond them, on a logarithmic
    scale. Categories with few boxes have no bounds.
    """
    sides = defaultdict(list)
    for record in records:
        for annotation, (x0, y0, x1, y1) in zip(
            record["annotations"], boxes_of(record), strict=True
        ):
            if x1 > x0 and y1 > y0:
                sides[annotation["category_id"]].append(np.sqrt((x1 - x0) * (y1 - y0)))
    bounds = {}
    for label, values in sides.items():
        if len(values) >= LEAST_BOXES:
            low, high = np.quantile(np.log(values), (0.25, 0.75))
            reach = 3 * (high - low)
            bounds[label] = np.exp(low - reach), np.exp(high + reach)
    return bounds


def suspicions(record: dict, usual: dict[int, tuple[float, float]]) -> dict[int, str]:
    """What is odd, by the number of the box in the record; ``usual`` is of `usual_sides`."""
    boxes, (height, width) = boxes_of(record), (record["height"], record["width"])
    bounds = [usual.get(a["category_id"], (0.0, np.inf)) for a in record["annotations"]]
    least, largest = np.reshape(bounds, (-1, 2)).T
    x0, y0, x1, y1 = boxes.T
    w, h = x1 - x0, y1 - y0
    with np.errstate(divide="ignore", invalid="ignore"):
        elongation = np.maximum(w / h, h / w)
    # The first that holds is told.
    tests = {
        "no area": (w <= 0) | (h <= 0),
        "outside the image": (x0 < -1) | (y0 < -1) | (x1 > width + 1) | (y1 > height + 1),
        f"a side below {LEAST_SIDE} pixels": np.minimum(w, h) < LEAST_SIDE,
        f"longer than {MOST_ELONGATED} times its width": elongation > MOST_ELONGATED,
        "almost the whole image": w * h > ALMOST_ALL * height * width,
        "far smaller than others of its class": w * h < least**2,
        "far larger than others of its class": w * h > largest**2,
        "the same place as another box": duplicated(boxes),
    }
    found: dict[int, str] = {}
    for what, hits in tests.items():
        for index in np.flatnonzero(hits):
            found.setdefault(int(index), what)
    return found


def duplicated(boxes: np.ndarray) -> np.ndarray:
    """(n,) bool: whether an earlier box lies in the same place."""
    tensor = Boxes(torch.as_tensor(boxes))
    overlaps = pairwise_iou(tensor, tensor).tril(diagonal=-1)
    return (overlaps > DUPLICATE_IOU).any(dim=1).numpy()


def size_table(records: list[dict], names: list[str]) -> str:
    """Markdown: the number of boxes for each class and size, and the median side."""
    counts, sides = Counter(), defaultdict(list)
    for record in records:
        for annotation, (x0, y0, x1, y1) in zip(
            record["annotations"], boxes_of(record), strict=True
        ):
            area = max(0.0, x1 - x0) * max(0.0, y1 - y0)
            size = next(size for size, most in SIZES.items() if area < most)
            counts[annotation["category_id"], size] += 1
            sides[annotation["category_id"]].append(area**0.5)
    lines = [
        "| class | boxes | small | medium | large | median side |",
        "|---|---|---|---|---|---|",
    ]
    for label, name in enumerate(names):
        cells = [counts[label, size] for size in SIZES]
        median = f"{np.median(sides[label]):.0f}" if sides[label] else "-"
        lines.append(f"| {name} | {sum(cells)} | {' | '.join(map(str, cells))} | {median} |")
    return "\n".join(lines)


def choose(records: list[dict], odd: dict[int, dict[int, str]], most: int) -> list[int]:
    """Numbers of the records to draw: suspicious ones first, then others at equal distances."""
    others = [i for i in range(len(records)) if i not in odd]
    places = max(0, min(most - len(odd), len(others)))
    spread = np.linspace(0, len(others) - 1, places).round().astype(int) if places else []
    return [*list(odd)[:most], *(others[i] for i in spread)]


def draw(record: dict, odd: dict[int, str], metadata) -> np.ndarray:
    """(H, W, 3), RGB.

    Raises:
        ValueError: the image cannot be read, or is of another size than the record says.
    """
    image = read_named(record["file_name"], format="RGB")
    height, width = image.shape[:2]
    if (height, width) != (record["height"], record["width"]):
        raise ValueError(
            f"{record['file_name']} is {width} x {height} (width x height), but the data set says "
            f"{record['width']} x {record['height']}"
        )
    visualizer = BoxVisualizer(image, metadata, max(1.0, PICTURE_SIDE / max(height, width)))
    classes = [a["category_id"] for a in record["annotations"]]
    labels = [
        metadata.thing_classes[label] + (f": {odd[i]}" if i in odd else "")
        for i, label in enumerate(classes)
    ]
    return visualizer.overlay_instances(
        boxes=boxes_of(record),
        labels=labels,
        assigned_colors=[visualizer.class_color(label) for label in classes],
    ).get_image()


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    register_data(args.data)
    records, metadata = load(args.dataset), MetadataCatalog.get(args.dataset)
    empty = sum(not record["annotations"] for record in records)
    print(f"{args.dataset}: {len(records)} images, {empty} without boxes\n")
    print(size_table(records, metadata.thing_classes))

    usual = usual_sides(records)
    odd = {i: found for i, record in enumerate(records) if (found := suspicions(record, usual))}
    listed = [(records[i], box, what) for i, found in odd.items() for box, what in found.items()]
    print(f"\n{len(listed)} suspicious boxes in {len(odd)} images")
    for record, box, what in listed[:SHOWN]:
        corners = ", ".join(f"{value:g}" for value in boxes_of(record)[box])
        print(f"- {record['file_name']}: box {box + 1} ({corners}): {what}")
    if len(listed) > SHOWN:
        print(f"- and {len(listed) - SHOWN} more")

    args.output.mkdir(parents=True, exist_ok=True)
    chosen = choose(records, odd, args.num_images)
    for number, i in enumerate(tqdm(chosen, unit="picture"), start=1):
        stem = Path(records[i]["file_name"]).stem
        kind = "suspicious" if i in odd else "image"
        picture = draw(records[i], odd.get(i, {}), metadata)
        Image.fromarray(picture).save(args.output / f"{number:03}_{kind}_{stem}.png")
    print(f"\n{len(chosen)} pictures in {args.output}")
