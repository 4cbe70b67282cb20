"""COCO's json and dataset dicts: each kind of damage has its message, before any training."""

from __future__ import annotations

import copy
import itertools
import json
import logging
import re

import cv2
import numpy as np
import pytest

from tests.helpers import logged_by

pytestmark = pytest.mark.detectron2

CONTENT = {
    "images": [
        {"id": 7, "file_name": "a.jpg", "height": 30, "width": 40},
        {"id": 8, "file_name": "b.jpg", "height": 30, "width": 40},
    ],
    "categories": [{"id": 1, "name": "cell"}, {"id": 4, "name": "dust"}],
    "annotations": [
        {
            "id": 1, "image_id": 7, "category_id": 4, "bbox": [5, 6, 10, 12], "area": 120,
            "iscrowd": 0, "segmentation": [[5, 6, 15, 6, 15, 18]],
        },
        {
            "id": 2, "image_id": 8, "category_id": 1, "bbox": [0, 0, 4, 4], "area": 16,
            "iscrowd": 0, "segmentation": {"size": [30, 40], "counts": [0, 4, 1196]},
            "keypoints": [1, 1, 2], "num_keypoints": 1,
        },
    ],
}  # fmt: skip
_numbers = itertools.count()


class Set:
    """A set in COCO's format, whose content a test changes before it is registered."""

    def __init__(self, root):
        self.root, self.content = root, copy.deepcopy(CONTENT)
        self.name = f"coco_json_of_a_test_{next(_numbers)}"
        for image in self.content["images"]:
            cv2.imwrite(str(root / image["file_name"]), np.zeros((30, 40, 3), np.uint8))

    @property
    def file(self):
        return self.root / "labels.json"

    def register(self) -> str:
        from detectron2.data.datasets import register_coco_instances

        if not self.file.exists():
            self.file.write_text(json.dumps(self.content))
        register_coco_instances(self.name, {}, str(self.file), str(self.root))
        return self.name

    def load(self, **kwargs) -> list[dict]:
        from hypernet_d2.data import load_dataset

        return load_dataset(self.register(), **kwargs)


@pytest.fixture
def coco(tmp_path) -> Set:
    return Set(tmp_path)


@pytest.fixture
def logged():
    with logged_by("hypernet_d2.data.checks", logging.WARNING) as messages:
        yield messages


def test_a_right_file_is_read_as_by_detectron2(coco):
    from detectron2.data import DatasetCatalog

    assert coco.load(evaluated=True) == DatasetCatalog.get(coco.name)


