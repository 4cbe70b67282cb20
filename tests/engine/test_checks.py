"""What is refused before a model is built or trained."""

import pytest

from tests.helpers import tiny_cfg

pytestmark = pytest.mark.detectron2

PARTS = ["MODEL.MASK_ON", True, "MODEL.ROI_MASK_HEAD.NAME", "HypercolumnPartHead"]


@pytest.mark.parametrize(
    ("opts", "named"),
    [
        (PARTS, r"ROI_MASK_HEAD.NAME 'HypercolumnPartHead'"),
        (["MODEL.KEYPOINT_ON", True], "KEYPOINT_ON True"),
        (["MODEL.LOAD_PROPOSALS", True], "LOAD_PROPOSALS True"),
        (["MODEL.META_ARCHITECTURE", "RetinaNet"], "META_ARCHITECTURE 'RetinaNet'"),
    ],
)
def test_test_time_augmentation_of_other_than_boxes_and_masks_is_refused(opts, named):
    from hypernet_d2.engine import Trainer, train_alternating

    cfg = tiny_cfg(*opts, "TEST.AUG.ENABLED", True)
    with pytest.raises(ValueError, match=rf"TEST.AUG.ENABLED is True.*{named}"):
        Trainer(cfg)
    with pytest.raises(ValueError, match=rf"TEST.AUG.ENABLED is True.*{named}"):
        Trainer.test_with_TTA(cfg, None)
    if "RetinaNet" not in opts and "MODEL.LOAD_PROPOSALS" not in opts:
        with pytest.raises(ValueError, match=rf"TEST.AUG.ENABLED is True.*{named}"):
            train_alternating(cfg)


@pytest.mark.parametrize("opts", [[], ["MODEL.MASK_ON", True]])
def test_test_time_augmentation_of_boxes_and_masks_is_not_refused(opts):
    from hypernet_d2.engine.checks import check_test_time_augmentation

    check_test_time_augmentation(tiny_cfg(*opts, "TEST.AUG.ENABLED", True))


def test_the_number_of_classes_must_be_that_of_the_training_set(monkeypatch):
    from detectron2.data import MetadataCatalog

    from hypernet_d2.engine.checks import check_num_classes

    def check(number, *opts, train=("counted",)):
        cfg = tiny_cfg("MODEL.ROI_HEADS.NUM_CLASSES", number, "DATASETS.TRAIN", train, *opts)
        check_num_classes(cfg, ["counted"])

    MetadataCatalog.get("counted").thing_classes = ["square", "bar"]
    try:
        check(2)
        with pytest.raises(ValueError, match="NUM_CLASSES is 3, but .*'counted' has 2: square, b"):
            check(3)
        check(3, "MODEL.HYPERNET.ALLOW_UNUSED_CLASSES", True)
        check(3, train=())
        for opts in ([], ["MODEL.HYPERNET.ALLOW_UNUSED_CLASSES", True]):
            with pytest.raises(ValueError, match="NUM_CLASSES is 1, but .*'counted' has 2"):
                check(1, *opts)
    finally:
        MetadataCatalog.pop("counted")
