"""People's own data: what is wrong with it is said at the start, and nothing is lost silently."""

from __future__ import annotations

import copy
import json
import logging
import re

import numpy as np
import pytest
from PIL import Image

from tests.evaluation.sets import BOXES, NAMES, SIZE, coco_content
from tests.helpers import logged_by, tiny_cfg

pytestmark = pytest.mark.detectron2

HEIGHT, WIDTH = SIZE


@pytest.fixture
def register_dicts(tmp_path, catalog):
    """A function that registers dataset dicts, two of images of `SIZE` after a change of each."""
    from detectron2.data import DatasetCatalog, MetadataCatalog
    from detectron2.structures import BoxMode

    def call(change=lambda i, record: None, name: str = "dicts", **metadata) -> str:
        records = []
        for i in range(2):
            file = tmp_path / f"{name}{i}.png"
            Image.fromarray(np.zeros((HEIGHT, WIDTH, 3), np.uint8)).save(file)
            objects = [
                {"bbox": list(box), "bbox_mode": BoxMode.XYWH_ABS, "category_id": label}
                for label, box in enumerate(BOXES.values())
            ]
            record = {"file_name": str(file), "image_id": f"image {i}", "height": HEIGHT}
            record |= {"width": WIDTH, "annotations": objects}
            change(i, record)
            records.append(record)
        DatasetCatalog.register(name, lambda: copy.deepcopy(records))
        MetadataCatalog.get(name).set(thing_classes=list(NAMES), **metadata)
        catalog.append(name)
        return name

    return call


@pytest.fixture
def logged():
    with logged_by("hypernet_d2", logging.WARNING) as messages:
        yield messages


def config(tmp_path, train: str, test: str | None = None, *opts):
    fixed = ["DATASETS.TRAIN", (train,), "DATASETS.TEST", (test,) if test else (), "MODEL.WEIGHTS",
             "", "MODEL.ROI_HEADS.NUM_CLASSES", len(NAMES), "OUTPUT_DIR", str(tmp_path / "out"),
             "SOLVER.MAX_ITER", 1]  # fmt: skip
    return tiny_cfg(*fixed, *opts)


def train(*args):
    from hypernet_d2.engine import Trainer

    trainer = Trainer(config(*args))
    trainer.resume_or_load(resume=False)
    trainer.train()


MASKS = ("MODEL.MASK_ON", True, "MODEL.ROI_MASK_HEAD.NAME", "MaskRCNNConvUpsampleHead",
         "MODEL.ROI_MASK_HEAD.NUM_CONV", 1, "MODEL.ROI_MASK_HEAD.CONV_DIM", 8,
         "MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION", 7)  # fmt: skip
SQUARE = [[2, 3, 14, 3, 14, 13, 2, 13]]


def with_masks(segmentations) -> dict:
    """A json of one image with an object for each segmentation."""
    content = coco_content(objects=[("owl", BOXES["owl"])] * len(segmentations), images=1)
    for one, segmentation in zip(content["annotations"], segmentations, strict=True):
        if segmentation is not None:
            one["segmentation"] = segmentation
    return content