def change(content: dict, path: str, value) -> None:
    """Sets ``annotations.0.bbox`` and the like; the value `...` deletes."""
    *keys, last = (int(key) if key.isdecimal() else key for key in path.split("."))
    for key in keys:
        content = content[key]
    if value is ...:
        del content[last]
    else:
        content[last] = value


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("annotations", {"a": 1}, "'annotations' is {'a': 1}, expected a list"),
        ("annotations.0", 5, "expected a list of objects"),
        ("images", [], "'images' is empty"),
        ("categories", ..., "'categories' is empty"),
        ("categories.1.id", 1, r"categories\[1\] has the id 1 of an entry before"),
        ("categories.1.id", "4", "numbers and texts"),
        ("categories.1.name", ..., "category 4: no 'name'"),
        ("images.1.id", 7, r"images\[1\] has the id 7 of an entry before"),
        ("images.0.id", [7], r"images\[0\]: 'id' is \[7\]"),
        ("images.0.file_name", ..., "image 7: no 'file_name'"),
        ("images.0.file_name", "../secret.jpg", "'../secret.jpg' lies outside of the folder"),
        ("images.0.file_name", "/etc/passwd", "'/etc/passwd' lies outside of the folder"),
        ("images.0.height", "30", "image 7 .a.jpg.: 'height' is '30', expected a number of pix"),
        ("images.0.width", 10**30, "'width' is 1000000"),
        ("images.0.width", 0, "'width' is 0"),
        ("annotations.0.id", ..., r"annotations\[0\]: no 'id'"),
        ("annotations.1.id", 1, r"annotations\[1\] has the id 1 of an entry before"),
        ("annotations.0.image_id", ..., "annotation 1: no 'image_id'"),
        ("annotations.0.image_id", [7], r"annotation 1 of image \[7\]: 'image_id' is \[7\]"),
        ("annotations.0.category_id", 2, r"of image 7: 'category_id' is 2, .*one of \[1, 4\]"),
        ("annotations.0.category_id", ..., "no 'category_id'"),
        ("annotations.0.bbox", ..., "no 'bbox', expected 4 finite numbers"),
        ("annotations.0.bbox", [], r"'bbox' is \[\]"),
        ("annotations.0.bbox", [1, 2, 3], r"'bbox' is \[1, 2, 3\]"),
        ("annotations.0.bbox", [1, 2, 3, float("nan")], r"'bbox' is \[1, 2, 3, nan\]"),
        ("annotations.0.bbox", [1, 2, 3, float("inf")], "'bbox'"),
        ("annotations.0.bbox", [1, 2, 3, 10**400], "'bbox'"),
        ("annotations.0.bbox", [1, 2, 3, "4"], "'bbox'"),
        ("annotations.0.bbox", "1234", "'bbox' is '1234'"),
        ("annotations.0.bbox", {"0": 1}, "'bbox' is {"),
        ("annotations.0.iscrowd", 2, "'iscrowd' is 2, expected 0 or 1"),
        ("annotations.0.ignore", 1, "'ignore' is 1, expected 0"),
        ("annotations.0.segmentation", [[1, 2, 3, 4, 5, 1e12]], "segmentation is .*polygons"),
        ("annotations.0.segmentation", [1, 2, 3], "segmentation is"),
        ("annotations.1.segmentation.size", [30, 41], "are no runs over 30 x 41 pixels"),
        ("annotations.1.segmentation.counts", [0, 4, 1197], "are no runs over 30 x 40 pixels"),
        ("annotations.1.segmentation.counts", "ZZZ", "are no runs"),
        ("annotations.1.segmentation.counts", ..., "are no runs"),
        ("annotations.1.keypoints", [1, 1], "'keypoints' is"),
        ("annotations.1.keypoints", [1, None, 2], "'keypoints' is"),
        ("annotations.0.area", ..., "no 'area', expected a number, which COCO's evaluation"),
        ("annotations.1.num_keypoints", ..., "no 'num_keypoints'"),
        ("annotations.0.id", -1, "'id' is -1, expected a whole number, which COCO's evaluation"),
    ],
)
def test_what_is_wrong_is_named(coco, path, value, message):
    change(coco.content, path, value)
    with pytest.raises(ValueError, match=rf"^{re.escape(str(coco.file))}: .*{message}"):
        coco.load(evaluated=True)


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 10**5, '{"images": 1' + "0" * 5000 + "}"])
def test_a_file_that_is_no_such_json_is_named(coco, text):
    coco.file.write_text(text)
    with pytest.raises(ValueError, match="labels.json"):
        coco.load()


def test_an_object_that_evaluation_would_never_find_is_logged(coco, caplog):
    coco.content["annotations"][0]["id"] = 0
    with caplog.at_level(logging.WARNING, "hypernet_d2.utils.coco_json"):
        logging.getLogger("hypernet_d2").propagate = True
        coco.load(evaluated=True)
    assert "takes the id 0 for no object" in caplog.text


def test_a_damaged_cache_of_the_digits_is_named(tmp_path, monkeypatch):
    from hypernet_d2.data import load_dataset
    from hypernet_d2.data.datasets.digits import VERSION

    folder = tmp_path / f"digits/val-v{VERSION}-seed0-n100"
    folder.mkdir(parents=True)
    (folder / "annotations.json").write_text('{"images": [{"id": 1, "file_n')
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    with pytest.raises(ValueError, match=r"n100/annotations\.json: expected COCO's json"):
        load_dataset("digits_val")


