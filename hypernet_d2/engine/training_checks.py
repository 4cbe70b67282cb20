"""Checks of ``MODEL.HYPERNET.TRAIN`` that are made before training."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

from hypernet_d2.data.parts import has_parts
from hypernet_d2.utils.files import did_you_mean

__all__ = ["check_metric", "check_training"]

logger = logging.getLogger(__name__)

NODE = "MODEL.HYPERNET.TRAIN"
COCO_METRICS = {
    "bbox": ("AP", "AP50", "AP75", "APs", "APm", "APl"),
    "segm": ("AP", "AP50", "AP75", "APs", "APm", "APl"),
    "keypoints": ("AP", "AP50", "AP75", "APm", "APl"),
}


def check_training(cfg: CfgNode) -> None:
    """
    Raises:
        ValueError: a key of ``MODEL.HYPERNET.TRAIN`` is out of its range, or does not fit another
            key.
    """
    train = cfg.MODEL.HYPERNET.TRAIN
    if not 0 <= train.EMA_DECAY < 1:
        raise ValueError(f"{NODE}.EMA_DECAY is {train.EMA_DECAY}; expected 0 <= EMA_DECAY < 1")
    if train.ACCUMULATE < 1:
        raise ValueError(f"{NODE}.ACCUMULATE is {train.ACCUMULATE}; expected 1 or more")
    if train.AMP_DTYPE not in ("float16", "bfloat16"):
        raise ValueError(
            f"{NODE}.AMP_DTYPE is {train.AMP_DTYPE!r}; expected 'float16' or 'bfloat16'"
        )
    if cfg.SOLVER.AMP.ENABLED and train.AMP_DTYPE == "float16" and cfg.MODEL.DEVICE == "cpu":
        raise ValueError(
            f"SOLVER.AMP.ENABLED is True with {NODE}.AMP_DTYPE 'float16', which needs a GPU; "
            f"expected {NODE}.AMP_DTYPE 'bfloat16', or SOLVER.AMP.ENABLED False"
        )
    if train.EMA_DECAY and cfg.TEST.PRECISE_BN.ENABLED:
        raise ValueError(
            f"TEST.PRECISE_BN.ENABLED is True, which computes the statistics of the last weights, "
            f"but {NODE}.EMA_DECAY evaluates averaged weights; expected one of the two"
        )
    if train.PATIENCE < 0 or (train.PATIENCE and not train.BEST_CHECKPOINT):
        raise ValueError(
            f"{NODE}.PATIENCE is {train.PATIENCE} and {NODE}.BEST_CHECKPOINT "
            f"{train.BEST_CHECKPOINT}; expected BEST_CHECKPOINT True, or PATIENCE 0"
        )
    if train.VAL_DATASETS and cfg.MODEL.LOAD_PROPOSALS:
        raise ValueError(
            f"{NODE}.VAL_DATASETS is {tuple(train.VAL_DATASETS)} and MODEL.LOAD_PROPOSALS True, "
            "but DATASETS.PROPOSAL_FILES_TEST are those of DATASETS.TEST; expected VAL_DATASETS ()"
        )
    users = [key for key in ("VAL_DATASETS", "BEST_CHECKPOINT", "VALIDATION_LOSS") if train[key]]
    if users and cfg.TEST.EVAL_PERIOD <= 0:
        raise ValueError(
            f"{NODE}.{users[0]} is {train[users[0]]}, but TEST.EVAL_PERIOD is "
            f"{cfg.TEST.EVAL_PERIOD}; expected the number of iterations between two evaluations"
        )
    if users and not (train.VAL_DATASETS or cfg.DATASETS.TEST):
        raise ValueError(
            f"{NODE}.{users[0]} is {train[users[0]]}, but there is no set to evaluate; expected "
            f"{NODE}.VAL_DATASETS or DATASETS.TEST"
        )
    if train.BEST_CHECKPOINT and not train.VAL_DATASETS:
        logger.info(
            "the best checkpoint is chosen on DATASETS.TEST %s, whose scores are then too high for "
            "other images; for a set that is used once, at the end, give %s.VAL_DATASETS",
            tuple(cfg.DATASETS.TEST), NODE,
        )  # fmt: skip


def check_metric(cfg: CfgNode) -> None:
    """Compare the metric of the best checkpoint with those of detectron2's evaluators.

    The data sets have been loaded.

    Raises:
        ValueError: with ``BEST_CHECKPOINT``, the evaluation will not have ``METRIC``; its metrics
            are listed.
    """
    train = cfg.MODEL.HYPERNET.TRAIN
    if not train.BEST_CHECKPOINT:
        return
    sets = train.VAL_DATASETS or cfg.DATASETS.TEST
    metric = train.METRIC
    if metric.startswith("validation_loss"):
        if not train.VALIDATION_LOSS:
            raise ValueError(
                f"{NODE}.METRIC is {metric!r}; expected {NODE}.VALIDATION_LOSS True with it"
            )
        return  # the names of the losses are those of the heads
    by_set = {name: list(_metrics(cfg, name)) for name in sets}
    known = [name for names in by_set.values() for name in names]
    if len(sets) > 1:
        known += [f"{name}/{one}" for name, names in by_set.items() for one in names]
    others = r"(.+/)?(bbox/(AP|AR)size-\d+of\d+" + (r"|parts/.+)" if has_parts(cfg) else ")")
    if metric not in known and not re.fullmatch(others, metric):
        listed = ", ".join(dict.fromkeys(known))
        raise ValueError(
            f"{NODE}.METRIC is {metric!r}, which the evaluation of {', '.join(sets)} does not "
            f"have{did_you_mean(metric, known)}; expected one of {listed}, or 'validation_loss'"
        )


def _metrics(cfg: CfgNode, dataset_name: str) -> Iterator[str]:
    """The metrics of a set, as metrics.json names them."""
    metadata = MetadataCatalog.get(dataset_name)
    evaluator = cfg.MODEL.HYPERNET.EVALUATOR or metadata.get("evaluator_type", "coco")
    if evaluator == "pascal_voc":
        yield from ("bbox/AP", "bbox/AP50", "bbox/AP75")
        return
    tasks = {
        "bbox": True,
        "segm": cfg.MODEL.MASK_ON and not has_parts(cfg),
        "keypoints": cfg.MODEL.KEYPOINT_ON,
    }
    classes = metadata.get("thing_classes") or ()
    for task, present in tasks.items():
        if not present:
            continue
        yield from (f"{task}/{name}" for name in COCO_METRICS[task])
        if len(classes) > 1:
            yield from (f"{task}/AP-{name}" for name in classes)
