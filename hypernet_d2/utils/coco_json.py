"""Checks of COCO's json, whose errors name the file, the entry and the value.

pycocotools and detectron2 trust the file: a damaged one ends in ``KeyError: 'bbox'``, and boxes
with coordinates that are not finite are left out of training without a message.
"""

from __future__ import annotations

import functools
import json
import logging
import math
import os
from collections import Counter
from collections.abc import Iterable
from pathlib import PurePath
from typing import NamedTuple

from pycocotools.coco import COCO

from .files import check_exists
from .rle import check_rle

__all__ = [
    "BadPolygons",
    "CheckedCOCO",
    "check_coco",
    "check_coco_file",
    "check_object",
    "check_segmentation",
    "is_outside_folder",
    "join_first",
    "read_coco_json",
    "select_polygons",
    "shorten",
]

logger = logging.getLogger(__name__)

# Larger than any side of an image: a coordinate beyond is damage, not a box that sticks out of its
# image. Drawing a polygon takes time and memory with its extent.
MAX_PIXELS = 10**6


class CheckedCOCO(COCO):
    """pycocotools' index of a file, built after the file has been checked.

    Args:
        annotation_file: the json; None for an empty index.
        evaluated, reads_images: as in `check_coco`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: naming the file and the first entry that is not as expected.
    """

    def __init__(
        self,
        annotation_file: str | None = None,
        *,
        evaluated: bool = False,
        reads_images: bool = True,
    ):
        super().__init__()
        if annotation_file is not None:
            self.dataset = read_coco_json(
                annotation_file, evaluated=evaluated, reads_images=reads_images
            )
            self.dataset.setdefault("info", {})  # which pycocotools 2.0.10 requires
            self.createIndex()


class BadPolygons(NamedTuple):
    """The polygons of a file that have fewer than 3 points or an odd number of coordinates.

    Attributes:
        ids: of the annotations with such a polygon.
        without_polygon: the annotations that have no other polygon. detectron2's loader leaves
            them out, with their boxes.
        objects_per_image: {image id: number of annotations}, for the images of the latter.
    """

    ids: list
    without_polygon: list[dict]
    objects_per_image: dict


def check_coco_file(path: str | os.PathLike, *, evaluated: bool = False) -> BadPolygons:
    """Check a COCO json once; a file that has not changed since is not read again.

    Raises:
        FileNotFoundError, ValueError: see `read_coco_json`.
    """
    check_exists(path)
    stat = os.stat(path)
    return _check_file_version(os.fspath(path), stat.st_mtime_ns, stat.st_size, evaluated)


@functools.lru_cache(maxsize=64)
def _check_file_version(path: str, mtime: int, size: int, evaluated: bool) -> BadPolygons:
    return find_bad_polygons(read_coco_json(path, evaluated=evaluated))


def read_coco_json(
    path: str | os.PathLike, *, evaluated: bool = False, reads_images: bool = True
) -> dict:
    """Read a COCO json and check it, see `check_coco`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: naming the file, if it is not json in UTF-8, and as `check_coco`.
    """
    try:
        with open(path, encoding="utf-8") as file:
            content = json.load(file)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: expected COCO's json in UTF-8, but {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected COCO's json, but it holds a {type(content).__name__}")
    check_coco(content, os.fspath(path), evaluated=evaluated, reads_images=reads_images)
    return content


