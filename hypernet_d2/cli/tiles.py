"""Writes the tiles of a data set, as images and a json in COCO's format.

They are the tiles that MODEL.HYPERNET.TILES.TRAIN_SIZE trains on without writing them: to look at
(hypernet-d2 inspect-data --data FOLDER/tiles.json), or for other programs. FOLDER/images has the
tiles of each image, numbered: JPEG where the image is one, else PNG. FOLDER/tiles.json has their
boxes, masks and keypoints, and for each its "source" and its "tile": x1, y1, x2, y2 there.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from detectron2.config import CfgNode
from detectron2.data.detection_utils import transform_instance_annotations
from detectron2.data.transforms import TransformList
from PIL import Image
from pycocotools import mask as coco_mask
from tqdm import tqdm

from hypernet_d2.config import add_hypernet_config
from hypernet_d2.data import check_registered, load_dataset
from hypernet_d2.data.dataset_mapper import read_named
from hypernet_d2.data.tiles import check_shapely, cut_records, input_size, tile_transform
from hypernet_d2.engine import add_data_argument, register_data
from hypernet_d2.evaluation.coco import records_to_coco
from hypernet_d2.utils.files import atomic_write

from .arguments import CommandParser

JPEG_QUALITY = 95


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = CommandParser(
        __doc__, "--dataset digits_val --size 120 --overlap 40 --output output/digits_tiles"
    )
    defaults = CfgNode({"MODEL": CfgNode()})
    add_hypernet_config(defaults)
    tiles = defaults.MODEL.HYPERNET.TILES
    add = parser.add_argument
    add("--dataset", help="name of the registered data set (default: the training set of --data)")
    add("--output", type=Path, required=True, metavar="FOLDER", help="new or empty folder")
    add("--size", type=int, default=640, help="side of a tile in pixels (default: %(default)s)")
    add(
        "--overlap", type=int, default=tiles.OVERLAP,
        help="pixels by which neighbors overlap (default: %(default)s)",
    )  # fmt: skip
    add(
        "--min-visible", type=float, default=tiles.TRAIN_MIN_VISIBLE, metavar="SHARE",
        help="share of an object's box that a tile has to show (default: %(default)s)",
    )  # fmt: skip
    add(
        "--empty-share", type=float, default=tiles.TRAIN_EMPTY_SHARE, metavar="SHARE",
        help="share of the tiles without objects among all (default: %(default)s)",
    )  # fmt: skip
    add_data_argument(parser)
    args = parser.parse_args(argv)
    if not 0 < args.min_visible <= 1:
        parser.error(f"--min-visible {args.min_visible}: expected more than 0, at most 1")
    if not 0 <= args.empty_share < 1:
        parser.error(f"--empty-share {args.empty_share}: expected 0 or more, less than 1")
    if args.output.exists() and (not args.output.is_dir() or any(args.output.iterdir())):
        parser.error(f"--output {args.output}: exists; expected a new or empty folder")
    return args


def write_tiles(tiles: list[dict], folder: Path) -> Iterator[dict]:
    """Write the image of each tile, and yield its record.

    Args:
        tiles: records from `cut_records`, those of an image after each other.
        folder: in which ``images`` is made.

    Raises:
        ValueError: an image cannot be read, or has another size than its record says.
    """
    (folder / "images").mkdir(parents=True, exist_ok=True)
    stems: set[str] = set()
    image_id = 0
    progress = tqdm(total=len(tiles), unit="tile")
    for file_name, group in itertools.groupby(tiles, key=lambda tile: tile["file_name"]):
        path = Path(file_name)
        stem = unused_stem(path.stem, stems)
        suffix = ".jpg" if path.suffix.lower() in (".jpg", ".jpeg") else ".png"
        image = read_named(file_name, "RGB")
        for number, tile in enumerate(group, start=1):
            if image.shape[:2] != (tile["height"], tile["width"]):
                raise ValueError(
                    f"{file_name} is {image.shape[1]} x {image.shape[0]} (width x height), but "
                    f"the data set says {tile['width']} x {tile['height']}"
                )
            x1, y1, x2, y2 = tile["tile"]
            # The number is at the end, by which --data keeps an image's tiles in one split.
            name = f"images/{stem}_{number:04}{suffix}"
            Image.fromarray(image[y1:y2, x1:x2]).save(folder / name, quality=JPEG_QUALITY)
            image_id += 1
            yield cut_record(tile, name, image_id)
            progress.update()
    progress.close()


def unused_stem(stem: str, used: set[str]) -> str:
    """The stem, or one with a number if images of several folders have it; added to ``used``."""
    candidates = itertools.chain([stem], (f"{stem}_{n}" for n in itertools.count(2)))
    # In lower case, as the file system may ignore it.
    unused = next(name for name in candidates if name.lower() not in used)
    used.add(unused.lower())
    return unused


def cut_record(tile: dict, file_name: str, image_id: int) -> dict:
    """The record of a tile's own image, with annotations in its pixels."""
    size, transforms = input_size(tile), TransformList([tile_transform(tile)])
    annotations = []
    for one in tile["annotations"]:
        cut = transform_instance_annotations(dict(one), transforms, size)
        mask = cut.get("segmentation")
        if isinstance(mask, np.ndarray):
            cut["segmentation"] = coco_mask.encode(np.asfortranarray(mask))
        elif mask is not None:
            cut["segmentation"] = [polygon.tolist() for polygon in mask]
        if "keypoints" in cut:
            cut["keypoints"] = cut["keypoints"].ravel().tolist()
        annotations.append(cut)
    return {
        "file_name": file_name, "image_id": image_id, "height": size[0], "width": size[1],
        "annotations": annotations,
    }  # fmt: skip


def main(argv: list[str] | None = None) -> None:
    """
    Raises:
        ValueError, KeyError, OSError, ImportError: a user's mistake.
    """
    args = parse_args(argv)
    data = register_data(args.data)
    name = args.dataset or next(iter(data.train), None)
    if name is None:
        raise ValueError("expected --dataset NAME, or --data with a folder, a yaml or a json")
    check_registered(name, "--dataset")
    records = load_dataset(name)
    if any(isinstance(a.get("segmentation"), list) for r in records for a in r["annotations"]):
        check_shapely()
    tiles, hidden = cut_records(
        records, args.size, args.overlap, args.min_visible, args.empty_share
    )
    if not tiles:
        raise ValueError(f"data set {name!r}: no tile of {args.size} pixels has an object")
    content = records_to_coco(list(write_tiles(tiles, args.output)), name)
    for image, tile in zip(content["images"], tiles, strict=True):
        image["source"], image["tile"] = tile["file_name"], tile["tile"]
    with atomic_write(args.output / "tiles.json", "w") as file:
        json.dump(content, file)
    objects = sum(len(tile["annotations"]) for tile in tiles)
    empty = sum(not tile["annotations"] for tile in tiles)
    print(
        f"{args.output / 'tiles.json'}: {len(tiles)} tiles of {len(records)} images, {empty} "
        f"without objects; {objects} objects, as some are in several tiles; {hidden} in none"
    )
