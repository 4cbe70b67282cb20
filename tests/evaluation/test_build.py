"""Which evaluator a test set gets, known before any training."""

from __future__ import annotations

import pytest

from tests.helpers import tiny_cfg, write_voc

pytestmark = pytest.mark.detectron2


@pytest.fixture
def unknown(tmp_path):
    """A set whose evaluator does not exist."""
    from detectron2.data import DatasetCatalog, MetadataCatalog

    from hypernet_d2.data import load_voc_style

    write_voc(tmp_path / "voc", count=2)
    DatasetCatalog.register(
        "unknown", lambda: load_voc_style(tmp_path / "voc", "all", ["square", "bar"])
    )
    MetadataCatalog.get("unknown").set(thing_classes=["square", "bar"], evaluator_type="lvis")
    yield "unknown"
    DatasetCatalog.pop("unknown")
    MetadataCatalog.pop("unknown")


@pytest.mark.parametrize("schedule", ["joint", "alternating"])
def test_an_evaluator_that_does_not_exist_is_named_before_training(unknown, tmp_path, schedule):
    from hypernet_d2.engine import Trainer, train_alternating

    cfg = tiny_cfg("DATASETS.TRAIN", (unknown,), "DATASETS.TEST", (unknown,), "OUTPUT_DIR",
                   str(tmp_path / "out"), "MODEL.ROI_HEADS.NUM_CLASSES", 2)  # fmt: skip
    start = Trainer if schedule == "joint" else train_alternating
    with pytest.raises(ValueError, match=r"'lvis' .*expected one of \['coco', 'pascal_voc'\]"):
        start(cfg)
    assert not list(tmp_path.rglob("*.pth"))
