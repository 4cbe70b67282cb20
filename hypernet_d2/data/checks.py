"""Checks of detectron2's dataset dicts ("records"), before any training or evaluation on them."""

from __future__ import annotations

import logging
import math
import os
from collections import defaultdict
from collections.abc import Sequence

from detectron2.data import MetadataCatalog
from detectron2.structures import BoxMode
from detectron2.utils.logger import log_first_n

from hypernet_d2.utils.coco_json import check_object, join_first, select_polygons, shorten
from hypernet_d2.utils.images import image_size

from .image_files import check_images_exist

__all__ = ["check_records", "log_odd_boxes"]

# Numbers of a box, by the BoxModes that detectron2's mapper takes.
BOX_NUMBERS = {BoxMode.XYXY_ABS: 4, BoxMode.XYWH_ABS: 4, BoxMode.XYWHA_ABS: 5}


def check_records(
    records: list[dict], name: str, *, evaluated: bool = False, keep_odd_boxes: bool = False
) -> list[dict]:
    """Check dataset dicts, add what they lack, and remove boxes from which nothing can be learnt.

    - ``height`` and ``width`` that are missing are read from the image's header. A missing
      ``image_id`` becomes the record's number, where no record has one. A record without
      ``annotations`` among others that have them is an image without objects; a set without any
      keeps its records as they are.
    - Polygons of fewer than 3 points are removed, and ``segmentation`` with its last polygon.
    - Boxes without area and boxes outside of their image are removed.

    What is removed, boxes partly outside, which detectron2 clips, and images that stand in several
    records are counted and logged once, with their files.

    Args:
        records: of the set, each with a ``file_name``; changed in place.
        name: of the set.
        evaluated: whether records are told apart by their ``image_id``, which then has to differ.
        keep_odd_boxes: whether boxes without area or outside of the image stay.

    Returns:
        The records.

    Raises:
        ValueError: naming the image, for a value of another type, a number that is not finite, a
            category that the set does not have, or an ``image_id`` that is missing or repeated.
        FileNotFoundError: naming images that are missing.
    """
    for number, record in enumerate(records):
        file_name = record.get("file_name") if isinstance(record, dict) else None
        if not isinstance(file_name, (str, os.PathLike)):
            raise ValueError(
                f"data set {name!r}: record {number} is {shorten(record)}, expected a dict with a "
                "'file_name'"
            )
    _complete(records)
    if evaluated:
        _check_image_ids(records, name)
    metadata = MetadataCatalog.get(name)
    classes = metadata.get("thing_classes", None)
    num_keypoints = len(metadata.get("keypoint_names", None) or ())
    odd_boxes: dict[str, list[str]] = defaultdict(list)
    bad_polygons: list[str] = []
    for record in records:
        if record.get("annotations"):
            kept = _check_annotations(record, name, classes, num_keypoints, odd_boxes)
            if not keep_odd_boxes and len(kept) < len(record["annotations"]):
                record["annotations"] = kept
            if any([_remove_bad_polygons(one) for one in record["annotations"]]):
                bad_polygons.append(os.path.basename(record["file_name"]))
    check_images_exist([os.fspath(record["file_name"]) for record in records], name)
    if bad_polygons:
        _warn_once(
            f"data set {name!r}: polygons of fewer than 3 points are left out, in "
            f"{len(bad_polygons)} image(s): {join_first(bad_polygons)}"
        )
    _log_repeated_images(records, name)
    if not keep_odd_boxes:
        log_odd_boxes(odd_boxes, f"data set {name!r}")
    return records


def _complete(records: list[dict]) -> None:
    numbered = any("image_id" in record for record in records)
    annotated = any("annotations" in record for record in records)
    for number, record in enumerate(records):
        if "height" not in record or "width" not in record:
            record["width"], record["height"] = image_size(record["file_name"])
        if annotated:
            record.setdefault("annotations", [])
        if not numbered:
            record["image_id"] = number


def _check_image_ids(records: list[dict], name: str) -> None:
    files: dict[object, str] = {}
    for record in records:
        where = f"data set {name!r}: {record['file_name']}"
        if "image_id" not in record:
            raise ValueError(f"{where}: no 'image_id', but other records have one")
        image_id = record["image_id"]
        if image_id in files:
            raise ValueError(
                f"{where}: image_id is {shorten(image_id)}, as that of {files[image_id]}; expected "
                "another one for each record, since detections are assigned to images by it"
            )
        files[image_id] = os.fspath(record["file_name"])


