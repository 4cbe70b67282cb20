"""Checks of a config that are made before a model is built or trained."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.data.transforms import ResizeShortestEdge
from detectron2.layers import ROIAlignRotated
from detectron2.modeling.proposal_generator.rrpn import RRPN
from detectron2.modeling.roi_heads.rotated_fast_rcnn import RROIHeads
from torch import nn

from hypernet_d2.config import hypernet_node
from hypernet_d2.data.parts import has_parts
from hypernet_d2.data.tiles import check_shapely
from hypernet_d2.utils.tiles import tile_boxes

__all__ = [
    "check_compiled_part",
    "check_num_classes",
    "check_resized_size",
    "check_rotated_boxes",
    "check_test_time_augmentation",
    "check_tiles",
]

logger = logging.getLogger(__name__)


def check_compiled_part(model: nn.Module) -> None:
    """
    Raises:
        ImportError: the model has modules for rotated boxes, whose operations are in detectron2's
            compiled part, and that part is missing. Deformable convolutions raise by themselves.
    """
    rotated = (RRPN, RROIHeads, ROIAlignRotated)
    names = {type(module).__name__ for module in model.modules() if isinstance(module, rotated)}
    if names and not hasattr(torch.ops.detectron2, "box_iou_rotated"):
        raise ImportError(
            f"{', '.join(sorted(names))}: rotated boxes need detectron2._C, detectron2's compiled "
            "part, which is missing or does not load; compile detectron2 for this PyTorch "
            "(in a checkout of hypernet_d2: DETECTRON2_BUILD=1 tools/setup_env.sh)"
        )


def check_rotated_boxes(cfg: CfgNode) -> None:
    """
    Raises:
        ValueError: the model is trained on rotated boxes, which the stock mapper does not make.
    """
    names = {
        "MODEL.PROPOSAL_GENERATOR.NAME": cfg.MODEL.PROPOSAL_GENERATOR.NAME,
        "MODEL.ROI_HEADS.NAME": cfg.MODEL.ROI_HEADS.NAME,
    }
    found = [f"{key} {name!r}" for key, name in names.items() if name in ("RRPN", "RROIHeads")]
    if found:
        raise ValueError(
            f"{' and '.join(found)}: needs rotated boxes, but this trainer loads upright ones; "
            "expected a subclass of Trainer whose build_train_loader has a mapper with "
            "detectron2.data.detection_utils.annotations_to_instances_rotated"
        )


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


def check_tiles(cfg: CfgNode) -> None:
    """
    Raises:
        ValueError: ``MODEL.HYPERNET.TILES.SIZE`` is set for a model that tiles do not
            support, or a key of ``MODEL.HYPERNET.TILES`` is out of its range.
    """
    tiles = hypernet_node(cfg).TILES
    check_training_tiles(cfg)
    if not tiles.SIZE:
        return
    _check_tile_size(tiles, "SIZE")
    unsupported = {
        "MODEL.ROI_MASK_HEAD.NAME 'HypercolumnPartHead'": has_parts(cfg),
        "MODEL.LOAD_PROPOSALS True": cfg.MODEL.LOAD_PROPOSALS,
        "TEST.AUG.ENABLED True": cfg.TEST.AUG.ENABLED,
        f"MODEL.META_ARCHITECTURE {cfg.MODEL.META_ARCHITECTURE!r}": (
            cfg.MODEL.META_ARCHITECTURE not in ("GeneralizedRCNN", "RetinaNet")
        ),
    }
    found = [key for key, present in unsupported.items() if present]
    if found:
        raise ValueError(
            f"MODEL.HYPERNET.TILES.SIZE is {tiles.SIZE}, but detection in tiles does not support "
            f"{', '.join(found)}; expected MODEL.HYPERNET.TILES.SIZE 0"
        )


def check_training_tiles(cfg: CfgNode) -> None:
    """
    Raises:
        ValueError: ``MODEL.HYPERNET.TILES.TRAIN_SIZE`` is set for a model that is trained on
            proposals of whole images, or a key is out of its range.
        ImportError: polygons have to be cut, and shapely is not installed.
    """
    tiles = hypernet_node(cfg).TILES
    if not tiles.TRAIN_SIZE:
        return
    _check_tile_size(tiles, "TRAIN_SIZE")
    if not 0 < tiles.TRAIN_MIN_VISIBLE <= 1:
        raise ValueError(
            f"MODEL.HYPERNET.TILES.TRAIN_MIN_VISIBLE is {tiles.TRAIN_MIN_VISIBLE}; expected a "
            "number greater than 0 and at most 1"
        )
    if not 0 <= tiles.TRAIN_EMPTY_SHARE < 1:
        raise ValueError(
            f"MODEL.HYPERNET.TILES.TRAIN_EMPTY_SHARE is {tiles.TRAIN_EMPTY_SHARE}; expected a "
            "number of 0 or more and less than 1"
        )
    if cfg.MODEL.LOAD_PROPOSALS:
        raise ValueError(
            f"MODEL.HYPERNET.TILES.TRAIN_SIZE is {tiles.TRAIN_SIZE}, but MODEL.LOAD_PROPOSALS True "
            "trains on proposals of whole images; expected TRAIN_SIZE 0"
        )
    if cfg.MODEL.MASK_ON and not has_parts(cfg):
        check_shapely()


def _check_tile_size(tiles: CfgNode, key: str) -> None:
    try:
        tile_boxes((1, 1), tiles[key], tiles.OVERLAP)
    except ValueError as error:
        raise ValueError(
            f"MODEL.HYPERNET.TILES.{key} {tiles[key]} and OVERLAP {tiles.OVERLAP}: {error}"
        ) from error


def check_resized_size(cfg: CfgNode, size: tuple[int, int]) -> None:
    """
    Args:
        cfg: of the model.
        size: (height, width) of an image at test time, or of a tile.

    Raises:
        ValueError: it is so narrow that resizing leaves no pixel of its short side.
    """
    least, most = cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST
    if least and not all(ResizeShortestEdge.get_output_shape(*size, least, most)):
        height, width = size
        raise ValueError(
            f"{width} x {height} pixels (width x height) cannot be resized: with the long side at "
            f"INPUT.MAX_SIZE_TEST {most}, the short side has no pixel; detect in tiles, or smaller "
            "ones (MODEL.HYPERNET.TILES.SIZE, --tile)"
        )


def check_num_classes(cfg: CfgNode, dataset_names: Sequence[str]) -> None:
    """Compare ``NUM_CLASSES`` with the class names, which a data set has once it has been read.

    A test set that is no training set may have fewer classes, which is a warning.

    Raises:
        ValueError: a data set has more classes than ``NUM_CLASSES``, or a training set has fewer
            and ``MODEL.HYPERNET.ALLOW_UNUSED_CLASSES`` is False.
    """
    number = cfg.MODEL.ROI_HEADS.NUM_CLASSES
    allow_unused = cfg.MODEL.HYPERNET.ALLOW_UNUSED_CLASSES
    for name in dataset_names:
        classes = MetadataCatalog.get(name).get("thing_classes", None)
        if classes is None or len(classes) == number:
            continue
        message = (
            f"MODEL.ROI_HEADS.NUM_CLASSES is {number}, but data set {name!r} has {len(classes)}: "
            f"{', '.join(classes[:10])}{', ...' if len(classes) > 10 else ''}"
        )
        if len(classes) > number:
            raise ValueError(message)
        if name in cfg.DATASETS.TRAIN and not allow_unused:
            raise ValueError(
                f"{message}; expected MODEL.ROI_HEADS.NUM_CLASSES {len(classes)}, or "
                "MODEL.HYPERNET.ALLOW_UNUSED_CLASSES True to train classes without objects"
            )
        logger.warning(message)
