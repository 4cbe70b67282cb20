"""Reading registered data sets with checks."""

from __future__ import annotations

import inspect
import logging

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode
from detectron2.utils.file_io import PathManager
from detectron2.utils.logger import log_first_n

from hypernet_d2.utils.coco_json import BadPolygons, check_coco_file, join_first
from hypernet_d2.utils.files import did_you_mean

from .checks import check_records

__all__ = ["check_registered", "load_dataset"]


def check_registered(name: str, setting: str = "") -> None:
    """
    Args:
        name: of a data set.
        setting: the configuration key or argument that names it, for the message.

    Raises:
        KeyError: no data set has the name; the message has a similar one.
    """
    if name not in DatasetCatalog:
        source = f" ({setting})" if setting else ""
        raise KeyError(
            f"no data set is called {name!r}{source}; --data PATH registers one of your own"
            f"{did_you_mean(name, DatasetCatalog)}"
        )


def load_dataset(name: str, *, evaluated: bool = False, keep_odd_boxes: bool = False) -> list[dict]:
    """The records that ``DatasetCatalog.get`` returns, after checks; see `check_records`.

    A COCO json, the ``json_file`` of the metadata, is checked before it is read. Objects that
    detectron2's loader leaves out because their polygons are broken come back without
    ``segmentation``.

    Args:
        name: of a registered set.
        evaluated: whether COCO's evaluation reads the set, too: then records need distinct ids,
            and a json also what `hypernet_d2.utils.coco_json.check_coco` names.
        keep_odd_boxes: whether boxes without area and boxes outside of the image stay, to be
            looked at.

    Raises:
        ValueError: naming the file and the entry that is not as expected.
        FileNotFoundError: naming a file that is missing, images included.
        KeyError: no set has the name.
    """
    check_registered(name)
    metadata = MetadataCatalog.get(name)
    bad_polygons = None
    if metadata.get("json_file") and metadata.get("evaluator_type") == "coco":
        json_file = PathManager.get_local_path(str(metadata.json_file))
        bad_polygons = check_coco_file(json_file, evaluated=evaluated)
    load = DatasetCatalog[name]
    if keep_odd_boxes and "keep_odd_boxes" in inspect.signature(load).parameters:
        records = load(keep_odd_boxes=True)
    else:
        records = load()
    # A torch Dataset may be registered as well; it makes its records one by one.
    if not isinstance(records, list):
        return records
    if bad_polygons is not None and bad_polygons.ids:
        _restore_objects(records, bad_polygons, name)
    return check_records(records, name, evaluated=evaluated, keep_odd_boxes=keep_odd_boxes)


def _restore_objects(records: list[dict], bad: BadPolygons, name: str) -> None:
    """Put the objects without a usable polygon back, and report all broken polygons once."""
    metadata = MetadataCatalog.get(name)
    log_first_n(
        logging.WARNING,
        f"{metadata.json_file}: {len(bad.ids)} annotation(s) with polygons of fewer than 3 points, "
        f"which are left out: {join_first(map(str, bad.ids))}. {len(bad.without_polygon)} of them "
        "have no other polygon, and keep their box",
        name=__name__,
        key="message",
    )
    categories = metadata.get("thing_dataset_id_to_contiguous_id")
    by_image = {record.get("image_id"): record for record in records}
    complete = {
        image_id: len(by_image[image_id]["annotations"])
        for image_id in bad.objects_per_image
        if image_id in by_image
    }
    for one in bad.without_polygon:
        complete[one["image_id"]] = complete.get(one["image_id"], 0) + 1
    for one in bad.without_polygon:
        image_id = one["image_id"]
        # Otherwise the set's own loader has left objects out, or put them back itself.
        if (
            image_id in by_image
            and categories is not None
            and complete[image_id] == bad.objects_per_image[image_id]
        ):
            by_image[image_id]["annotations"].append(_to_record_annotation(one, categories))


def _to_record_annotation(one: dict, categories: dict[int, int]) -> dict:
    """A json's annotation, without its segmentation, as detectron2's loader converts it."""
    keys = ("iscrowd", "bbox", "keypoints", "parts")
    converted = {key: one[key] for key in keys if key in one}
    converted["category_id"] = categories[one["category_id"]]
    converted["bbox_mode"] = BoxMode.XYWH_ABS
    if converted.get("keypoints"):  # from indices of pixels to continuous coordinates
        converted["keypoints"] = [
            value if i % 3 == 2 else value + 0.5 for i, value in enumerate(one["keypoints"])
        ]
    return converted