def log_odd_boxes(odd_boxes: dict[str, Sequence[str]], source: str, where: str = "") -> None:
    """Log once how many boxes are odd, and in which files: {what is odd: a file for each box}."""
    for what, files in odd_boxes.items():
        _warn_once(f"{source}: {len(files)} box(es) {what}: {join_first(files)}{where}")


def _remove_bad_polygons(one: dict) -> bool:
    """Whether the object had polygons that are none."""
    polygons = one.get("segmentation")
    if not isinstance(polygons, list):
        return False
    one["segmentation"] = select_polygons(polygons)
    removed = len(polygons) - len(one["segmentation"])
    if not one["segmentation"]:
        del one["segmentation"]
    return removed > 0


def _log_repeated_images(records: list[dict], name: str) -> None:
    ids: dict[str, set] = defaultdict(set)
    for record in records:
        ids[os.path.normpath(record["file_name"])].add(record.get("image_id"))
    repeated = [
        f"{file} (image ids {shorten(sorted(map(str, found)))})"
        for file, found in ids.items()
        if len(found) > 1
    ]
    if repeated:
        _warn_once(
            f"data set {name!r}: {len(repeated)} file(s) under several image ids, each with only "
            f"a part of the objects of the image: {join_first(repeated, 3)}"
        )


def _warn_once(message: str) -> None:
    log_first_n(logging.WARNING, message, name=__name__, key="message")


def _check_annotations(
    record: dict,
    name: str,
    classes: Sequence[str] | None,
    num_keypoints: int,
    odd_boxes: dict[str, list[str]],
) -> list[dict]:
    """The record's annotations whose box has an area in the image."""
    size = record.get("height"), record.get("width")
    known_size = all(type(side) is int for side in size)
    kept = []
    for number, one in enumerate(record["annotations"], start=1):
        where = f"data set {name!r}: {record['file_name']}: object {number}"
        try:
            mode = BoxMode(one["bbox_mode"])
            if mode not in BOX_NUMBERS:
                raise ValueError(f"bbox_mode is {mode.name}, expected one of {list(BOX_NUMBERS)}")
            check_object(one, size if known_size else None, BOX_NUMBERS[mode])
            _check_labels(one, classes, num_keypoints)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{where}: {error!r}") from error
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error
        problem = None
        if known_size and mode != BoxMode.XYWHA_ABS and not one.get("iscrowd", 0):
            problem = _find_box_problem(one["bbox"], mode, *size)
        if problem is not None:
            odd_boxes[problem].append(os.path.basename(record["file_name"]))
        if problem is None or problem.endswith("clipped"):
            kept.append(one)
    return kept


def _check_labels(one: dict, classes: Sequence[str] | None, num_keypoints: int) -> None:
    label = one["category_id"]
    limit = math.inf if classes is None else len(classes)
    if isinstance(label, bool) or not hasattr(label, "__index__") or not 0 <= label < limit:
        known = "" if classes is None else f" to {limit - 1}, as the set has {limit} classes"
        raise ValueError(f"category_id is {shorten(label)}, expected a number from 0{known}")
    keypoints = one.get("keypoints")
    if keypoints is not None and len(keypoints) and num_keypoints:
        if len(keypoints) != 3 * num_keypoints:
            raise ValueError(
                f"{len(keypoints)} numbers in keypoints, expected {3 * num_keypoints}: x, y and "
                f"visibility of each of the set's {num_keypoints}"
            )


def _find_box_problem(box: Sequence[float], mode: BoxMode, height: int, width: int) -> str | None:
    x0, y0, x1, y1 = box
    if mode == BoxMode.XYWH_ABS:
        x1, y1 = x0 + x1, y0 + y1
    if x1 <= x0 or y1 <= y0:
        return "without area removed"
    if x0 >= width or y0 >= height or x1 <= 0 or y1 <= 0:
        return "outside the image removed"
    if max(-x0, -y0, x1 - width, y1 - height) > 1:  # less is rounding
        return "partly outside the image clipped"
    return None
