"""The metadata of an exported file, from a config and a checkpoint."""

from __future__ import annotations

import json
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from torch import nn

import hypernet_d2
from hypernet_d2.checkpoint import get_class_names
from hypernet_d2.data import load_dataset
from hypernet_d2.deploy import ModelInfo

from .exportable import ExportableDetector, size_divisibility

__all__ = ["SCORE_THRESHOLDS", "class_names", "describe", "find_canvas", "read_score_thresholds"]

# The file of score thresholds beside a checkpoint.
SCORE_THRESHOLDS = "score_thresholds.json"


def class_names(cfg: CfgNode, model: nn.Module) -> tuple[str, ...]:
    """The names of the classes: those in the checkpoint, else those of ``DATASETS.TEST``.

    Raises:
        ValueError: if neither has as many names as the model has classes.
    """
    names = get_class_names(model)
    name = cfg.DATASETS.TEST[0] if cfg.DATASETS.TEST else ""
    if names is None and name:
        if not MetadataCatalog.get(name).get("thing_classes") and name in DatasetCatalog:
            load_dataset(name)  # sets the names
        names = MetadataCatalog.get(name).get("thing_classes")
    expected = cfg.MODEL.ROI_HEADS.NUM_CLASSES
    if names is None:
        raise ValueError(
            f"the checkpoint has no class names, and DATASETS.TEST names {name!r}, which is not "
            "registered: --data PATH registers it"
        )
    if len(names) != expected:
        raise ValueError(
            f"DATASETS.TEST names {name!r}, of {len(names)} classes, but "
            f"MODEL.ROI_HEADS.NUM_CLASSES is {expected}"
        )
    return tuple(names)


def find_canvas(cfg: CfgNode, model: nn.Module, size: list[int] | None) -> tuple[int, int]:
    """The canvas of ``--size``, rounded up to the size divisibility of the model.

    Raises:
        ValueError: a size is not positive.
    """
    size = size or [cfg.INPUT.MAX_SIZE_TEST] * 2
    if min(size) < 1:
        raise ValueError(f"--size {size[0]} {size[1]}: expected positive numbers of pixels")
    divisor = size_divisibility(model)
    height, width = (-(-side // divisor) * divisor for side in size)
    return height, width


def read_score_thresholds(path: Path, classes: tuple[str, ...], least: float) -> tuple[float, ...]:
    """The score threshold of each class from a json file, {class name: threshold}.

    Args:
        path: an existing file.
        classes: names of the classes of the model.
        least: the threshold of a class that the file does not name.

    Raises:
        ValueError: not such a file, a name that is no class, or a threshold that is not in 0 to 1.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: cannot be read as json: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected {{class name: score threshold}}")
    for name, value in content.items():
        if name not in classes:
            raise ValueError(f"{path}: {name!r} is no class of the model, {list(classes)}")
        if type(value) not in (int, float) or not 0 <= value <= 1:
            raise ValueError(f"{path}: the threshold of {name!r} is {value!r}; expected 0 to 1")
    return tuple(max(least, float(content.get(name, least))) for name in classes)


def describe(
    cfg: CfgNode,
    detector: ExportableDetector,
    *,
    classes: tuple[str, ...],
    config: str,
    score_thresholds: tuple[float, ...] = (),
    resizes: bool = False,
) -> ModelInfo:
    """The metadata of a detector.

    Raises:
        ValueError: ``resizes`` for a model with keypoints.
    """
    heads = detector.heads.outputs
    if resizes and "keypoint_heat_maps" in heads:
        raise ValueError(
            "--resize-in-file: a model with keypoints cannot be exported so, since they are found "
            "at the resolution of the resized image"
        )
    return ModelInfo(
        classes=classes,
        input_format=cfg.INPUT.FORMAT,
        canvas=detector.canvas,
        size_divisibility=size_divisibility(detector.model),
        min_size=cfg.INPUT.MIN_SIZE_TEST,
        max_size=cfg.INPUT.MAX_SIZE_TEST,
        score_threshold=cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST,
        max_proposals=cfg.MODEL.RPN.POST_NMS_TOPK_TEST,
        max_detections=cfg.TEST.DETECTIONS_PER_IMAGE,
        feature_stride=detector.feature_stride,
        config=config,
        version=hypernet_d2.__version__,
        score_thresholds=score_thresholds,
        heads=heads,
        keypoint_margin=detector.heads.keypoint_margin,
        resizes=resizes,
    )