def test_training_needs_no_areas(coco):
    for one in coco.content["annotations"]:
        del one["area"]
    assert len(coco.load()) == 2


def test_a_run_length_code_of_another_size_than_its_image_is_named(coco):
    change(coco.content, "annotations.1.segmentation", {"size": [2, 3], "counts": [6]})
    with pytest.raises(ValueError, match=r"b\.jpg: object 1: segmentation: size is \[2, 3\]"):
        coco.load()


def test_odd_boxes_are_kept_out_counted_and_logged_once(coco, logged):
    whole = coco.content["annotations"][0]
    boxes = [[5, 5, 0, 3], [5, 5, -2, 3], [50, 2, 3, 3], [30, 20, 30, 5], [-0.5, 0, 40.9, 30]]
    for number, box in enumerate(boxes, start=10):
        coco.content["annotations"].append({**whole, "id": number, "bbox": box})
    records = coco.load()
    assert [a["bbox"] for a in records[0]["annotations"]] == [whole["bbox"], *boxes[3:]]
    assert sorted(re.sub("^.*?: ", "", message) for message in logged) == [
        "1 box(es) outside the image removed: a.jpg",
        "1 box(es) partly outside the image clipped: a.jpg",
        "2 box(es) without area removed: a.jpg",
    ]


def test_missing_images_are_named_before_training(coco):
    (coco.root / "b.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 of 2 images are missing: .*b\.jpg"):
        coco.load()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"category_id": 5}, r"category_id is 5, expected a number from 0 to 1, .*2 classes"),
        ({"category_id": "cell"}, "category_id is 'cell'"),
        ({"bbox_mode": 9}, "9 is not a valid BoxMode"),
        ({"bbox": [0, 0, float("nan"), 1]}, "bbox"),
        ({"keypoints": [1, 1, 2]}, "3 numbers in keypoints, expected 6"),
    ],
)
def test_dicts_of_ones_own_are_checked(tmp_path, change, message):
    from detectron2.data import MetadataCatalog
    from detectron2.structures import BoxMode

    from hypernet_d2.data.checks import check_records

    name = f"own_{next(_numbers)}"
    MetadataCatalog.get(name).set(thing_classes=["cell", "dust"], keypoint_names=["a", "b"])
    one = {"bbox": [0, 0, 5, 5], "bbox_mode": BoxMode.XYXY_ABS, "category_id": 1}
    record = {"file_name": str(tmp_path / "x.jpg"), "height": 9, "width": 9}
    with pytest.raises(ValueError, match=rf"data set '{name}': .*x\.jpg: object 2: .*{message}"):
        check_records([{**record, "annotations": [one, {**one, **change}]}], name)
    with pytest.raises(ValueError, match="record 1 is 5, expected a dict with a 'file_name'"):
        check_records([record, 5], name)


def test_the_loaders_and_the_evaluator_read_checked_data_only(coco, tmp_path):
    from hypernet_d2.engine import Trainer, build_evaluator
    from tests.helpers import tiny_cfg

    del coco.content["annotations"][0]["area"]
    name = coco.register()
    cfg = tiny_cfg("DATASETS.TRAIN", (name,), "DATASETS.TEST", (name,), "OUTPUT_DIR",
                   str(tmp_path), "MODEL.ROI_HEADS.NUM_CLASSES", 2)  # fmt: skip
    with pytest.raises(ValueError, match=r"labels\.json: annotation 1 of image 7: no 'area'"):
        Trainer(cfg)
    with pytest.raises(ValueError, match=r"labels\.json: annotation 1 of image 7: no 'area'"):
        build_evaluator(cfg, name)
    assert next(iter(Trainer.build_train_loader(cfg)))
    coco.file.write_text(coco.file.read_text().replace("[5, 6, 10, 12]", "[5, 6, 10, NaN]"))
    for build in (Trainer.build_train_loader, lambda cfg: Trainer.build_test_loader(cfg, name)):
        with pytest.raises(ValueError, match=r"labels\.json: .*'bbox' is \[5, 6, 10, nan\]"):
            build(cfg)
