"""VOC's AP of any xml, and equal to detectron2's where that one can read it."""

from __future__ import annotations

import json

import pytest
import torch

from tests.evaluation.sets import NAMES, PerfectDetector, coco_content, write_coco
from tests.helpers import tiny_cfg, write_voc

pytestmark = pytest.mark.detectron2


@pytest.fixture
def voc(tmp_path):
    """The folder of a set that is registered as ``voc``."""
    from detectron2.data import DatasetCatalog, MetadataCatalog

    from hypernet_d2.data import register_voc_style

    write_voc(tmp_path / "voc", count=4)
    register_voc_style("voc", tmp_path / "voc", "all", ["square", "bar"])
    yield tmp_path / "voc"
    DatasetCatalog.pop("voc")
    MetadataCatalog.pop("voc")


def change(voc, old: str, new: str) -> None:
    for xml in (voc / "Annotations").iterdir():
        text = xml.read_text()
        assert old in text
        xml.write_text(text.replace(old, new))


def perfect(tmp_path, name="voc", classes=("square", "bar")) -> float:
    from hypernet_d2.engine import Trainer

    options = {"DATASETS.TRAIN": (name,), "DATASETS.TEST": (name,), "OUTPUT_DIR": str(tmp_path)}
    options["MODEL.ROI_HEADS.NUM_CLASSES"] = len(classes)
    cfg = tiny_cfg("MODEL.HYPERNET.EVALUATOR", "pascal_voc", *sum(options.items(), ()))
    return Trainer.test(cfg, PerfectDetector(classes, name))["bbox"]["AP50"]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("<difficult>0</difficult>", ""),
        ("<difficult>0</difficult>", "<difficult>Unspecified</difficult>"),
        ("</xmin>", ".4</xmin>"),
        ("</name>", "</name><pose>Left</pose><truncated>0</truncated>"),
    ],
)
def test_a_perfect_detector_is_perfect_on_any_xml(voc, tmp_path, old, new):
    change(voc, old, new)
    assert perfect(tmp_path) == pytest.approx(100)


def test_ids_may_have_spaces(voc, tmp_path):
    for folder, suffix in (("Annotations", "xml"), ("JPEGImages", "jpg")):
        (voc / folder / f"000.{suffix}").rename(voc / folder / f"my photo 1.{suffix}")
    split = voc / "ImageSets/Main/all.txt"
    split.write_text(split.read_text().replace("000", "my photo 1"))
    assert perfect(tmp_path) == pytest.approx(100)


def test_labels_are_those_of_now(voc, tmp_path):
    change(voc, "<name>bar</name>", "<name>square</name>")
    assert perfect(tmp_path) == pytest.approx(100)
    change(voc, "<name>square</name>", "<name>bar</name>")
    assert perfect(tmp_path) == pytest.approx(100)


def test_difficult_objects_count_neither_way(voc, tmp_path):
    """Neither when they are missed nor when they are found."""
    first, rest = "<name>square</name><difficult>0", "<name>square</name><difficult>1"
    xml = voc / "Annotations/000.xml"
    xml.write_text(xml.read_text().replace(first, rest))
    assert perfect(tmp_path) == pytest.approx(100)
    from hypernet_d2.data import load_dataset
    from hypernet_d2.evaluation import build_evaluator

    evaluator = build_evaluator(tiny_cfg("MODEL.HYPERNET.EVALUATOR", "pascal_voc"), "voc")
    evaluator.reset()
    detector = PerfectDetector(["square", "bar"], "voc")
    for record in load_dataset("voc"):
        output = detector([record])
        if record["image_id"] == "000":
            found = output[0]["instances"]
            output[0]["instances"] = found[found.pred_classes == 1]
        evaluator.process([record], output)
    assert evaluator.evaluate()["bbox"]["AP50"] == pytest.approx(100)


@pytest.mark.parametrize("year", [2007, 2012])
def test_as_detectron2_on_xml_that_it_can_read(voc, tmp_path, year):
    from detectron2.data import DatasetCatalog, MetadataCatalog
    from detectron2.data.datasets import register_pascal_voc
    from detectron2.evaluation import PascalVOCDetectionEvaluator

    from hypernet_d2.data import load_dataset
    from hypernet_d2.evaluation import build_evaluator

    change(voc, "</name>", "</name><pose>Left</pose><truncated>0</truncated>")
    xml = voc / "Annotations/001.xml"
    xml.write_text(xml.read_text().replace("<difficult>0", "<difficult>1", 1))
    register_pascal_voc("stock", str(voc), "all", year, ("square", "bar"))
    MetadataCatalog.get("stock").evaluator_type = "pascal_voc"
    try:
        records = load_dataset("stock")
        ours, stock = build_evaluator(tiny_cfg(), "stock"), PascalVOCDetectionEvaluator("stock")
        generator = torch.Generator().manual_seed(0)
        detector = PerfectDetector(["square", "bar"], "stock")
        outputs = []
        for record in records:
            found = detector([record])[0]["instances"]
            found.pred_boxes.tensor += torch.randn(len(found), 4, generator=generator) * 2
            found.scores = torch.rand(len(found), generator=generator)
            outputs.append({"instances": found})
        results = []
        for evaluator in (ours, stock):
            evaluator.reset()
            for record, output in zip(records, outputs, strict=True):
                evaluator.process([record], [output])
            results.append(evaluator.evaluate()["bbox"])
        assert results[0] == pytest.approx(results[1])
        assert 0 < results[0]["AP"] < 100
    finally:
        DatasetCatalog.pop("stock")
        MetadataCatalog.pop("stock")


def test_sets_of_other_formats_have_it_too(tmp_path):
    from detectron2.data import DatasetCatalog, MetadataCatalog
    from detectron2.data.datasets import register_coco_instances

    json_file = write_coco(tmp_path / "set", coco_content())
    assert json.loads(json_file.read_text())["annotations"]
    register_coco_instances("json", {}, str(json_file), str(tmp_path / "set"))
    try:
        assert perfect(tmp_path, "json", NAMES) == pytest.approx(100)
    finally:
        DatasetCatalog.pop("json")
        MetadataCatalog.pop("json")
