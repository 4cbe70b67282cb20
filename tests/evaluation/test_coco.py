"""COCO's AP against the ground truth of now, with as many detections as the config allows."""

from __future__ import annotations

import copy
import json
import math

import numpy as np
import pytest
from PIL import Image

from tests.evaluation.sets import BOXES, NAMES, SIZE, PerfectDetector, coco_content
from tests.helpers import tiny_cfg, write_voc

pytestmark = pytest.mark.detectron2


def evaluate(tmp_path, name: str, model=None, *opts) -> dict:
    """What a perfect detector, or another one, gets."""
    from hypernet_d2.engine import Trainer

    cfg = tiny_cfg("DATASETS.TRAIN", (name,), "DATASETS.TEST", (name,), "OUTPUT_DIR",
                   str(tmp_path / "out"), *opts)  # fmt: skip
    if model is None:
        from detectron2.data import MetadataCatalog

        from hypernet_d2.data import load_dataset

        load_dataset(name)
        model = PerfectDetector(MetadataCatalog.get(name).thing_classes, name)
    return Trainer.test(cfg, model)


class TestCurrentGroundTruth:
    def test_a_label_that_was_mended_counts(self, tmp_path, catalog):
        from hypernet_d2.data import register_voc_style

        write_voc(tmp_path / "voc", count=2)
        register_voc_style("voc", tmp_path / "voc", "all", ["square", "bar"])
        catalog.append("voc")
        opts = ("MODEL.ROI_HEADS.NUM_CLASSES", 2)
        xml = tmp_path / "voc/Annotations/000.xml"
        right = xml.read_text()
        # A box that nothing of the right one overlaps.
        wrong = right[: right.index("<object>")] + (
            "<object><name>bar</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>4</xmax>"
            "<ymax>4</ymax></bndbox></object></annotation>"
        )
        detector = PerfectDetector(["square", "bar"], "voc")
        xml.write_text(wrong)
        assert evaluate(tmp_path, "voc", detector, *opts)["bbox"]["AP50"] < 90
        xml.write_text(right)
        assert evaluate(tmp_path, "voc", detector, *opts)["bbox"]["AP50"] == pytest.approx(100)

    def test_a_picture_that_was_added_counts(self, tmp_path, catalog):
        from hypernet_d2.data import register_voc_style

        write_voc(tmp_path / "voc", count=3)
        split = tmp_path / "voc/ImageSets/Main/all.txt"
        split.write_text("000\n001\n")
        register_voc_style("voc", tmp_path / "voc", "all", ["square", "bar"])
        catalog.append("voc")
        opts = ("MODEL.ROI_HEADS.NUM_CLASSES", 2)
        for names in ("000\n001\n", "000\n001\n002\n", "002\n"):
            split.write_text(names)
            results = evaluate(tmp_path, "voc", None, *opts)
            assert results["bbox"]["AP50"] == pytest.approx(100)
            written = json.loads((tmp_path / "out/inference/voc_coco_format.json").read_text())
            assert [one["id"] for one in written["images"]] == names.split()

    def test_the_metadata_stays_as_it_was(self, tmp_path, catalog):
        from detectron2.data import MetadataCatalog

        from hypernet_d2.data import register_voc_style

        write_voc(tmp_path / "voc", count=1)
        register_voc_style("voc", tmp_path / "voc", "all", ["square", "bar"])
        catalog.append("voc")
        before = copy.copy(MetadataCatalog.get("voc").as_dict())
        names = set(MetadataCatalog.keys())
        evaluate(tmp_path, "voc", None, "MODEL.ROI_HEADS.NUM_CLASSES", 2)
        assert MetadataCatalog.get("voc").as_dict() == before
        assert set(MetadataCatalog.keys()) == names