def check_coco(
    content: dict, source: str, *, evaluated: bool = False, reads_images: bool = True
) -> None:
    """Check the content of a COCO json.

    Args:
        content: of the file.
        source: the file, for the messages.
        evaluated: whether COCO's evaluation reads it, which needs ``iscrowd``, ``area`` and
            numbers as ids of objects. Training needs none of them.
        reads_images: whether images are read by their ``file_name``, which then must lie in the
            folder of the images.

    Raises:
        ValueError: an entry is missing, of another type or not finite, an id is used twice, a
            ``file_name`` lies outside of the folder of the images, an object has a category that
            the file does not define, or an ``image_id`` is of another type than the ids of the
            images. Objects of images that the file does not list are allowed as long as there are
            others, as in COCO's own minival; detectron2 counts and logs them.
    """
    images, categories, objects = (
        _get_entries(content, key, source) for key in ("images", "categories", "annotations")
    )
    if not images or not categories:
        missing = "images" if not images else "categories"
        raise ValueError(f"{source}: {missing!r} is empty or missing, expected at least one")
    image_ids = _check_ids(images, "images", source)
    category_ids = _check_ids(categories, "categories", source)
    # detectron2 allows repeated ids in the files that are known for them.
    object_ids = _check_ids(objects, "annotations", source, unique="minival" not in source)
    if any(not isinstance(id, int) for id in category_ids):
        raise ValueError(f"{source}: an id of 'categories' is a text, expected whole numbers")
    for category in categories:
        if not isinstance(category.get("name"), str):
            raise ValueError(
                f"{_locate(source, 'category', category)}: {_describe(category, 'name')}a text"
            )
    if evaluated and 0 in object_ids:
        logger.warning(
            "%s: COCO's evaluation takes the id 0 for no object, and so counts the annotation with "
            "that id as never found; number them from 1",
            source,
        )
    for image in images:
        _check_image(image, source, reads_images)
    for one in objects:
        try:
            _check_annotation(one, image_ids, category_ids, evaluated)
        except ValueError as error:
            raise ValueError(f"{_locate(source, 'annotation', one)}: {error}") from error
    if objects and not any(one["image_id"] in image_ids for one in objects):
        raise ValueError(
            f"{source}: no 'image_id' of its {len(objects)} annotations is the id of an image "
            f"(annotations: {shorten(objects[0]['image_id'])}, ..., images: "
            f"{shorten(images[0]['id'])}, ...)"
        )


def find_bad_polygons(content: dict) -> BadPolygons:
    """The polygons that detectron2's loader leaves out, in a json that has been checked."""
    ids, lost = [], []
    for one in content.get("annotations", ()):
        polygons = one.get("segmentation")
        if not polygons or isinstance(polygons, dict):
            continue
        good = select_polygons(polygons)
        if len(good) < len(polygons):
            ids.append(one["id"])
        if not good:
            lost.append(one)
    images = {one["image_id"] for one in lost}
    counts = Counter(
        one["image_id"] for one in content.get("annotations", ()) if one["image_id"] in images
    )
    return BadPolygons(ids, lost, dict(counts))


def select_polygons(polygons: list[list[float]]) -> list[list[float]]:
    """The polygons that have at least 3 points."""
    return [polygon for polygon in polygons if len(polygon) >= 6 and len(polygon) % 2 == 0]


def check_object(annotation: dict, size: tuple[int, int] | None, numbers: int = 4) -> None:
    """Check the geometry of one object: ``bbox``, ``segmentation`` and ``keypoints``.

    Args:
        annotation: in COCO's format or detectron2's.
        size: (height, width) of its image in pixels; None where that is not known.
        numbers: how many a ``bbox`` has.

    Raises:
        ValueError: naming the value that is not as expected.
    """
    box = annotation.get("bbox")
    if not _is_number_list(box, numbers):
        raise ValueError(f"{_describe(annotation, 'bbox')}{numbers} finite numbers of pixels")
    keypoints = annotation.get("keypoints")
    if keypoints is not None and (not _is_number_list(keypoints) or len(keypoints) % 3):
        raise ValueError(f"{_describe(annotation, 'keypoints')}x, y and visibility, x, y and ...")
    if annotation.get("segmentation") is not None:
        check_segmentation(annotation["segmentation"], size)


def check_segmentation(segmentation: list | dict, size: tuple[int, int] | None) -> None:
    """Check polygons or a run-length code; see `check_object`."""
    if isinstance(segmentation, dict):
        try:
            check_rle(segmentation, size)
        except ValueError as error:
            raise ValueError(f"segmentation: {error}") from error
    elif not isinstance(segmentation, list) or not all(map(_is_number_list, segmentation)):
        raise ValueError(
            f"segmentation is {shorten(segmentation)}, expected polygons, lists of finite numbers "
            "of pixels, or a run-length code"
        )


def is_outside_folder(file_name: str) -> bool:
    """Whether a path is absolute or has ``..`` in it, so that it may leave its folder."""
    path = PurePath(file_name)
    return path.is_absolute() or os.pardir in path.parts or "\0" in file_name


def _get_entries(content: dict, key: str, source: str) -> list[dict]:
    entries = content.get(key, [])
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ValueError(f"{source}: {_describe(content, key)}a list of objects {{...}}")
    return entries


