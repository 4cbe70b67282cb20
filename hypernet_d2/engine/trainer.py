"""The stock trainer with this project's loaders, evaluators and checkpointer."""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import math
import os
import resource
import sys
import weakref
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from unittest import mock

import torch
from detectron2.config import CfgNode
from detectron2.data import (
    MetadataCatalog,
    build_detection_test_loader,
    build_detection_train_loader,
)
from detectron2.engine import DefaultTrainer, HookBase, defaults, hooks
from detectron2.evaluation import (
    COCOEvaluator,
    DatasetEvaluator,
    DatasetEvaluators,
    PascalVOCDetectionEvaluator,
)
from detectron2.modeling import GeneralizedRCNNWithTTA
from detectron2.utils import comm
from torch import nn

from hypernet_d2.checkpoint import HyperNetCheckpointer
from hypernet_d2.data import NamedErrorDatasetMapper, PartDatasetMapper, checked_data, load_dataset
from hypernet_d2.data.loader import build_repeatable_train_loader, outlive_sigterm, seed_everything
from hypernet_d2.evaluation import PartEvaluator, ProposalRecallEvaluator
from hypernet_d2.modeling.proposal_generator import proposal_network
from hypernet_d2.utils.files import replacing

from .finite import finite_steps
from .sigterm import LeaveOnSigterm

__all__ = ["Trainer", "build_evaluator"]

logger = logging.getLogger(__name__)

LOG_PERIOD = 20  # that of the stock writers
RESULTS_FILE = "results.json"
EVALUATORS = {"coco": COCOEvaluator, "pascal_voc": PascalVOCDetectionEvaluator}


@checked_data(evaluated=True)
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
    if name == "pascal_voc":
        return PascalVOCDetectionEvaluator(dataset_name)
    folder = output_folder or os.path.join(cfg.OUTPUT_DIR, "inference")
    sigmas = cfg.TEST.KEYPOINT_OKS_SIGMAS
    if not has_parts(cfg):
        return COCOEvaluator(dataset_name, output_dir=folder, kpt_oks_sigmas=sigmas)
    # Parts need no masks in the data set, so that segm AP may have nothing to compare to.
    tasks = ("bbox", "keypoints") if cfg.MODEL.KEYPOINT_ON else ("bbox",)
    coco = COCOEvaluator(dataset_name, tasks, output_dir=folder, kpt_oks_sigmas=sigmas)
    return DatasetEvaluators([coco, PartEvaluator(dataset_name)])


def has_parts(cfg: CfgNode) -> bool:
    """Whether the model labels parts."""
    return cfg.MODEL.MASK_ON and cfg.MODEL.ROI_MASK_HEAD.NAME == "HypercolumnPartHead"