@pytest.mark.parametrize(("limit", "ap"), [(300, 100), (-1, 100), (100, 100 / 3)])
def test_more_than_100_detections_of_a_picture_count(register, tmp_path, limit, ap):
    """300 objects on a grid; the detector finds as many as the config lets it."""
    content = coco_content()
    content["images"] = [{"id": 1, "file_name": "0.png", "height": 300, "width": 400}]
    content["annotations"] = [
        {"id": i + 1, "image_id": 1, "category_id": 1, "area": 100, "iscrowd": 0,
         "bbox": [i % 20 * 20, i // 20 * 20, 10, 10]}
        for i in range(300)
    ]  # fmt: skip
    name = register(content)
    Image.fromarray(np.zeros((300, 400, 3), np.uint8)).save(tmp_path / name / "0.png")
    opts = ("TEST.DETECTIONS_PER_IMAGE", limit, "MODEL.RPN.POST_NMS_TOPK_TEST", 300)
    assert evaluate(tmp_path, name, None, *opts)["bbox"]["AP"] == pytest.approx(ap, abs=1)


def test_a_json_without_info_can_be_evaluated(register, tmp_path):
    """pycocotools 2.0.10 copies ``info`` without asking."""
    content = coco_content()
    del content["info"]
    name = register(content)
    assert evaluate(tmp_path, name)["bbox"]["AP50"] == pytest.approx(100)
    written = json.loads((tmp_path / f"out/inference/{name}_coco_format.json").read_text())
    assert written == {**content, "info": {}}


@pytest.mark.parametrize("evaluator", ["coco", "pascal_voc"])
def test_a_set_without_objects_has_no_ap(register, tmp_path, evaluator):
    name = register(coco_content(objects=[]))
    opts = ("MODEL.HYPERNET.EVALUATOR", evaluator)
    other = register(coco_content(), "other")
    finds = PerfectDetector(NAMES, name, other)
    finds.truth |= {k.replace("other", name): v for k, v in finds.truth.items() if "other" in k}
    assert math.isnan(evaluate(tmp_path, name, finds, *opts)["bbox"]["AP50"])
    written = json.loads((tmp_path / "out/results.json").read_text())
    assert written[name]["bbox"]["AP"] is None


def test_no_detection_at_all_has_no_ap(register, tmp_path):
    name = register(coco_content())
    finds_nothing = PerfectDetector(NAMES, register(coco_content(objects=[]), "empty"))
    finds_nothing.truth = {k.replace("empty", name): v for k, v in finds_nothing.truth.items()}
    evaluate(tmp_path, name, finds_nothing)
    assert json.loads((tmp_path / "out/results.json").read_text())[name]["bbox"]["AP"] is None


def test_keypoints_are_evaluated_where_objects_lack_them(register, tmp_path):
    content = coco_content()
    for one in content["annotations"][:-1]:
        x, y = one["bbox"][:2]
        one["keypoints"], one["num_keypoints"] = [x + 1, y + 1, 2, x + 9, y + 6, 2], 2
    name = register(content, keypoint_names=["head", "tail"], keypoint_flip_map=[])
    opts = ("MODEL.KEYPOINT_ON", True, "MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS", 2,
            "TEST.KEYPOINT_OKS_SIGMAS", (0.1, 0.1))  # fmt: skip
    detector = PerfectDetector(NAMES, name)
    for record, _ in detector.truth.values():
        for one in record["annotations"]:
            one["keypoints"] = one.get("keypoints") or [1.0, 1.0, 2] * 2
    results = evaluate(tmp_path, name, detector, *opts)
    assert results["bbox"]["AP50"] == pytest.approx(100)
    assert results["keypoints"]["AP50"] == pytest.approx(100)


def test_sets_without_class_names_say_how_to_give_them(tmp_path, catalog):
    from detectron2.data import DatasetCatalog

    from hypernet_d2.evaluation import build_evaluator

    Image.fromarray(np.zeros((*SIZE, 3), np.uint8)).save(tmp_path / "a.png")
    record = {"file_name": str(tmp_path / "a.png"), "annotations": []}
    DatasetCatalog.register("bare", lambda: [dict(record)])
    catalog.append("bare")
    with pytest.raises(ValueError, match=r"get\('bare'\)\.set\(thing_classes="):
        build_evaluator(tiny_cfg(), "bare", str(tmp_path))


def test_areas_and_crowds_of_a_json_are_its_own(register, tmp_path):
    """The json itself is evaluated, not a conversion of its boxes."""
    content = coco_content()
    for one in content["annotations"]:
        one["area"] = 50**2
    content["annotations"].append(
        {"id": 99, "image_id": 1, "category_id": 1, "bbox": [0, 0, 64, 48], "area": 9, "iscrowd": 1}
    )
    results = evaluate(tmp_path, register(content))["bbox"]
    assert results["APm"] == pytest.approx(100) and math.isnan(results["APs"])
    assert not (tmp_path / "out/inference/own_coco_format.json").exists()
    assert BOXES["owl"][2] * BOXES["owl"][3] < 32**2
