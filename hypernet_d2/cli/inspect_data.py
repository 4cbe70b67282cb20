"""Counts and draws the boxes of a data set before training, and lists suspicious ones.

The pictures are written to --output: first images with suspicious boxes, whose labels say what is
suspicious, then others, evenly spaced in the set. --check-images reads every image instead, in
parallel, and lists those that cannot be read or have another size than the annotations say; the
exit status is 1 if there is one.
"""

from __future__ import annotations

import argparse
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from detectron2.data import Metadata, MetadataCatalog
from detectron2.structures import Boxes, BoxMode, pairwise_iou
from PIL import Image
from tabulate import tabulate
from tqdm import tqdm

from hypernet_d2.data import check_registered, load_dataset
from hypernet_d2.data.dataset_mapper import read_named
from hypernet_d2.engine import add_data_argument, register_data, setup_cfg
from hypernet_d2.engine.visualizer import BoxVisualizer

from .arguments import CommandParser, add_config_arguments

# Upper bounds of COCO's small, medium and large areas, in pixels of the image.
SIZES = {"small": 32**2, "medium": 96**2, "large": float("inf")}
MIN_BOXES = 20  # of a category, to estimate its usual sizes
MIN_SIDE = 4  # pixels
MAX_ELONGATION = 10
MAX_AREA = 0.95  # of the image's area
DUPLICATE_IOU = 0.95
PICTURE_SIDE = 800  # pixels: smaller images are enlarged to it
MAX_PRINTED = 20  # suspicious boxes


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = CommandParser(__doc__, "--dataset digits_val --output output/digits_val")
    parser.add_argument(
        "--dataset",
        help="name of the registered data set (default: the training set of --data PATH, or of the "
        "config)",
    )
    task = parser.add_mutually_exclusive_group(required=True)
    task.add_argument("--output", type=Path, metavar="FOLDER", help="folder for the pictures")
    task.add_argument("--check-images", action="store_true", help="only read all images")
    parser.add_argument(
        "--num-images", type=int, default=20, help="maximum of pictures (default: 20)"
    )
    add_data_argument(parser)
    add_config_arguments(parser, required=False)
    parser.set_defaults(opts=[])
    args = parser.parse_args(argv)
    if args.num_images < 1:
        parser.error(f"--num-images {args.num_images}: expected 1 or more")
    return args


def load(name: str) -> list[dict]:
    """The records of the data set.

    Raises:
        KeyError: no data set has the name.
        ValueError: it has no image.
    """
    check_registered(name, "--dataset")
    records = load_dataset(name, keep_odd_boxes=True)
    if not records:
        raise ValueError(f"data set {name!r} has no image")
    return records


def boxes_of(record: dict) -> np.ndarray:
    """(n, 4), x0, y0, x1, y1 in pixels."""
    boxes = [
        BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS) for a in record["annotations"]
    ]
    return np.asarray(boxes, dtype=float).reshape(-1, 4)


