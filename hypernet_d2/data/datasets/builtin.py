"""Registers ``bccd_*``, ``digits_*`` and ``coco_sample``; imported for that effect.

Only the catalogs are touched here. Files are found, read and (digits) generated on first use.
"""

import functools
from collections.abc import Callable

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json

from hypernet_d2.utils.coco_json import check_coco_file

from . import bccd, digits
from .paths import datasets_root

# A few photographs with persons, masks and keypoints in COCO's format, to try heads on.
COCO_SAMPLE_JSON = "annotations/person_keypoints_sample.json"


def _load_bccd(name: str, split: str, keep_odd_boxes: bool = False) -> list[dict]:
    _update_metadata(name, dirname=str(datasets_root() / "BCCD"))
    return bccd.load_bccd(split, keep_odd_boxes)


def _load_digits(name: str, split: str) -> list[dict]:
    folder = digits.generate_digits(digits.digits_root(), split)
    json_file, image_root = str(folder / digits.JSON_NAME), str(folder)
    check_coco_file(json_file)
    _update_metadata(name, json_file=json_file, image_root=image_root)
    return load_coco_json(json_file, image_root, name, extra_annotation_keys=["parts"])


def _load_coco_sample(name: str) -> list[dict]:
    root = datasets_root() / "coco_sample"
    json_file, image_root = str(root / COCO_SAMPLE_JSON), str(root / "images")
    check_coco_file(json_file)
    _update_metadata(name, json_file=json_file, image_root=image_root)
    return load_coco_json(json_file, image_root, name)


def _update_metadata(name: str, **values: str) -> None:
    """Set values that depend on ``$DETECTRON2_DATASETS``, which may have changed since.

    detectron2's metadata refuses to change a value that is set, so the entry is made anew.
    """
    known = MetadataCatalog.get(name).as_dict()
    if any(known.get(key) != value for key, value in values.items()):
        MetadataCatalog.pop(name)
        MetadataCatalog.get(name).set(**{**known, **values})


def _register(name: str, load: Callable[[], list[dict]], **metadata) -> None:
    if name in DatasetCatalog:
        return
    DatasetCatalog.register(name, load)
    MetadataCatalog.get(name).set(evaluator_type="coco", **metadata)


def register_builtin() -> None:
    """Register the sets that are not registered yet."""
    for split in bccd.SPLITS:
        name = f"bccd_{split}"
        _register(
            name,
            functools.partial(_load_bccd, name, split),
            thing_classes=list(bccd.CLASSES),
            dirname=str(datasets_root() / "BCCD"),
            split=split,
            year=2012,
        )
    for split in digits.SPLITS:
        name = f"digits_{split}"
        _register(
            name,
            functools.partial(_load_digits, name, split),
            thing_classes=list(digits.CLASSES),
            keypoint_names=list(digits.KEYPOINTS),
            keypoint_flip_map=list(digits.KEYPOINT_FLIP_MAP),
            keypoint_connection_rules=list(digits.KEYPOINT_CONNECTIONS),
            part_names=list(digits.PARTS),
        )
    persons = MetadataCatalog.get("keypoints_coco_2017_val")
    keypoints = ("keypoint_names", "keypoint_flip_map", "keypoint_connection_rules")
    _register(
        "coco_sample",
        lambda: _load_coco_sample("coco_sample"),
        thing_classes=["person"],
        **{key: persons.get(key) for key in keypoints},
    )


register_builtin()
