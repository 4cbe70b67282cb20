"""Data sets checked when they are loaded, before any training or evaluation on them."""

from __future__ import annotations

import contextlib
import functools
import logging
import math
import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from unittest import mock

from detectron2.data import DatasetCatalog, MetadataCatalog, build
from detectron2.structures import BoxMode
from detectron2.utils.logger import log_first_n

from hypernet_d2.utils import safe_pickle
from hypernet_d2.utils.coco_json import CheckedCOCO, check_object, first, short

__all__ = ["check_records", "checked_data", "load_dataset", "log_odd_boxes"]

# Numbers of a box, by the BoxModes that detectron2's mapper takes.
BOX_NUMBERS = {BoxMode.XYXY_ABS: 4, BoxMode.XYWH_ABS: 4, BoxMode.XYWHA_ABS: 5}


def load_dataset(name: str, *, evaluated: bool = False, keep_odd_boxes: bool = False) -> list[dict]:
    """What ``DatasetCatalog.get`` gives, once it has been found right; see `check_records`.

    Args:
        name: of a registered set.
        evaluated: whether COCO's evaluation is to read it, too; see `check_coco`.
        keep_odd_boxes: see `check_records`.

    Raises:
        ValueError: naming the file and the entry of it that is not what it has to be.
        FileNotFoundError: naming a file that is missing, images included.
        KeyError: no set has the name.
    """
    with _checked_json(evaluated):
        records = DatasetCatalog.get(name)
    # What else may be registered, as a torch Dataset, makes its records one by one.
    if not isinstance(records, list):
        return records
    return check_records(records, name, keep_odd_boxes=keep_odd_boxes)


@contextlib.contextmanager
def checked_data(evaluated: bool = False) -> Iterator[None]:
    """Within it, detectron2's loaders and COCO's evaluator read checked data only.

    Data sets come from `load_dataset`, and proposal files, which are pickles, must hold nothing
    but arrays, numbers and texts. It serves as a decorator, too.

    Raises:
        ValueError, FileNotFoundError: see `load_dataset`; or no image has an object, where images
            without are left out.
    """
    catalog = SimpleNamespace(keys=DatasetCatalog.keys, get=load_dataset)
    with (
        _checked_json(evaluated),
        mock.patch.object(build, "DatasetCatalog", catalog),
        mock.patch.object(build, "pickle", safe_pickle),
    ):
        try:
            yield
        except AssertionError as error:  # detectron2's, for a set of which nothing is left
            raise ValueError(
                f"{error} Images without objects are left out of training "
                "(DATALOADER.FILTER_EMPTY_ANNOTATIONS), and those with few keypoints "
                "(MODEL.ROI_KEYPOINT_HEAD.MIN_KEYPOINTS_PER_IMAGE)"
            ) from error


@contextlib.contextmanager
def _checked_json(evaluated: bool) -> Iterator[None]:
    # Imported before: a module that takes the reader's name while it stands for another keeps that.
    from detectron2.evaluation import coco_evaluation
    from pycocotools import coco

    # In place of their reader, so that a json, which may have half a gigabyte, is read only once.
    loading = functools.partial(CheckedCOCO, evaluated=evaluated)
    evaluating = functools.partial(CheckedCOCO, evaluated=evaluated, reads_images=False)
    with (
        mock.patch.object(coco, "COCO", loading),
        mock.patch.object(coco_evaluation, "COCO", evaluating),
    ):
        yield


def check_records(records: list[dict], name: str, *, keep_odd_boxes: bool = False) -> list[dict]:
    """Check detectron2's dataset dicts, and keep out the boxes that nothing can be learnt from.

    Boxes without area and boxes outside of their image are taken out of the records; they and
    those partly outside, which detectron2 clips, are counted and logged once by their images.

    Args:
        records: of the set; what a record lacks is not checked, save the ``file_name``.
        name: of the set.
        keep_odd_boxes: whether boxes without area or outside of the image stay, to be looked at.

    Returns:
        The records, of which some have lost boxes.

    Raises:
        ValueError: naming the image, for a value of another type, a number that is not finite, or
            a category that the set does not have.
        FileNotFoundError: naming images that are missing.
    """
    classes = MetadataCatalog.get(name).get("thing_classes", None)
    num_keypoints = len(MetadataCatalog.get(name).get("keypoint_names", None) or ())
    odd_boxes: dict[str, list[str]] = defaultdict(list)
    for number, record in enumerate(records):
        file_name = record.get("file_name") if isinstance(record, dict) else None
        if not isinstance(file_name, (str, os.PathLike)):
            raise ValueError(
                f"data set {name!r}: record {number} is {short(record)}, expected a dict with a "
                "'file_name'"
            )
        if record.get("annotations"):
            kept = _check_annotations(record, name, classes, num_keypoints, odd_boxes)
            if not keep_odd_boxes and len(kept) < len(record["annotations"]):
                record["annotations"] = kept
    _check_files([os.fspath(record["file_name"]) for record in records], name)
    log_odd_boxes(odd_boxes, f"data set {name!r}")
    return records


