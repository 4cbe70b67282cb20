"""Training on tiles of large images, which are cut when an image is read.

The record of a tile is that of its image with the key ``tile``: x1, y1, x2, y2 in pixels of the
image. Its annotations are those of the objects to learn from, in pixels of the image as well: the
dataset mapper cuts them together with the pixels.
"""

from __future__ import annotations

import logging
import random

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import transforms as T
from detectron2.structures import BoxMode
from detectron2.utils.logger import log_first_n

from hypernet_d2.config import hypernet_node
from hypernet_d2.utils.tiles import tile_boxes

__all__ = ["check_shapely", "cut_records", "input_size", "tile_transform", "training_tiles"]


def training_tiles(cfg: CfgNode, records: list[dict], name: str) -> list[dict]:
    """The records of the tiles of a training set, see `cut_records`; without tiles its records.

    The sizes are those of ``MODEL.HYPERNET.TILES.TRAIN_SIZE`` and its neighbors.

    Raises:
        ValueError: no tile has an object.
    """
    keys = hypernet_node(cfg).TILES
    if not keys.TRAIN_SIZE:
        return records
    tiles, hidden = cut_records(
        records, keys.TRAIN_SIZE, keys.OVERLAP, keys.TRAIN_MIN_VISIBLE, keys.TRAIN_EMPTY_SHARE
    )
    with_objects = sum(bool(tile["annotations"]) for tile in tiles)
    if not with_objects:
        raise ValueError(
            f"data set {name!r}: no tile of {keys.TRAIN_SIZE} pixels has an object of which "
            f"{keys.TRAIN_MIN_VISIBLE:g} is visible (MODEL.HYPERNET.TILES.TRAIN_MIN_VISIBLE)"
        )
    message = (
        f"data set {name!r}: {len(tiles)} tiles of {keys.TRAIN_SIZE} pixels in {len(records)} "
        f"images, {with_objects} of them with objects"
    )
    log_first_n(logging.INFO, message, name=__name__, key="message")
    if hidden:
        log_first_n(
            logging.WARNING,
            f"data set {name!r}: {hidden} object(s) visible by less than "
            f"{keys.TRAIN_MIN_VISIBLE:g} in each tile of {keys.TRAIN_SIZE} pixels are not trained "
            "on (MODEL.HYPERNET.TILES.TRAIN_MIN_VISIBLE)",
            name=__name__,
            key="message",
        )
    return tiles


def cut_records(
    records: list[dict],
    size: int,
    overlap: int,
    min_visible: float,
    empty_share: float,
    seed: int = 0,
) -> tuple[list[dict], int]:
    """The records of the tiles of images, as described in this module.

    An object belongs to each tile that shows at least ``min_visible`` of the area of its box, and
    is background in the others. Left out are tiles that show less than that of all their objects,
    or only a crowd, as they would teach that these are background; and of the tiles that show
    nothing of any object all but a random part.

    Args:
        records: dataset dicts with ``annotations``; they are not changed.
        size, overlap: of the tiles, see `hypernet_d2.utils.tiles.tile_boxes`.
        min_visible: greater than 0, at most 1.
        empty_share: the share of the tiles without objects among all that are returned; at least 0
            and less than 1. There may be too few of them.
        seed: of the choice of tiles without objects.

    Returns:
        The records, in the order of the images, and the number of objects that belong to none.

    Raises:
        ValueError: see `hypernet_d2.utils.tiles.tile_boxes`.
    """
    tiles, hidden = [], 0
    for record in records:
        corners = tile_boxes((record["height"], record["width"]), size, overlap)
        objects = record.get("annotations", [])
        share = visible_share(annotation_boxes(objects), corners)
        crowd = np.array([bool(one.get("iscrowd", 0)) for one in objects], bool)
        kept = (share >= min_visible) & ~crowd
        hidden += int((~kept.any(axis=0) & ~crowd).sum())
        for t in np.flatnonzero(kept.any(axis=1) | ~(share > 0).any(axis=1)):
            annotations = [objects[i] for i in np.flatnonzero(kept[t])]
            tile = tuple(corners[t].tolist())
            tiles.append({**record, "tile": tile, "annotations": annotations})
    empty = [i for i, tile in enumerate(tiles) if not tile["annotations"]]
    most = round((len(tiles) - len(empty)) * empty_share / (1 - empty_share))
    chosen = set(random.Random(seed).sample(empty, min(most, len(empty))))
    return [tile for i, tile in enumerate(tiles) if tile["annotations"] or i in chosen], hidden


def annotation_boxes(annotations: list[dict]) -> np.ndarray:
    """(n, 4), x1 y1 x2 y2."""
    boxes = [BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS) for a in annotations]
    return np.array(boxes, dtype=float).reshape(-1, 4)


def visible_share(boxes: np.ndarray, tiles: np.ndarray) -> np.ndarray:
    """(T, n): the share of the area of each box (n, 4) that lies in each of the tiles (T, 4)."""
    tiles = tiles[:, None]
    shown = np.minimum(boxes[:, 2:], tiles[..., 2:]) - np.maximum(boxes[:, :2], tiles[..., :2])
    return shown.clip(min=0).prod(axis=-1) / (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)


def check_shapely() -> None:
    """
    Raises:
        ImportError: shapely, with which detectron2 cuts polygons, is not installed.
    """
    try:
        import shapely  # noqa: F401
    except ImportError as error:
        raise ImportError(
            "the polygons of objects are cut at the borders of tiles by shapely: "
            "pip install shapely"
        ) from error


def input_size(record: dict) -> tuple[int, int]:
    """(height, width) of what is trained on: the tile of a record, or its whole image."""
    if "tile" not in record:
        return record["height"], record["width"]
    x1, y1, x2, y2 = record["tile"]
    return y2 - y1, x2 - x1


def tile_transform(record: dict) -> T.CropTransform:
    """What cuts the tile of a record from its image, and from its annotations."""
    (x1, y1), (height, width) = record["tile"][:2], input_size(record)
    return T.CropTransform(x1, y1, width, height, record["width"], record["height"])
