"""Detections in the order of a data set's classes, which may be another than the model's."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.structures import Instances
from torch import nn

from hypernet_d2.checkpoint import get_class_names
from hypernet_d2.data.class_names import match_classes, training_classes

__all__ = ["MappedClassesEvaluator", "map_classes", "select_classes"]

logger = logging.getLogger(__name__)


def map_classes(
    cfg: CfgNode, model: nn.Module, evaluators: DatasetEvaluator | Sequence[DatasetEvaluator]
) -> list[DatasetEvaluator]:
    """The evaluators of ``DATASETS.TEST`` for a model whose classes may be in another order.

    The class names of the model are those of its checkpoint. If it has none, as the checkpoints of
    detectron2's model zoo, they are those of ``DATASETS.TRAIN``, or, if unknown, of the test set.

    Raises:
        ValueError: see `match_classes`.
    """
    if isinstance(evaluators, DatasetEvaluator):
        evaluators = [evaluators]
    if cfg.MODEL.META_ARCHITECTURE == "ProposalNetwork":  # whose proposals have no class
        return list(evaluators)
    names, source = get_class_names(model), "the model"
    if names is None and (names := training_classes(cfg.DATASETS.TRAIN)):
        source = f"the training set {cfg.DATASETS.TRAIN[0]!r} (the checkpoint has no class names)"
    mapped = []
    for dataset_name, evaluator in zip(cfg.DATASETS.TEST, evaluators, strict=True):
        classes = MetadataCatalog.get(dataset_name).get("thing_classes")
        if classes is None or (names is None and len(classes) >= cfg.MODEL.ROI_HEADS.NUM_CLASSES):
            mapped.append(evaluator)
            continue
        if names is None:
            logger.warning(
                "the checkpoint has no class names, and %d classes against the %d of data set %r: "
                "the first %d are taken for those",
                cfg.MODEL.ROI_HEADS.NUM_CLASSES,
                len(classes),
                dataset_name,
                len(classes),
            )
        same = list(classes) == names
        mapped.append(
            evaluator
            if same
            else MappedClassesEvaluator(evaluator, names or classes, dataset_name, classes, source)
        )
    return mapped


class MappedClassesEvaluator(DatasetEvaluator):
    """Passes detections to an evaluator with the class numbers of its data set.

    Classes are matched by name. Detections of classes that the data set does not have are removed,
    since it has no ground truth for them.

    Args:
        evaluator: of the data set.
        model_classes: names in the order of the model's class numbers.
        dataset_name: of the data set.
        dataset_classes: names in the order of the data set's class numbers.
        source: what has the model's classes, for the message.

    Raises:
        ValueError: the data set has a class that the model does not; see `match_classes`.
    """

    def __init__(
        self,
        evaluator: DatasetEvaluator,
        model_classes: Sequence[str],
        dataset_name: str,
        dataset_classes: Sequence[str],
        source: str = "the model",
    ):
        self.evaluator = evaluator
        self._labels = match_classes(model_classes, dataset_name, dataset_classes, source)

    def reset(self) -> None:
        """As the evaluator's."""
        self.evaluator.reset()

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        """As the evaluator's; outputs without ``instances`` pass unchanged."""
        mapped = [
            {**output, "instances": select_classes(output["instances"], self._labels)}
            if "instances" in output
            else output
            for output in outputs
        ]
        self.evaluator.process(inputs, mapped)

    def evaluate(self):
        """As the evaluator's."""
        return self.evaluator.evaluate()


def select_classes(instances: Instances, labels: Sequence[int]) -> Instances:
    """The detections whose ``pred_classes`` are in ``labels``, renumbered by their place there."""
    old = instances.pred_classes
    labels = torch.as_tensor(labels, dtype=old.dtype, device=old.device)
    match = old[:, None] == labels
    kept = match.any(dim=1)
    selected = instances[kept]
    selected.pred_classes = match[kept].nonzero()[:, 1].to(old.dtype)
    return selected