class TestCocoJson:
    def test_image_ids_of_another_type_are_named(self, register, tmp_path):
        content = coco_content()
        for one in content["annotations"]:
            one["image_id"] = str(one["image_id"])
        name = register(content)
        message = r"labels\.json: annotation 1 of image '1': 'image_id' is '1', expected an id of"
        with pytest.raises(ValueError, match=message):
            train(tmp_path, name, name)

    def test_annotations_of_other_images_alone_are_named(self, register, tmp_path):
        content = coco_content()
        for one in content["annotations"]:
            one["image_id"] += 100
        with pytest.raises(ValueError, match=r"no 'image_id' of its 6 annotations is the id"):
            train(tmp_path, register(content))

    @pytest.mark.parametrize("polygons", [[[]], [[1, 2, 3, 4]], [[1, 2, 3, 4, 5, 6, 7]]])
    def test_an_object_keeps_its_box_without_its_broken_polygon(
        self, register, tmp_path, logged, polygons
    ):
        from hypernet_d2.data.loader import build_train_loader

        name = register(with_masks([SQUARE, polygons, None]))
        cfg = config(tmp_path, name, None, "SOLVER.IMS_PER_BATCH", 1)
        batch = next(iter(build_train_loader(cfg, lambda record: record)))
        assert len(batch[0]["annotations"]) == 3
        assert any("1 annotation(s) with polygons of fewer than 3 points" in m for m in logged)

    def test_of_several_polygons_the_broken_one_is_reported(self, register, logged):
        from hypernet_d2.data import load_dataset

        (record,) = load_dataset(register(with_masks([[*SQUARE, [1, 2, 3, 4]]])))
        assert record["annotations"][0]["segmentation"] == SQUARE
        assert any("1 annotation(s) with polygons of fewer than 3 points" in m for m in logged)

    def test_keypoints_of_a_restored_object_are_converted_as_detectron2_does(self, register):
        from hypernet_d2.data import load_dataset

        content = with_masks([SQUARE, [[]]])
        for one in content["annotations"]:
            one["keypoints"], one["num_keypoints"] = [4, 5, 2], 1
        (record,) = load_dataset(register(content))
        good, restored = record["annotations"]
        assert restored["keypoints"] == [4.5, 5.5, 2]
        assert {**restored, "segmentation": SQUARE} == good

    def test_one_file_under_two_image_ids_is_told(self, register, logged):
        from hypernet_d2.data import load_dataset

        content = coco_content()
        content["images"][1]["file_name"] = "./0.png"
        load_dataset(register(content))
        assert any("1 file(s) under several image ids" in m and "0.png" in m for m in logged)

    @pytest.mark.parametrize("encoding", ["utf-16", "cp1252"])
    def test_another_encoding_is_named(self, register, tmp_path, encoding):
        content = coco_content(("Bär", "dog", "cat"), [("dog", BOXES["dog"])])
        name = register(content)
        file = tmp_path / "own/labels.json"
        file.write_bytes(json.dumps(content, ensure_ascii=False).encode(encoding))
        with pytest.raises(ValueError, match=r"labels\.json: expected COCO's json in UTF-8"):
            train(tmp_path, name)

    def test_test_images_of_another_size_are_named_before_training(self, register, tmp_path):
        name, val = register(coco_content()), register(coco_content(), "val")
        Image.fromarray(np.zeros((WIDTH, HEIGHT, 3), np.uint8)).save(tmp_path / "val/1.png")
        message = rf"'val': 1 image.*1\.png is {HEIGHT} x {WIDTH}.*says {WIDTH} x {HEIGHT}"
        with pytest.raises(ValueError, match=message):
            train(tmp_path, name, val)


class TestMasks:
    def test_masks_of_only_some_objects_are_refused(self, register, tmp_path):
        name = register(with_masks([SQUARE, None, SQUARE]))
        with pytest.raises(ValueError, match=r"1 of 3 objects have no mask .*MASK_ON.*0\.png"):
            train(tmp_path, name, None, *MASKS)

    def test_a_broken_polygon_is_no_mask(self, register, tmp_path):
        name = register(with_masks([SQUARE, [[]]]))
        with pytest.raises(ValueError, match="1 of 2 objects have no mask"):
            train(tmp_path, name, None, *MASKS)

    def test_run_length_codes_need_bitmasks(self, register, tmp_path):
        code = {"size": [HEIGHT, WIDTH], "counts": [5, 9, HEIGHT * WIDTH - 14]}
        name = register(with_masks([SQUARE, code]))
        with pytest.raises(ValueError, match=r"1 of 2 masks are run-length.*'polygon'.*'bitmask'"):
            train(tmp_path, name, None, *MASKS, "INPUT.MASK_FORMAT", "polygon")
        train(
            tmp_path, name, None, *MASKS, "INPUT.MASK_FORMAT", "bitmask", "SOLVER.IMS_PER_BATCH", 1
        )

    @pytest.mark.parametrize(
        ("name", "empty"),
        [
            ("runs", {"size": [HEIGHT, WIDTH], "counts": [HEIGHT * WIDTH]}),
            ("code", {"size": [HEIGHT, WIDTH], "counts": "PP3"}),
            ("point", [[4, 4, 4, 4, 4, 4]]),
        ],
    )
    def test_a_mask_without_a_pixel_is_told(self, register, tmp_path, logged, name, empty):
        from hypernet_d2.data.build import get_training_records

        register(with_masks([SQUARE, empty]), name)
        opts = (*MASKS, "INPUT.MASK_FORMAT", "bitmask")
        get_training_records(config(tmp_path, name, None, *opts))
        assert any("1 object(s) whose mask has no pixel" in m and "0.png" in m for m in logged)

    def test_masks_of_only_some_test_objects_are_refused_before_training(self, register, tmp_path):
        name = register(with_masks([SQUARE]))
        val = register(with_masks([SQUARE, None]), "val")
        with pytest.raises(ValueError, match=r"'val': 1 of 2 annotations have no 'segmentation'"):
            train(tmp_path, name, val, *MASKS, "SOLVER.IMS_PER_BATCH", 1)