def usual_sides(records: list[dict]) -> dict[int, tuple[float, float]]:
    """For each category the bounds of the usual side (root of the area).

    They are Tukey's outer fences on a logarithmic scale: the quartiles, less and plus three times
    the interquartile range. Categories with fewer than `MIN_BOXES` boxes have no bounds.
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
        if len(values) >= MIN_BOXES:
            low, high = np.quantile(np.log(values), (0.25, 0.75))
            reach = 3 * (high - low)
            bounds[label] = np.exp(low - reach), np.exp(high + reach)
    return bounds


def suspicions(record: dict, usual: dict[int, tuple[float, float]]) -> dict[int, str]:
    """{index of a box in the record: what is suspicious}; ``usual`` is from `usual_sides`."""
    boxes, (height, width) = boxes_of(record), (record["height"], record["width"])
    bounds = [usual.get(a["category_id"], (0.0, np.inf)) for a in record["annotations"]]
    least, largest = np.reshape(bounds, (-1, 2)).T
    x0, y0, x1, y1 = boxes.T
    w, h = x1 - x0, y1 - y0
    with np.errstate(divide="ignore", invalid="ignore"):
        elongation = np.maximum(w / h, h / w)
    # The first test that a box fails is reported.
    tests = {
        "no area": (w <= 0) | (h <= 0),
        "outside the image": (x0 < -1) | (y0 < -1) | (x1 > width + 1) | (y1 > height + 1),
        f"a side below {MIN_SIDE} pixels": np.minimum(w, h) < MIN_SIDE,
        f"longer than {MAX_ELONGATION} times its width": elongation > MAX_ELONGATION,
        "almost the whole image": w * h > MAX_AREA * height * width,
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
    """A Markdown table: the number of boxes of each class and size, and the median side."""
    counts, sides = Counter(), defaultdict(list)
    for record in records:
        for annotation, (x0, y0, x1, y1) in zip(
            record["annotations"], boxes_of(record), strict=True
        ):
            area = max(0.0, x1 - x0) * max(0.0, y1 - y0)
            size = next(size for size, most in SIZES.items() if area < most)
            counts[annotation["category_id"], size] += 1
            sides[annotation["category_id"]].append(area**0.5)
    header = ["class", "boxes", *SIZES, "median side"]
    lines = []
    for label, name in enumerate(names):
        cells = [counts[label, size] for size in SIZES]
        median = f"{np.median(sides[label]):.0f}" if sides[label] else "-"
        lines.append([name, sum(cells), *cells, median])
    return tabulate(lines, header, tablefmt="github", disable_numparse=True)


def choose(records: list[dict], odd: dict[int, dict[int, str]], most: int) -> list[int]:
    """Indices of the records to draw: suspicious ones first, then others, evenly spaced."""
    others = [i for i in range(len(records)) if i not in odd]
    places = max(0, min(most - len(odd), len(others)))
    spread = np.linspace(0, len(others) - 1, places).round().astype(int) if places else []
    return [*list(odd)[:most], *(others[i] for i in spread)]


def read_checked(record: dict) -> np.ndarray:
    """The image, (H, W, 3), RGB.

    Raises:
        ValueError: it cannot be read, or has another size than the record says.
    """
    image = read_named(record["file_name"], format="RGB")
    height, width = image.shape[:2]
    if (height, width) != (record["height"], record["width"]):
        raise ValueError(
            f"{record['file_name']} is {width} x {height} (width x height), but the data set says "
            f"{record['width']} x {record['height']}"
        )
    return image


def image_error(record: dict) -> str | None:
    """Why the image of a record cannot be used, or None."""
    try:
        read_checked(record)
    except ValueError as error:
        return str(error)
    return None


def check_images(records: list[dict], name: str) -> int:
    """Read all images, print those that cannot be used, and return 1 if there is one, else 0."""
    with ThreadPoolExecutor() as pool:  # Pillow decodes without Python's lock
        results = tqdm(pool.map(image_error, records), total=len(records), unit="image")
        errors = [error for error in results if error is not None]
    print(f"{name}: {len(errors)} of {len(records)} images cannot be used")
    for error in errors:
        print(f"- {error}")
    return 1 if errors else 0


def draw(
    record: dict,
    odd: dict[int, str],
    metadata: Metadata,
    side: int = PICTURE_SIDE,
    shrink: bool = False,
) -> np.ndarray:
    """The image of a record with its boxes, (H, W, 3), RGB.

    Args:
        record: of the data set.
        odd: from `suspicions`, for the labels.
        metadata: of the data set.
        side: pixels to which the long side of a smaller image is enlarged.
        shrink: whether larger images are made smaller.

    Raises:
        ValueError: see `read_checked`.
    """
    image = read_checked(record)
    height, width = image.shape[:2]
    scale = side / max(height, width)
    visualizer = BoxVisualizer(image, metadata, scale if shrink else max(1.0, scale))
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


def main(argv: list[str] | None = None) -> int:
    """Return 1 if ``--check-images`` found an image that cannot be used, else 0."""
    args = parse_args(argv)
    if args.config_file:
        train = setup_cfg(args).DATASETS.TRAIN
    else:
        train = register_data(args.data).train
    args.dataset = args.dataset or next(iter(train), None)
    if args.dataset is None:
        raise ValueError(
            "expected --dataset NAME, --data with a folder, a yaml or a json, or --config-file of "
            "a training on such data"
        )
    records, metadata = load(args.dataset), MetadataCatalog.get(args.dataset)
    if args.check_images:
        return check_images(records, args.dataset)
    empty = sum(not record["annotations"] for record in records)
    print(f"{args.dataset}: {len(records)} images, {empty} without boxes\n")
    print(size_table(records, metadata.thing_classes))

    usual = usual_sides(records)
    odd = {i: found for i, record in enumerate(records) if (found := suspicions(record, usual))}
    listed = [(records[i], box, what) for i, found in odd.items() for box, what in found.items()]
    print(f"\n{len(listed)} suspicious boxes in {len(odd)} images")
    for record, box, what in listed[:MAX_PRINTED]:
        corners = ", ".join(f"{value:g}" for value in boxes_of(record)[box])
        print(f"- {record['file_name']}: box {box + 1} ({corners}): {what}")
    if len(listed) > MAX_PRINTED:
        print(f"- and {len(listed) - MAX_PRINTED} more")

    args.output.mkdir(parents=True, exist_ok=True)
    chosen = choose(records, odd, args.num_images)
    for number, i in enumerate(tqdm(chosen, unit="picture"), start=1):
        stem = Path(records[i]["file_name"]).stem
        kind = "suspicious" if i in odd else "image"
        picture = draw(records[i], odd.get(i, {}), metadata)
        Image.fromarray(picture).save(args.output / f"{number:03}_{kind}_{stem}.png")
    print(f"\n{len(chosen)} pictures in {args.output}")
    return 0
