"""The stock trainer with this project's loaders, evaluators and checkpointer."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import resource
import sys
import weakref
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from unittest import mock

import torch
from detectron2.config import CfgNode
from detectron2.data import (
    MetadataCatalog,
    build_detection_test_loader,
    build_detection_train_loader,
)
from detectron2.engine import DefaultTrainer, HookBase, defaults
from detectron2.evaluation import COCOEvaluator, DatasetEvaluator, PascalVOCDetectionEvaluator
from detectron2.modeling import GeneralizedRCNNWithTTA
from detectron2.utils import comm
from torch import nn

from ..data import NamedErrorDatasetMapper
from .checkpoint import HyperNetCheckpointer

__all__ = ["Trainer", "build_evaluator"]

logger = logging.getLogger(__name__)

LOG_PERIOD = 20  # that of the stock writers
EVALUATORS = {"coco": COCOEvaluator, "pascal_voc": PascalVOCDetectionEvaluator}


def build_evaluator(cfg: CfgNode, dataset_name: str, output_folder: str | None = None):
    """The evaluator that ``MODEL.HYPERNET.EVALUATOR``, or else the data set's metadata, names.

    Raises:
        ValueError: for a name other than "coco" and "pascal_voc".
    """
    metadata = MetadataCatalog.get(dataset_name)
    name = cfg.MODEL.HYPERNET.EVALUATOR or metadata.get("evaluator_type", "coco")
    if name not in EVALUATORS:
        raise ValueError(
            f"no evaluator is called {name!r} (MODEL.HYPERNET.EVALUATOR, or evaluator_type of "
            f"{dataset_name!r}); expected one of {sorted(EVALUATORS)}"
        )
    if name == "coco":
        folder = output_folder or os.path.join(cfg.OUTPUT_DIR, "inference")
        return COCOEvaluator(dataset_name, output_dir=folder)
    return PascalVOCDetectionEvaluator(dataset_name)


def check_num_classes(cfg: CfgNode, dataset_names: Sequence[str]) -> None:
    """Raises ValueError where a data set has another number of classes than the ROI heads.

    Data sets get their class names when they are read, at the latest.
    """
    for name in dataset_names:
        classes = MetadataCatalog.get(name).get("thing_classes", None)
        if classes is not None and len(classes) != cfg.MODEL.ROI_HEADS.NUM_CLASSES:
            raise ValueError(
                f"MODEL.ROI_HEADS.NUM_CLASSES is {cfg.MODEL.ROI_HEADS.NUM_CLASSES}, but data set "
                f"{name!r} has {len(classes)}: {', '.join(classes[:10])}"
            )


class HostMemory(HookBase):
    """Records the process's peak resident memory in MB, as ``host_mem_mb``, every 20 steps.

    The stock printer shows a GPU's memory; on a CPU this hook logs the host's in its place.
    """

    def after_step(self) -> None:
        if (self.trainer.iter + 1) % LOG_PERIOD:
            return
        unit = 2**20 if sys.platform == "darwin" else 2**10
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
        self.trainer.storage.put_scalar("host_mem_mb", memory, smoothing_hint=False)
        if not torch.cuda.is_available():
            logger.info("peak host memory: %.0f MB", memory)


class Trainer(DefaultTrainer):
    """detectron2's DefaultTrainer, on GPUs or on a CPU, in one process or several."""

    def __init__(self, cfg: CfgNode):
        with _ddp_for(cfg.MODEL.DEVICE):
            super().__init__(cfg)
        self.checkpointer = HyperNetCheckpointer(
            self.model, cfg.OUTPUT_DIR, trainer=weakref.proxy(self)
        )
        for hook in self._hooks:
            if hasattr(hook, "checkpointer"):
                hook.checkpointer = self.checkpointer

    def build_hooks(self) -> list[HookBase]:
        """The stock hooks, and the host's memory before the writers."""
        stock = super().build_hooks()
        return [*stock[:-1], HostMemory(), *stock[-1:]]

    @classmethod
    def build_train_loader(cls, cfg: CfgNode):
        """The stock loader; an image that cannot be read is named."""
        loader = build_detection_train_loader(cfg, mapper=NamedErrorDatasetMapper(cfg, True))
        check_num_classes(cfg, cfg.DATASETS.TRAIN)
        return loader

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str):
        """The stock loader; an image that cannot be read is named."""
        loader = build_detection_test_loader(
            cfg, dataset_name, mapper=NamedErrorDatasetMapper(cfg, False)
        )
        check_num_classes(cfg, [dataset_name])
        return loader

    @classmethod
    def build_evaluator(
        cls, cfg: CfgNode, dataset_name: str, output_folder: str | None = None
    ) -> DatasetEvaluator:
        """See :func:`build_evaluator`."""
        return build_evaluator(cfg, dataset_name, output_folder)

    @classmethod
    def test_with_TTA(cls, cfg: CfgNode, model: nn.Module) -> OrderedDict:
        """Evaluate with the stock test-time augmentation; the keys end in ``_TTA``."""
        evaluators = [
            cls.build_evaluator(cfg, name, os.path.join(cfg.OUTPUT_DIR, "inference_TTA"))
            for name in cfg.DATASETS.TEST
        ]
        results = cls.test(cfg, GeneralizedRCNNWithTTA(cfg, model), evaluators)
        return OrderedDict({f"{key}_TTA": value for key, value in results.items()})


@contextlib.contextmanager
def _ddp_for(device: str) -> Iterator[None]:
    """Let the stock trainer wrap a CPU model: DistributedDataParallel takes no device_ids there.

    The processes share the cores out: more threads than cores wait for each other at every barrier.
    """
    if device.startswith("cuda") or comm.get_world_size() == 1:
        yield
        return
    torch.set_num_threads(max(1, torch.get_num_threads() // comm.get_local_size()))
    wrap = functools.partial(defaults.create_ddp_model, device_ids=None)
    with mock.patch.object(defaults, "create_ddp_model", wrap):
        yield