STOCK_KEYPOINTS = ("MODEL.KEYPOINT_ON", True, "MODEL.ROI_KEYPOINT_HEAD.CONV_DIMS", (8,),
                   "MODEL.ROI_KEYPOINT_HEAD.POOLER_RESOLUTION", 7)  # fmt: skip
OUR_KEYPOINTS = (*STOCK_KEYPOINTS, "MODEL.ROI_KEYPOINT_HEAD.NAME", "HypercolumnKeypointHead",
                 "MODEL.ROI_KEYPOINT_HEAD.POOLER_TYPE", "", "MODEL.HYPERNET.HYPERCOLUMN.FC_DIM", 8,
                 "MODEL.HYPERNET.HYPERCOLUMN.CONV_DIM", 4,
                 "MODEL.HYPERNET.HYPERCOLUMN.HEATMAP_SIZE", 10)  # fmt: skip
NOSE_AND_TAIL = {"keypoint_names": ["nose", "tail"], "keypoint_flip_map": []}


def with_keypoints(number: int | None = 2, lacking: tuple[int, ...] = ()) -> dict:
    content = coco_content()
    for i, one in enumerate(content["annotations"]):
        if number is not None and i not in lacking:
            x, y = one["bbox"][:2]
            one["keypoints"], one["num_keypoints"] = [x + 2, y + 2, 2] * number, number
    return content


def number_of(keypoints: int, sigmas: tuple[float, ...] | None = None) -> tuple:
    sigmas = (0.1,) * keypoints if sigmas is None else sigmas
    return ("MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS", keypoints, "TEST.KEYPOINT_OKS_SIGMAS", sigmas)


@pytest.mark.parametrize("head", [STOCK_KEYPOINTS, OUR_KEYPOINTS], ids=["stock", "hypercolumn"])
class TestKeypoints:
    def test_names_are_as_many_as_the_head_has(self, register, tmp_path, head):
        name = register(with_keypoints(), **NOSE_AND_TAIL)
        with pytest.raises(ValueError, match="NUM_KEYPOINTS is 3, but data set 'own' has 2 keyp"):
            train(tmp_path, name, name, *head, *number_of(3))

    def test_annotations_are_as_many_as_the_head_has(self, register, tmp_path, head):
        name = register(with_keypoints(3), **NOSE_AND_TAIL)
        with pytest.raises(ValueError, match=r"0\.png: object 1: 9 numbers in keypoints, exp.* 6"):
            train(tmp_path, name, name, *head, *number_of(2))

    def test_a_test_set_without_names_is_counted_too(self, register, tmp_path, head):
        name = register(with_keypoints(), **NOSE_AND_TAIL)
        val = register(with_keypoints(3), "val")
        with pytest.raises(ValueError, match=r"'val': .*0\.png: an object has 9 numbers"):
            train(tmp_path, name, val, *head, *number_of(2))

    def test_sigmas_are_as_many_as_the_head_has(self, register, tmp_path, head):
        name = register(with_keypoints(), **NOSE_AND_TAIL)
        with pytest.raises(ValueError, match="KEYPOINT_OKS_SIGMAS is empty, for COCO's 17; expect"):
            train(tmp_path, name, name, *head, *number_of(2, ()))
        with pytest.raises(ValueError, match="KEYPOINT_OKS_SIGMAS is .*0.1.*; expected 2 numbers"):
            train(tmp_path, name, name, *head, *number_of(2, (0.1,)))

    def test_a_training_set_needs_names_and_a_flip_map(self, register, tmp_path, head):
        name = register(with_keypoints())
        with pytest.raises(ValueError, match="'own' has no keypoint_names or no keypoint_flip_map"):
            train(tmp_path, name, None, *head, *number_of(2))
        wrong = {"keypoint_names": ["nose", "tail"], "keypoint_flip_map": [("left", "right")]}
        name = register(with_keypoints(), "flipped", **wrong)
        with pytest.raises(ValueError, match="'flipped': keypoint_flip_map names 'left'"):
            train(tmp_path, name, None, *head, *number_of(2))

    def test_test_names_come_in_the_order_of_the_training_names(self, register, tmp_path, head):
        name = register(with_keypoints(), **NOSE_AND_TAIL)
        val = register(with_keypoints(), "val", keypoint_names=["tail", "nose"])
        message = r"'own' and 'val' have different .*\['tail', 'nose'\]"
        with pytest.raises(ValueError, match=message):
            train(tmp_path, name, val, *head, *number_of(2))

    def test_a_set_without_keypoints_is_refused(self, register, tmp_path, head):
        name = register(with_keypoints(None), **NOSE_AND_TAIL)
        with pytest.raises(ValueError, match="no object of data set 'own' has keypoints"):
            train(tmp_path, name, None, *head, *number_of(2))

    def test_objects_without_keypoints_have_none_that_are_labeled(self, register, tmp_path, head):
        """As COCO writes them; training and evaluation take them."""
        name = register(with_keypoints(2, lacking=(1, 5)), **NOSE_AND_TAIL)
        train(tmp_path, name, name, *head, *number_of(2))
        results = json.loads((tmp_path / "out/results.json").read_text())["own"]
        assert set(results) == {"bbox", "keypoints"}

    def test_val_annotations_without_keypoints_have_box_ap_alone(
        self, register, tmp_path, head, logged
    ):
        name = register(with_keypoints(), **NOSE_AND_TAIL)
        val = register(with_keypoints(None), "val")
        train(tmp_path, name, val, *head, *number_of(2))
        assert set(json.loads((tmp_path / "out/results.json").read_text())["val"]) == {"bbox"}
        assert any("'val' has no keypoints" in m and "not computed" in m for m in logged)