def log_odd_boxes(odd_boxes: dict[str, Sequence[str]], source: str, where: str = "") -> None:
    """Log once how many boxes are odd, and in which files: {what is odd: a file for each box}."""
    for what, files in odd_boxes.items():
        log_first_n(
            logging.WARNING,
            f"{source}: {len(files)} box(es) {what}: {first(files)}{where}",
            name=__name__,
            key="message",
        )


def _check_annotations(
    record: dict,
    name: str,
    classes: Sequence[str] | None,
    num_keypoints: int,
    odd_boxes: dict[str, list[str]],
) -> list[dict]:
    """Those of the record's annotations that have a box in the image."""
    size = record.get("height"), record.get("width")
    known_size = all(type(side) is int for side in size)
    kept = []
    for number, one in enumerate(record["annotations"], start=1):
        try:
            mode = BoxMode(one["bbox_mode"])
            if mode not in BOX_NUMBERS:
                raise ValueError(f"bbox_mode is {mode.name}, expected one of {list(BOX_NUMBERS)}")
            check_object(one, size if known_size else None, BOX_NUMBERS[mode])
            _check_labels(one, classes, num_keypoints)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{_at(record, number, name)}: {error!r}") from error
        except ValueError as error:
            raise ValueError(f"{_at(record, number, name)}: {error}") from error
        what = None
        if known_size and mode != BoxMode.XYWHA_ABS and not one.get("iscrowd", 0):
            what = _oddity(one["bbox"], mode, *size)
        if what is not None:
            odd_boxes[what].append(os.path.basename(record["file_name"]))
        if what is None or what.endswith("clipped"):
            kept.append(one)
    return kept


def _check_labels(one: dict, classes: Sequence[str] | None, num_keypoints: int) -> None:
    label = one["category_id"]
    most = math.inf if classes is None else len(classes)
    if isinstance(label, bool) or not hasattr(label, "__index__") or not 0 <= label < most:
        known = "" if classes is None else f" to {most - 1}, as the set has {most} classes"
        raise ValueError(f"category_id is {short(label)}, expected a number from 0{known}")
    keypoints = one.get("keypoints")
    if keypoints is not None and len(keypoints) and num_keypoints:
        if len(keypoints) != 3 * num_keypoints:
            raise ValueError(
                f"{len(keypoints)} numbers in keypoints, expected {3 * num_keypoints}: x, y and "
                f"visibility of each of the set's {num_keypoints}"
            )


def _oddity(box: Sequence[float], mode: BoxMode, height: int, width: int) -> str | None:
    x0, y0, x1, y1 = box
    if mode == BoxMode.XYWH_ABS:
        x1, y1 = x0 + x1, y0 + y1
    if x1 <= x0 or y1 <= y0:
        return "without area kept out"
    if x0 >= width or y0 >= height or x1 <= 0 or y1 <= 0:
        return "outside the image kept out"
    if max(-x0, -y0, x1 - width, y1 - height) > 1:  # less is rounding
        return "partly outside the image clipped"
    return None


def _check_files(file_names: list[str], name: str) -> None:
    """By listing the folders: a look at each of COCO's images takes minutes on a network's disk."""
    folders: dict[str, set[str]] = {}
    missing = []
    for path in file_names:
        folder, base = os.path.split(path)
        if "://" in path:  # detectron2 fetches it when it is read
            continue
        if folder not in folders:
            try:
                folders[folder] = set(os.listdir(folder or os.curdir))
            except OSError:
                folders[folder] = set()
        if base not in folders[folder] and not os.path.isfile(path):
            missing.append(path)
    if missing:
        raise FileNotFoundError(
            f"data set {name!r}: {len(missing)} of {len(file_names)} images are missing: "
            f"{first(missing, 3)}"
        )


def _at(record: dict, number: int, name: str) -> str:
    return f"data set {name!r}: {record['file_name']}: object {number}"
