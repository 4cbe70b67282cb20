"""The evaluations of a training run, periodic and at its end, as hooks."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING

from detectron2.config import CfgNode
from detectron2.engine import HookBase, hooks
from detectron2.evaluation.testing import flatten_results_dict

from .best import BestCheckpoint
from .validation_loss import ValidationLoss

if TYPE_CHECKING:
    from .trainer import Trainer

__all__ = ["TrainingEvaluation", "validation_cfg"]


def validation_cfg(cfg: CfgNode) -> CfgNode:
    """The config with the sets that are evaluated in training as ``DATASETS.TEST``."""
    names = cfg.MODEL.HYPERNET.TRAIN.VAL_DATASETS
    if not names:
        return cfg
    cfg = cfg.clone()
    cfg.defrost()
    cfg.DATASETS.TEST = tuple(names)
    cfg.freeze()
    return cfg


class TrainingEvaluation:
    """Evaluates on the validation sets every ``TEST.EVAL_PERIOD`` iterations and at the end.

    With ``VAL_DATASETS`` or ``BEST_CHECKPOINT``, ``DATASETS.TEST`` is evaluated once more after
    training: with the best weights if there are any, which the model then has. These scalars begin
    with ``test/``.
    """

    def __init__(self, cfg: CfgNode, trainer: Trainer):
        """
        Raises:
            ValueError, FileNotFoundError: see :class:`ValidationLoss`.
        """
        self.cfg = cfg
        self.validation_cfg = validation_cfg(cfg)
        self._train = cfg.MODEL.HYPERNET.TRAIN
        self._trainer = weakref.proxy(trainer)
        self._loss = ValidationLoss(self.validation_cfg) if self._train.VALIDATION_LOSS else None
        self._best: BestCheckpoint | None = None
        self._latest: tuple[int, dict] = (-1, {})  # iteration, results

    def build_hooks(self) -> list[HookBase]:
        """The hooks, in the order in which they have to be called."""
        train, period = self._train, self.cfg.TEST.EVAL_PERIOD
        result: list[HookBase] = [hooks.EvalHook(period, self._evaluate)]
        if train.BEST_CHECKPOINT:
            model = self._trainer.evaluated_model
            options = self.cfg.OUTPUT_DIR, train.METRIC, train.PATIENCE
            self._best = BestCheckpoint(period, model, *options)
            result.append(self._best)
        if train.BEST_CHECKPOINT or train.VAL_DATASETS:
            result.append(hooks.EvalHook(0, self._evaluate_at_end))
        return result

    def _evaluate(self) -> dict:
        """
        Raises:
            ValueError: ``METRIC`` is a loss that the model does not have.
        """
        iteration, results = self._latest
        if iteration == self._trainer.iter:  # the training has stopped early
            return results
        results = self._test(self.validation_cfg)
        if self._train.BEST_CHECKPOINT:
            results = _with_mean(results, self._train.METRIC)
        if self._loss:
            results = {**results, **self._loss(self._trainer.evaluated_model)}
            _check_loss_name(self._train.METRIC, results)
        self._latest = self._trainer.iter, results
        return results

    def _evaluate_at_end(self) -> dict:
        model = self._trainer.evaluated_model
        if self._best and self._best.load_best():
            trained = self._trainer.model  # another one with EMA_DECAY
            getattr(trained, "module", trained).load_state_dict(model.state_dict())
        return {"test": self._test(self.cfg)}

    def _test(self, cfg: CfgNode) -> dict:
        trainer = self._trainer
        # The attribute in which DefaultTrainer looks for the last results.
        trainer._last_eval_results = trainer.test(cfg, trainer.evaluated_model)
        return trainer._last_eval_results


def _check_loss_name(metric: str, results: dict) -> None:
    if metric.startswith("validation_loss") and metric not in results:
        losses = [name for name in results if name.startswith("validation_loss")]
        raise ValueError(
            f"MODEL.HYPERNET.TRAIN.METRIC is {metric!r}; expected one of {', '.join(losses)}"
        )


def _with_mean(results: dict, metric: str) -> dict:
    """Results of several sets, {set: {task: {metric: value}}}, with the mean of a metric.

    Results of one set, and those that have the metric, are returned as they are.
    """
    flat = flatten_results_dict(results)
    values = [value for name, value in flat.items() if name.endswith(f"/{metric}")]
    if metric in flat or not values:
        return results
    return {**results, metric: sum(values) / len(values)}
