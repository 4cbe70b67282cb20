"""BCCD: its numbers, its two boxes without area, and the stock loader and evaluators on it."""

import pytest

pytestmark = pytest.mark.detectron2


@pytest.fixture
def bccd(bccd_root, monkeypatch):
    """``DatasetCatalog``, with BCCD where it can be found."""
    from detectron2.data import DatasetCatalog, MetadataCatalog

    import hypernet_d2  # noqa: F401  (registers)

    monkeypatch.setenv("DETECTRON2_DATASETS", str(bccd_root.parent))
    yield DatasetCatalog
    # The stock evaluator notes where it put its conversion, which is gone after the test.
    known = MetadataCatalog.pop("bccd_test").as_dict()
    known.pop("json_file", None)
    MetadataCatalog.get("bccd_test").set(**known)


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_missing_folder_says_where_and_how(tmp_path, monkeypatch, split):
    from detectron2.data import DatasetCatalog

    import hypernet_d2  # noqa: F401  (registers)

    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    with pytest.raises(FileNotFoundError) as error:
        DatasetCatalog.get(f"bccd_{split}")
    assert str(tmp_path / "BCCD") in str(error.value)
    assert "github.com/Shenggan/BCCD_Dataset" in str(error.value)
    assert "DETECTRON2_DATASETS" in str(error.value)


@pytest.mark.bccd
def test_numbers_and_boxes_without_area(bccd):
    # 4,888 boxes in the xml, less the one without area in BloodImage_00338 and in 00343.
    records = {split: bccd.get(f"bccd_{split}") for split in ("train", "val", "test")}
    assert {split: len(r) for split, r in records.items()} == {"train": 205, "val": 87, "test": 72}
    everything = [record for split in records.values() for record in split]
    assert len({record["image_id"] for record in everything}) == 364
    annotations = [a for record in everything for a in record["annotations"]]
    counts = [sum(a["category_id"] == c for a in annotations) for c in range(3)]
    assert counts == [4153, 372, 361]
    assert all(a["bbox"][0] < a["bbox"][2] and a["bbox"][1] < a["bbox"][3] for a in annotations)


@pytest.mark.bccd
def test_coco_evaluator_finds_the_ground_truth_perfect(bccd, tmp_path, perfect_outputs):
    from detectron2.data import MetadataCatalog
    from detectron2.evaluation import COCOEvaluator

    metadata = MetadataCatalog.get("bccd_test")
    assert metadata.evaluator_type == "coco"
    evaluator = COCOEvaluator("bccd_test", ["bbox"], False, output_dir=str(tmp_path))
    evaluator.reset()
    for record in bccd.get("bccd_test"):
        evaluator.process([record], [perfect_outputs(record)])
    bbox = evaluator.evaluate()["bbox"]
    assert bbox["AP"] > 99
    assert bbox["AP-Platelets"] > 99


@pytest.mark.bccd
def test_voc_evaluator_finds_the_ground_truth_perfect(bccd, perfect_outputs):
    from detectron2.evaluation import PascalVOCDetectionEvaluator

    records = bccd.get("bccd_test")
    evaluator = PascalVOCDetectionEvaluator("bccd_test")
    evaluator.reset()
    for record in records:
        evaluator.process([record], [perfect_outputs(record)])
    bbox = evaluator.evaluate()["bbox"]
    assert bbox["AP50"] > 99


@pytest.mark.bccd
def test_stock_loader_gives_batches(bccd):
    from detectron2.data import build_detection_train_loader
    from detectron2.data import transforms as T

    from hypernet_d2.data import NamedErrorDatasetMapper

    mapper = NamedErrorDatasetMapper(
        is_train=True, augmentations=[T.ResizeShortestEdge(240)], image_format="BGR"
    )
    loader = build_detection_train_loader(
        bccd.get("bccd_val")[:4], mapper=mapper, total_batch_size=4, num_workers=0
    )
    batch = next(iter(loader))
    assert [item["image"].shape for item in batch] == [(3, 240, 320)] * 4
    assert all(len(item["instances"]) > 0 for item in batch)
