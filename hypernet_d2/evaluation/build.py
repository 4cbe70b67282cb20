"""The evaluator of a test set, and the check of all test sets before training."""

from __future__ import annotations

import os

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator, DatasetEvaluators

from hypernet_d2.data.parts import has_parts

from .coco import build_coco_evaluator, max_detections
from .part_evaluation import PartEvaluator
from .pascal_voc import CheckedPascalVOCEvaluator

__all__ = ["build_evaluator"]

EVALUATORS = ("coco", "pascal_voc")


def build_evaluator(
    cfg: CfgNode, dataset_name: str, output_folder: str | None = None
) -> DatasetEvaluator:
    """The evaluator that ``MODEL.HYPERNET.EVALUATOR``, or else the data set's metadata, names.

    With several processes each has to call it.

    Args:
        cfg: of the model.
        dataset_name: a registered set.
        output_folder: ``OUTPUT_DIR/inference`` by default.

    Raises:
        ValueError: for a name other than "coco" and "pascal_voc"; and as the evaluators.
    """
    name = cfg.MODEL.HYPERNET.EVALUATOR
    name = name or MetadataCatalog.get(dataset_name).get("evaluator_type", "coco")
    if name not in EVALUATORS:
        raise ValueError(
            f"no evaluator is called {name!r} (MODEL.HYPERNET.EVALUATOR, or evaluator_type of "
            f"{dataset_name!r}); expected one of {list(EVALUATORS)}"
        )
    if name == "pascal_voc":
        return CheckedPascalVOCEvaluator(dataset_name)
    folder = output_folder or os.path.join(cfg.OUTPUT_DIR, "inference")
    coco = build_coco_evaluator(cfg, dataset_name, folder)
    if not has_parts(cfg):
        return coco
    return DatasetEvaluators([coco, PartEvaluator(dataset_name, max_detections(cfg))])
