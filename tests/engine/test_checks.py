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