def _check_ids(entries: list[dict], key: str, source: str, unique: bool = True) -> set:
    """The ids of the entries, which are of one type, so that they can be sorted."""
    ids = set()
    for number, entry in enumerate(entries):
        id = entry.get("id")
        if type(id) not in (int, str):
            raise ValueError(
                f"{source}: {key}[{number}]: {_describe(entry, 'id')}a whole number or a text"
            )
        if unique and id in ids:
            raise ValueError(f"{source}: {key}[{number}] has the id {id!r} of an entry before it")
        ids.add(id)
    if len(set(map(type, ids))) > 1:
        raise ValueError(f"{source}: the ids of {key!r} are numbers and texts, expected one kind")
    return ids


def _check_image(image: dict, source: str, reads_images: bool) -> None:
    where = _locate(source, "image", image)
    name = image.get("file_name")
    if not isinstance(name, str) or not name:
        raise ValueError(f"{where}: {_describe(image, 'file_name')}the name of a file")
    if reads_images and is_outside_folder(name):
        raise ValueError(f"{where}: file_name {name!r} lies outside of the folder of the images")
    for side in ("height", "width"):
        if type(image.get(side)) is not int or not 0 < image[side] <= MAX_PIXELS:
            raise ValueError(f"{where} ({name}): {_describe(image, side)}a number of pixels")


def _check_annotation(one: dict, image_ids: set, category_ids: set, evaluated: bool) -> None:
    image_id, category_id = one.get("image_id"), one.get("category_id")
    if type(image_id) not in (int, str):
        raise ValueError(f"{_describe(one, 'image_id')}the id of an image")
    known = next(iter(image_ids))
    if type(image_id) is not type(known):
        raise ValueError(
            f"{_describe(one, 'image_id')}an id of the type of the images' ids, {shorten(known)}"
        )
    if type(category_id) is not int or category_id not in category_ids:
        raise ValueError(f"{_describe(one, 'category_id')}one of {shorten(sorted(category_ids))}")
    if one.get("iscrowd", 0) not in (0, 1) or one.get("ignore", 0) != 0:
        key = "ignore" if one.get("ignore", 0) != 0 else "iscrowd"
        raise ValueError(f"{_describe(one, key)}0{' or 1' if key == 'iscrowd' else ''}")
    # The size is compared with the image's in `hypernet_d2.data.checks`, where it is at hand.
    check_object(one, None)
    if not evaluated:
        return
    if type(one["id"]) is not int or not 0 <= one["id"] < 2**63:
        raise ValueError(f"{_describe(one, 'id')}a whole number, which COCO's evaluation needs")
    needed = ["iscrowd", "area", *(["num_keypoints"] if one.get("keypoints") else [])]
    for key in needed:
        if not _is_number_list([one.get(key)]):
            raise ValueError(f"{_describe(one, key)}a number, which COCO's evaluation needs")


def _is_number_list(values: object, count: int | None = None) -> bool:
    """Whether it is a list of ``count`` finite numbers, none of them beyond `MAX_PIXELS`."""
    try:
        if len(values) != count and count is not None:
            return False
        if isinstance(values, (str, bytes, dict)) or not len(values):
            return not isinstance(values, (str, bytes, dict))
        # COCO has 40 million coordinates, so no loop in Python. A sum with a NaN is NaN.
        return (
            math.isfinite(sum(values)) and max(values) <= MAX_PIXELS and min(values) >= -MAX_PIXELS
        )
    except (TypeError, ValueError, OverflowError):
        return False


def _locate(source: str, kind: str, entry: dict) -> str:
    image = f" of image {shorten(entry['image_id'])}" if "image_id" in entry else ""
    return f"{source}: {kind} {shorten(entry['id'])}{image}"


def _describe(entry: dict, key: str) -> str:
    """The first half of a message: an entry's value, and "expected "."""
    if key not in entry:
        return f"no {key!r}, expected "
    return f"{key!r} is {shorten(entry[key])}, expected "


def shorten(value: object) -> str:
    """The value as Python writes it, cut after 80 characters."""
    try:
        text = repr(value)
    except ValueError:  # numbers of more digits than Python writes
        return "a huge number"
    return text if len(text) <= 80 else f"{text[:77]}..."


def join_first(entries: Iterable[str], count: int = 10) -> str:
    """The first distinct entries, joined, and how many more there are."""
    names = list(dict.fromkeys(entries))
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return ", ".join(names[:count]) + more
