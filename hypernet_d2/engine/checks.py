"""Checks of a config that are made before a model is built or trained."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

from hypernet_d2.data.parts import has_parts

__all__ = ["check_num_classes", "check_test_time_augmentation"]

logger = logging.getLogger(__name__)


def check_test_time_augmentation(cfg: CfgNode) -> None:
    """
    Raises:
        ValueError: ``TEST.AUG.ENABLED`` is set for a model that detectron2's
            GeneralizedRCNNWithTTA cannot run: it merges boxes and masks only, and needs a
            GeneralizedRCNN that proposes regions by itself.
    """
    if not cfg.TEST.AUG.ENABLED:
        return
    unsupported = {
        "MODEL.ROI_MASK_HEAD.NAME 'HypercolumnPartHead'": has_parts(cfg),
        "MODEL.KEYPOINT_ON True": cfg.MODEL.KEYPOINT_ON,
        "MODEL.LOAD_PROPOSALS True": cfg.MODEL.LOAD_PROPOSALS,
        f"MODEL.META_ARCHITECTURE {cfg.MODEL.META_ARCHITECTURE!r}": (
            cfg.MODEL.META_ARCHITECTURE != "GeneralizedRCNN"
        ),
    }
    found = [key for key, present in unsupported.items() if present]
    if found:
        raise ValueError(
            f"TEST.AUG.ENABLED is True, but test-time augmentation does not support "
            f"{', '.join(found)}; expected TEST.AUG.ENABLED False"
        )


def check_num_classes(cfg: CfgNode, dataset_names: Sequence[str]) -> None:
    """Compare the ROI heads with the class names, which a data set has once it has been read.

    Fewer classes than the ROI heads have are a warning.

    Raises:
        ValueError: a data set has more classes than the ROI heads.
    """
    known = cfg.MODEL.ROI_HEADS.NUM_CLASSES
    for name in dataset_names:
        classes = MetadataCatalog.get(name).get("thing_classes", None)
        if classes is None or len(classes) == known:
            continue
        message = (
            f"MODEL.ROI_HEADS.NUM_CLASSES is {known}, but data set {name!r} has {len(classes)}: "
            f"{', '.join(classes[:10])}"
        )
        if len(classes) > known:
            raise ValueError(message)
        logger.warning(message)
