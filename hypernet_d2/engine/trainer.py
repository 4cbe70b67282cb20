"""The stock trainer with this project's loaders, evaluators and checkpointer."""

from __future__ import annotations

import json
import logging
import math
import os
import weakref
from collections import OrderedDict

import torch
from detectron2.config import CfgNode
from detectron2.engine import DefaultTrainer, HookBase, TrainerBase, create_ddp_model, hooks
from detectron2.evaluation import DatasetEvaluator, verify_results
from detectron2.modeling import GeneralizedRCNNWithTTA, build_model
from detectron2.utils import comm
from detectron2.utils.events import EventWriter, TensorboardXWriter
from detectron2.utils.logger import setup_logger
from torch import nn

from hypernet_d2.checkpoint import OUTPUT_FILES, HyperNetCheckpointer, set_class_names
from hypernet_d2.data import NamedErrorDatasetMapper, PartDatasetMapper
from hypernet_d2.data.augmentation import check_augmentation
from hypernet_d2.data.build import get_test_records
from hypernet_d2.data.class_names import check_test_classes, training_classes
from hypernet_d2.data.config_checks import check_keypoint_settings
from hypernet_d2.data.loader import build_test_loader, build_train_loader, seed_everything
from hypernet_d2.data.parts import has_parts
from hypernet_d2.evaluation import ProposalRecallEvaluator, build_evaluator, map_classes
from hypernet_d2.modeling.proposal_generator import proposal_network

from .best import EarlyStop
from .checks import (
    check_compiled_part,
    check_num_classes,
    check_rotated_boxes,
    check_test_time_augmentation,
    check_tiles,
)
from .finite import LossCheck
from .host_memory import HostMemory
from .learning_checks import ProposalCheck, check_first_features
from .sigterm import ExitOnSigterm
from .steps import build_step_trainer
from .tiled import TiledDetector
from .training_checks import check_metric, check_training
from .training_evaluation import TrainingEvaluation
from .weight_average import WeightAverage

__all__ = ["Trainer"]

logger = logging.getLogger(__name__)

RESULTS_FILE = "results.json"


