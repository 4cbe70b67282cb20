"""Looks at data of one's own before training: broken images, counts, suspicious boxes, pictures."""

from __future__ import annotations

import os
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image
from tabulate import tabulate
from tqdm import tqdm

from hypernet_d2.checkpoint import OUTPUT_FILES
from hypernet_d2.cli import inspect_data
from hypernet_d2.data.choices import DataFigures
from hypernet_d2.utils.coco_json import join_first
from hypernet_d2.utils.drawing import make_sheet

__all__ = ["check_readable", "describe", "figures_of", "load_splits"]

SHEET_IMAGES, SHEET_COLUMNS, SHEET_SIDE = 12, 4, 480  # side in pixels
MAX_READ = 5000  # images that are read before training, to find broken ones


def load_splits(prefix: str = "my") -> dict[str, list[dict]]:
    """The records of the registered splits, with their odd boxes: {"train", "val", "test"}."""
    names = {role: f"{prefix}_{role}" for role in ("train", "val", "test")}
    return {role: inspect_data.load(name) for role, name in names.items() if name in DatasetCatalog}


def figures_of(records: dict[str, list[dict]], classes: list[str]) -> DataFigures:
    """
    Raises:
        ValueError: no training image has an object.
    """
    every = [record for split in records.values() for record in split]
    boxes = [inspect_data.boxes_of(record) for record in records["train"]]
    sizes = np.array([(record["height"], record["width"]) for record in records["train"]])
    owners = np.repeat(np.arange(len(boxes)), [len(one) for one in boxes])
    corners = np.concatenate(boxes)
    areas = (corners[:, 2:] - corners[:, :2]).clip(min=0).prod(axis=1)
    if not areas.any():
        raise ValueError("no training image has an object with an area")
    return DataFigures(
        num_train=sum(bool(record["annotations"]) for record in records["train"]),
        sizes=sizes,
        sides=np.sqrt(areas[areas > 0]),
        owners=owners[areas > 0],
        most_objects=max(len(record["annotations"]) for record in every),
        classes=classes,
    )


def check_readable(records: dict[str, list[dict]]) -> None:
    """Read all images, unless they are very many.

    Raises:
        ValueError: naming those that cannot be read, or have another size than is said.
    """
    every = [record for split in records.values() for record in split]
    if len(every) > MAX_READ:
        return
    with ThreadPoolExecutor(2) as pool:  # Pillow decodes without Python's lock
        results = pool.map(inspect_data.image_error, every)
        hidden = None if sys.stderr.isatty() else True
        results = list(tqdm(results, "images", len(every), leave=False, disable=hidden))
    errors = [error for error in results if error is not None]
    if errors:
        raise ValueError(
            f"{len(errors)} of {len(every)} images cannot be used: {join_first(errors, 3)}"
        )


def describe(records: dict[str, list[dict]], name: str, sheet: str) -> str:
    """Counts and oddities of the data; the sheet of pictures is drawn."""
    metadata = MetadataCatalog.get(name)
    lines = []
    for role, split in records.items():
        sizes = [record[key] for record in split for key in ("width", "height")]
        widths, heights = sizes[::2], sizes[1::2]
        objects = sum(len(record["annotations"]) for record in split)
        empty = sum(not record["annotations"] for record in split)
        lines.append(
            [role, len(split), empty, objects, max(len(r["annotations"]) for r in split),
             f"{min(widths)} x {min(heights)} to {max(widths)} x {max(heights)}"]
        )  # fmt: skip
    header = ["", "images", "without objects", "objects", "most in one", "width x height"]
    text = [tabulate(lines, header, tablefmt="github"), ""]
    text.append(inspect_data.size_table(records["train"], metadata.thing_classes))
    usual = inspect_data.usual_sides(records["train"])
    odd = {
        i: found
        for i, record in enumerate(records["train"])
        if (found := inspect_data.suspicions(record, usual))
    }
    kinds: dict[str, int] = {}
    for found in odd.values():
        for what in found.values():
            kinds[what] = kinds.get(what, 0) + 1
    if kinds:
        listed = ", ".join(f"{count} {what}" for what, count in kinds.items())
        text.append(f"\nSuspicious boxes in {len(odd)} training images: {listed}")
    draw_sheet(records["train"], odd, name, sheet)
    text.append(f"\nImages with their boxes, those with suspicious ones first: {sheet}")
    return "\n".join(text)


def draw_sheet(records: list[dict], odd: dict[int, dict[int, str]], name: str, path: str) -> None:
    metadata = MetadataCatalog.get(name)
    chosen = inspect_data.choose(records, odd, SHEET_IMAGES)
    pictures = [
        inspect_data.draw(records[i], odd.get(i, {}), metadata, SHEET_SIDE, shrink=True)
        for i in chosen
    ]
    titles = [os.path.basename(records[i]["file_name"]) for i in chosen]
    sheet = make_sheet(pictures, titles, columns=SHEET_COLUMNS, heading=f"{name}, ground truth")
    with OUTPUT_FILES.open(path, "wb") as file:
        Image.fromarray(sheet).save(file, format="JPEG", quality=90)