class TestDicts:
    @pytest.mark.parametrize("keys", [("height", "width"), ("image_id",), ("annotations",)])
    def test_what_a_record_lacks_is_added(self, register_dicts, tmp_path, keys):
        def drop(i, record):
            for key in keys:
                if i == 1 or key != "annotations":
                    del record[key]

        name = register_dicts(drop)
        train(tmp_path, name, name, "SOLVER.IMS_PER_BATCH", 1)
        truth = json.loads((tmp_path / "out/inference/dicts_coco_format.json").read_text())
        assert [(one["height"], one["width"]) for one in truth["images"]] == [SIZE, SIZE]
        assert len({one["id"] for one in truth["images"]}) == 2
        assert len(truth["annotations"]) == (3 if keys == ("annotations",) else 6)

    def test_an_image_id_of_two_records_is_named(self, register_dicts, tmp_path):
        name = register_dicts(lambda i, record: record.update(image_id=5))
        with pytest.raises(ValueError, match=r"dicts1\.png: image_id is 5, as that of .*dicts0"):
            train(tmp_path, name, name)

    def test_a_record_that_alone_lacks_its_image_id_is_named(self, register_dicts, tmp_path):
        name = register_dicts(lambda i, record: i and record.pop("image_id"))
        with pytest.raises(ValueError, match=r"dicts1\.png: no 'image_id'"):
            train(tmp_path, name, name)

    def test_a_missing_image_is_named(self, register_dicts, tmp_path):
        def move(i, record):
            record["file_name"] = str(tmp_path / "nowhere.png")
            del record["height"]

        with pytest.raises(FileNotFoundError, match=r"nowhere\.png: no such image"):
            train(tmp_path, register_dicts(move))


@pytest.mark.parametrize(("sizes", "warned"), [([200.0], True), ([16.0, 32.0], False)])
def test_windows_that_fit_no_object_are_told_with_both_sizes(
    register_dicts, tmp_path, logged, sizes, warned
):
    from hypernet_d2.data.build import get_training_records

    name = register_dicts()
    opts = ("MODEL.HYPERNET.PROPOSALS.SIZES", sizes, "INPUT.MIN_SIZE_TRAIN", (2 * HEIGHT,))
    get_training_records(config(tmp_path, name, None, *opts))
    # The objects are 11, 15 and 14 pixels large, in an input that is twice as large.
    expected = "0% of the objects have a window .*sizes of 200 to 200 .*median size of 28 pixels"
    assert any(re.search(expected, m) for m in logged) == warned