def check_num_classes(cfg: CfgNode, dataset_names: Sequence[str]) -> None:
    """Compares the ROI heads with the class names, which a data set has once it has been read.

    More classes than the ROI heads have raise a ValueError; fewer, which do no harm, a warning.
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
        for name in cfg.DATASETS.TEST:  # now, and not when the training is over
            load_dataset(name, evaluated=True)
        with _ddp_for(cfg):
            super().__init__(cfg)
        self.checkpointer = HyperNetCheckpointer(
            self.model, cfg.OUTPUT_DIR, trainer=weakref.proxy(self)
        )
        for hook in self._hooks:
            if hasattr(hook, "checkpointer"):
                hook.checkpointer = self.checkpointer

    def resume_or_load(self, resume: bool = True) -> None:
        """As the stock one; a run that is resumed goes on with the batch that would have come."""
        super().resume_or_load(resume)
        if sampler := getattr(self._trainer.data_loader, "batch_sampler", None):
            sampler.start = self.start_iter

    def run_step(self) -> None:
        """The stock step; losses that are not finite end it with what they come from.

        With a ``SEED`` its random numbers depend on the iteration alone, so that those of a resumed
        run are those that an unbroken one would have had.
        """
        if self.cfg.SEED >= 0:
            seed_everything(self.cfg.SEED, 2, comm.get_rank(), self.iter)
        with finite_steps(self._trainer):
            super().run_step()

    def train(self):
        """The stock training.

        Raises:
            OSError: naming ``OUTPUT_DIR``, where the system refuses to write and names no file.
        """
        try:
            return super().train()
        except OSError as error:
            if error.errno is None or error.filename is not None:
                raise
            raise OSError(
                error.errno,
                f"{error.strerror}; training stopped at iteration {self.iter}, and the last "
                "checkpoint stands",
                self.cfg.OUTPUT_DIR,
            ) from error

    def build_hooks(self) -> list[HookBase]:
        """The stock hooks, SIGTERM's before the evaluation, the host's memory before the last."""
        stock = [hook for hook in super().build_hooks() if hook is not None]
        (evaluation,) = (i for i, hook in enumerate(stock) if isinstance(hook, hooks.EvalHook))
        return [
            *stock[:evaluation],
            LeaveOnSigterm(),
            stock[evaluation],
            HostMemory(),
            *stock[evaluation + 1 :],
        ]

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        """The stock model; on a CPU the backbone computes channels last, the faster layout there.

        Not the heads: some stock ones take views that this layout does not allow.
        """
        model = super().build_model(cfg)
        if cfg.MODEL.DEVICE == "cpu":
            model.backbone.to(memory_format=torch.channels_last)
        return model

    @classmethod
    @checked_data()
    def build_train_loader(cls, cfg: CfgNode):
        """A loader of the stock batches; an image that cannot be read is named.

        Where the model labels parts they are loaded. Batch i is the same in a resumed run, see
        :func:`build_repeatable_train_loader`.
        """
        mapper = (PartDatasetMapper if has_parts(cfg) else NamedErrorDatasetMapper)(cfg, True)
        loader = build_repeatable_train_loader(cfg, mapper)
        if loader is None:
            logger.warning(
                "the training data is no list of images: a resumed run starts it from the beginning"
            )
            loader = build_detection_train_loader(cfg, mapper=mapper)
        check_num_classes(cfg, cfg.DATASETS.TRAIN)
        return loader

    @classmethod
    @checked_data()
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str):
        """The stock loader; an image that cannot be read is named."""
        loader = build_detection_test_loader(
            cfg, dataset_name, mapper=NamedErrorDatasetMapper(cfg, False)
        )
        loader.worker_init_fn = outlive_sigterm
        check_num_classes(cfg, [dataset_name])
        return loader

    @classmethod
    def build_evaluator(
        cls, cfg: CfgNode, dataset_name: str, output_folder: str | None = None
    ) -> DatasetEvaluator:
        """See :func:`build_evaluator`."""
        return build_evaluator(cfg, dataset_name, output_folder)

    @classmethod
    def test(cls, cfg: CfgNode, model: nn.Module, evaluators=None) -> OrderedDict:
        """The stock evaluation, which also leaves ``OUTPUT_DIR/results.json``.

        The file is of the latest evaluation: {data set: {task: {metric: value}}}, null for NaN.
        """
        results = super().test(cfg, model, evaluators)
        names = cfg.DATASETS.TEST
        if any(results.values()) and comm.is_main_process():
            by_dataset = {names[0]: results} if len(names) == 1 else results
            Path(cfg.OUTPUT_DIR).mkdir(parents=True, exist_ok=True)
            text = json.dumps(_without_nan(by_dataset), indent=2, allow_nan=False)
            with replacing(Path(cfg.OUTPUT_DIR, RESULTS_FILE), "w") as file:
                file.write(text + "\n")
        return results

    @classmethod
    def test_proposals(cls, cfg: CfgNode, model: nn.Module) -> OrderedDict:
        """Evaluate the recall of what a detector proposes, see :class:`ProposalRecallEvaluator`.

        Args:
            cfg: see :func:`hypernet_d2.evaluation.proposal_evaluation_cfg`.
            model: a detector with its weights, built from that config.
        """
        evaluators = [ProposalRecallEvaluator(name, cfg.OUTPUT_DIR) for name in cfg.DATASETS.TEST]
        return super().test(cfg, proposal_network(model), evaluators)

    @classmethod
    def test_with_TTA(cls, cfg: CfgNode, model: nn.Module) -> OrderedDict:
        """Evaluate with the stock test-time augmentation; the keys end in ``_TTA``."""
        evaluators = [
            cls.build_evaluator(cfg, name, os.path.join(cfg.OUTPUT_DIR, "inference_TTA"))
            for name in cfg.DATASETS.TEST
        ]
        results = super().test(cfg, GeneralizedRCNNWithTTA(cfg, model), evaluators)
        return OrderedDict({f"{key}_TTA": value for key, value in results.items()})


def _without_nan(value):
    """Nested dicts with None for NaN, which json does not have."""
    if isinstance(value, dict):
        return {key: _without_nan(inside) for key, inside in value.items()}
    return value if math.isfinite(value) else None


@contextlib.contextmanager
def _ddp_for(cfg: CfgNode) -> Iterator[None]:
    """Let the stock trainer wrap a CPU model: DistributedDataParallel takes no device_ids there.

    The processes share the cores out: more threads than cores wait for each other at every barrier.
    """
    if cfg.MODEL.DEVICE.startswith("cuda") or comm.get_world_size() == 1:
        yield
        return
    torch.set_num_threads(max(1, torch.get_num_threads() // comm.get_local_size()))
    # Else gradients are laid out anew after the first iteration of every run, so that more than two
    # processes sum them in another order in the first one of a resumed run.
    layout_stays = {"find_unused_parameters": cfg.SEED >= 0}
    wrap = functools.partial(defaults.create_ddp_model, device_ids=None, **layout_stays)
    with mock.patch.object(defaults, "create_ddp_model", wrap):
        yield
