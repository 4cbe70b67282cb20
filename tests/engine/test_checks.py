"""What is refused before a model is built or trained."""

import pytest
import torch

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


ROTATED = [
    "MODEL.PROPOSAL_GENERATOR.NAME", "RRPN",
    "MODEL.ROI_HEADS.NAME", "RROIHeads",
    "MODEL.ANCHOR_GENERATOR.NAME", "RotatedAnchorGenerator",
    "MODEL.ROI_BOX_HEAD.POOLER_TYPE", "ROIAlignRotated",
    "MODEL.RPN.BBOX_REG_WEIGHTS", (1.0,) * 5,
    "MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS", (1.0,) * 5,
]  # fmt: skip


@pytest.fixture
def no_compiled_part(monkeypatch):
    """torch.ops as in a process that has not loaded detectron2._C."""
    monkeypatch.setattr(torch.ops, "detectron2", torch._ops._OpNamespace("absent"))


@pytest.mark.parametrize(
    ("opts", "named"),
    [
        (ROTATED, "ROIAlignRotated, RROIHeads, RRPN"),
        (ROTATED[:2] + ROTATED[4:6] + ROTATED[8:10], "RRPN"),
        (["MODEL.ROI_BOX_HEAD.POOLER_TYPE", "ROIAlignRotated"], "ROIAlignRotated"),
    ],
)
def test_rotated_boxes_without_the_compiled_part_are_refused(no_compiled_part, opts, named):
    from hypernet_d2.engine import Trainer

    with pytest.raises(ImportError, match=rf"^{named}: rotated boxes need detectron2._C"):
        Trainer.build_model(tiny_cfg(*opts))
    Trainer.build_model(tiny_cfg())


def test_training_on_rotated_boxes_needs_a_loader_of_its_own():
    from hypernet_d2.engine import Trainer

    with pytest.raises(ValueError, match="'RRPN' and MODEL.ROI_HEADS.NAME 'RROIHeads': needs rota"):
        Trainer.build_train_loader(tiny_cfg(*ROTATED))