class Trainer(DefaultTrainer):
    """detectron2's DefaultTrainer, on GPUs or on a CPU, in one process or several."""

    def __init__(self, cfg: CfgNode):
        """
        Raises:
            ValueError, FileNotFoundError: a data set or the config does not fit; see
                :func:`hypernet_d2.data.load_dataset`, :mod:`hypernet_d2.data.config_checks`,
                :func:`build_evaluator`, :class:`ValidationLoss` and the functions named check_*.
        """
        # DefaultTrainer's constructor, step by step: it has no argument for the options of
        # DistributedDataParallel and for the class of the checkpointer.
        TrainerBase.__init__(self)
        if not logging.getLogger("detectron2").isEnabledFor(logging.INFO):
            setup_logger()
        check_test_time_augmentation(cfg)
        check_tiles(cfg)
        check_keypoint_settings(cfg)
        check_augmentation(cfg)
        check_training(cfg)
        for name in (*cfg.DATASETS.TEST, *cfg.MODEL.HYPERNET.TRAIN.VAL_DATASETS):
            get_test_records(cfg, name)  # before training, not after it
            self.build_evaluator(cfg, name)
        check_metric(cfg)
        cfg = DefaultTrainer.auto_scale_workers(cfg, comm.get_world_size())
        model = self.build_model(cfg)
        optimizer = self.build_optimizer(cfg, model)
        data_loader = self.build_train_loader(cfg)
        self._evaluation = TrainingEvaluation(cfg, self)
        for tested in (cfg, self._evaluation.validation_cfg):
            check_test_classes(cfg.DATASETS.TRAIN, tested.DATASETS.TEST)
        if names := training_classes(cfg.DATASETS.TRAIN):
            set_class_names(model, names)
        decay = cfg.MODEL.HYPERNET.TRAIN.EMA_DECAY
        self._average = WeightAverage(model, decay) if decay else None
        check_first_features(model)
        rpn = cfg.MODEL.RPN
        self._proposal_check = ProposalCheck(
            model, rpn.BATCH_SIZE_PER_IMAGE, rpn.LOSS_WEIGHT, cfg.SOLVER.WARMUP_ITERS
        )
        model = create_ddp_model(model, broadcast_buffers=False, **ddp_options(cfg))
        self._trainer = build_step_trainer(cfg, model, data_loader, optimizer)
        self._loss_check = LossCheck(model)
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        self.checkpointer = HyperNetCheckpointer(
            self._average.averaged if self._average else model,
            cfg.OUTPUT_DIR,
            trainer=weakref.proxy(self),
        )
        self.start_iter = 0
        self.max_iter = cfg.SOLVER.MAX_ITER
        self.cfg = cfg
        self.register_hooks(self.build_hooks())

    def resume_or_load(self, resume: bool = True) -> None:
        """As the stock one; a resumed run continues with the batch after the last one."""
        super().resume_or_load(resume)
        if self._average:
            self._average.after_load()
        if sampler := getattr(self.data_loader, "batch_sampler", None):
            sampler.start = self.start_iter * self.cfg.MODEL.HYPERNET.TRAIN.ACCUMULATE

    def run_step(self) -> None:
        """The stock step.

        With a ``SEED`` the random numbers depend on the iteration alone, so that a resumed run
        has those of an uninterrupted one.

        An error leaves a checkpoint of the iteration before, unless it is about numbers that are
        not finite.

        Raises:
            FloatingPointError: losses, or the proposals of the region proposal network, are not
                finite; naming the iteration and the images of the batch.
        """
        if self.cfg.SEED >= 0:
            seed_everything(self.cfg.SEED, 2, comm.get_rank(), self.iter)
        try:
            super().run_step()
        except FloatingPointError as error:
            images = ", ".join(self._loss_check.images or ["unknown"])
            raise FloatingPointError(
                f"training stopped at iteration {self.iter}: {error}; images of the batch: {images}"
            ) from error
        except Exception:
            self._save_previous_iteration()
            raise

    def _save_previous_iteration(self) -> None:
        """Save the state before a step that has failed.

        Weights and optimizer still have it, because a step changes them at its very end.
        """
        if self.iter == self.start_iter:
            return
        self.iter -= 1  # the checkpoint contains it
        try:
            self.checkpointer.save(f"model_{self.iter:07d}", iteration=self.iter)
        except Exception as error:  # the error of the step is the one to raise
            logger.warning("no checkpoint of iteration %d: %s", self.iter, error)
        finally:
            self.iter += 1

    def train(self):
        """The stock training, which may stop early, see :class:`BestCheckpoint`.

        Raises:
            OSError: naming ``OUTPUT_DIR``, if writing fails and the system's error names no file.
        """
        try:
            return super().train()
        except EarlyStop:
            if self.cfg.TEST.EXPECTED_RESULTS and comm.is_main_process():
                verify_results(self.cfg, self._last_eval_results)
            return getattr(self, "_last_eval_results", None)
        except OSError as error:
            if error.errno is None or error.filename is not None:
                raise
            raise OSError(
                error.errno,
                f"{error.strerror}; training stopped at iteration {self.iter}, and the last "
                "checkpoint is kept",
                self.cfg.OUTPUT_DIR,
            ) from error

    @property
    def evaluated_model(self) -> nn.Module:
        """The model whose weights are evaluated and saved: with ``EMA_DECAY`` the average."""
        return self._average.averaged if self._average else self.checkpointer.model

    def build_hooks(self) -> list[HookBase]:
        """The stock hooks and those of ``MODEL.HYPERNET.TRAIN``.

        ExitOnSigterm stands before the evaluation and HostMemory after it.
        """
        stock = [hook for hook in super().build_hooks() if hook is not None]
        (evaluation,) = (i for i, hook in enumerate(stock) if isinstance(hook, hooks.EvalHook))
        return [
            *([self._average] if self._average else []),
            *([self._proposal_check] if comm.is_main_process() else []),
            *stock[:evaluation],
            ExitOnSigterm(),
            *self._evaluation.build_hooks(),
            HostMemory(),
            *stock[evaluation + 1 :],
        ]

    def build_writers(self) -> list[EventWriter]:
        """The stock writers; TensorBoard's is left out where it cannot write to ``OUTPUT_DIR``.

        TensorBoard opens paths with a prefix, such as ``s3://``, by itself and not by detectron2's
        path handlers.
        """
        writers = super().build_writers()
        if "://" not in self.cfg.OUTPUT_DIR:
            return writers
        from torch.utils.tensorboard import SummaryWriter  # it takes seconds to import

        try:
            SummaryWriter(self.cfg.OUTPUT_DIR).close()
        except (ValueError, ImportError) as error:
            logger.warning("No TensorBoard events in %s: %s", self.cfg.OUTPUT_DIR, error)
            writers = [x for x in writers if not isinstance(x, TensorboardXWriter)]
        return writers

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        """The stock model; on a CPU the backbone is in channels-last layout, which is faster there.

        The heads are not: some stock ones take views that this layout does not allow.

        Raises:
            ImportError: see :func:`check_compiled_part`.
        """
        model = build_model(cfg)
        check_compiled_part(model)
        logger.debug("Model:\n%s", model)  # the command line logs it to a file only
        if cfg.MODEL.DEVICE == "cpu":
            model.backbone.to(memory_format=torch.channels_last)
        return model

    @classmethod
    def build_train_loader(cls, cfg: CfgNode):
        """A loader of the stock batches; an image that cannot be read is named.

        Where the model labels parts they are loaded. Batch i is the same in a resumed run, see
        :func:`hypernet_d2.data.loader.build_train_loader`.

        Raises:
            ValueError: see :func:`check_rotated_boxes`.
        """
        check_rotated_boxes(cfg)
        check_keypoint_settings(cfg)
        mapper = (PartDatasetMapper if has_parts(cfg) else NamedErrorDatasetMapper)(cfg, True)
        loader = build_train_loader(cfg, mapper)
        check_num_classes(cfg, cfg.DATASETS.TRAIN)
        return loader

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str):
        """The stock loader; an image that cannot be read is named.

        With ``MODEL.HYPERNET.TILES`` the images are not resized, as :class:`TiledDetector` expects.
        """
        check_keypoint_settings(cfg)
        options = {"augmentations": []} if cfg.MODEL.HYPERNET.TILES.SIZE else {}
        mapper = NamedErrorDatasetMapper(cfg, False, **options)
        loader = build_test_loader(cfg, dataset_name, mapper)
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
        """The stock evaluation, which also writes ``OUTPUT_DIR/results.json``.

        Classes are matched by name, see :func:`hypernet_d2.evaluation.map_classes`. With
        ``MODEL.HYPERNET.TILES`` the model detects in tiles, see :class:`TiledDetector`.
        The file holds the latest evaluation: {data set: {task: {metric: value}}}, null for NaN.
        """
        if evaluators is None:
            evaluators = [cls.build_evaluator(cfg, name) for name in cfg.DATASETS.TEST]
        evaluators = map_classes(cfg, model, evaluators)
        if cfg.MODEL.HYPERNET.TILES.SIZE:
            model = TiledDetector(cfg, model)
        results = super().test(cfg, model, evaluators)
        names = cfg.DATASETS.TEST
        if any(results.values()) and comm.is_main_process():
            by_dataset = {names[0]: results} if len(names) == 1 else results
            OUTPUT_FILES.mkdirs(cfg.OUTPUT_DIR)
            text = json.dumps(_nan_to_none(by_dataset), indent=2, allow_nan=False)
            with OUTPUT_FILES.open(os.path.join(cfg.OUTPUT_DIR, RESULTS_FILE), "w") as file:
                file.write(text + "\n")
        return results

    @classmethod
    def test_proposals(cls, cfg: CfgNode, model: nn.Module) -> OrderedDict:
        """Evaluate the recall of a detector's proposals, see :class:`ProposalRecallEvaluator`.

        Args:
            cfg: see :func:`hypernet_d2.evaluation.proposal_evaluation_cfg`.
            model: a detector with its weights, built from that config.

        Raises:
            ValueError: ``MODEL.HYPERNET.TILES`` is set.
        """
        check_tiles(cfg)
        evaluators = [ProposalRecallEvaluator(name, cfg.OUTPUT_DIR) for name in cfg.DATASETS.TEST]
        return super().test(cfg, proposal_network(model), evaluators)

    @classmethod
    def test_with_TTA(cls, cfg: CfgNode, model: nn.Module) -> OrderedDict:
        """Evaluate with the stock test-time augmentation; the keys end in ``_TTA``.

        Raises:
            ValueError: see :func:`check_test_time_augmentation`.
        """
        check_test_time_augmentation(cfg)
        evaluators = [
            cls.build_evaluator(cfg, name, os.path.join(cfg.OUTPUT_DIR, "inference_TTA"))
            for name in cfg.DATASETS.TEST
        ]
        evaluators = map_classes(cfg, model, evaluators)
        results = super().test(cfg, GeneralizedRCNNWithTTA(cfg, model), evaluators)
        return OrderedDict({f"{key}_TTA": value for key, value in results.items()})


def ddp_options(cfg: CfgNode) -> dict:
    """Arguments of DistributedDataParallel for a model on a CPU; none for one on a GPU."""
    if cfg.MODEL.DEVICE.startswith("cuda"):
        return {}
    # Otherwise gradients are laid out anew after the first iteration of every run, and more than
    # two processes sum them in another order in the first iteration of a resumed run.
    return {"device_ids": None, "find_unused_parameters": cfg.SEED >= 0}


def _nan_to_none(value):
    """Nested dicts with None for NaN, which json does not have."""
    if isinstance(value, dict):
        return {key: _nan_to_none(inner) for key, inner in value.items()}
    return value if math.isfinite(value) else None
