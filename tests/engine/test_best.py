"""The best checkpoint, its resumption, and early stopping, in runs without images."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

pytestmark = pytest.mark.detectron2

PERIOD = 2  # iterations between two evaluations


def run(
    output, scores: list[float], *, iterations: int, patience: int = 0, metric: str = "bbox/AP"
):
    """Train a model whose weight is the number of iterations.

    Args:
        output: ``OUTPUT_DIR``; a run in it is resumed.
        scores: of the evaluations of the whole training; None for an evaluation without the metric.
        iterations: of the whole training.
        patience: evaluations without a better score.
        metric: of the best checkpoint.

    Returns:
        The trainer, after training.
    """
    from detectron2.engine import TrainerBase, hooks

    from hypernet_d2.checkpoint import HyperNetCheckpointer
    from hypernet_d2.engine.best import BestCheckpoint, EarlyStop

    class Counting(TrainerBase):
        def __init__(self):
            super().__init__()
            self.model = nn.Linear(1, 1, bias=False)
            nn.init.zeros_(self.model.weight)
            self.checkpointer = HyperNetCheckpointer(self.model, str(output), trainer=self)

        def run_step(self):
            self.model.weight.data += 1

    def evaluate():
        last = min(trainer.iter, trainer.max_iter - 1)  # after training iter is max_iter
        score = scores[math.ceil((last + 1) / PERIOD) - 1]
        return {} if score is None else {metric: score}

    trainer = Counting()
    trainer.register_hooks(
        [
            hooks.PeriodicCheckpointer(trainer.checkpointer, PERIOD),
            hooks.EvalHook(PERIOD, evaluate),
            BestCheckpoint(PERIOD, trainer.model, str(output), metric, patience),
        ]
    )
    resumed = trainer.checkpointer.resume_or_load("", resume=True)
    trainer.start_iter = resumed.get("iteration", -1) + 1
    try:
        trainer.train(trainer.start_iter, iterations)
    except EarlyStop:
        pass
    return trainer


def weight(output, name: str = "model_best.pth") -> float:
    return torch.load(output / name, weights_only=True)["model"]["weight"].item()


def test_the_weights_of_the_best_score_are_kept(tmp_path):
    run(tmp_path, [3.0, 5.0, None, 5.0, 4.0], iterations=10)
    saved = torch.load(tmp_path / "model_best.pth", weights_only=True)
    assert saved["model"]["weight"].item() == 4
    assert (saved["metric"], saved["score"], saved["iteration"]) == ("bbox/AP", 5.0, 3)
    assert (tmp_path / "last_checkpoint").read_text() == "model_final.pth"
    assert weight(tmp_path, "model_final.pth") == 10


def test_a_loss_is_minimized_and_nan_is_no_score(tmp_path):
    run(tmp_path, [math.nan, 2.0, 1.0, 3.0], iterations=8, metric="validation_loss")
    assert weight(tmp_path) == 6


def test_the_best_weights_are_loaded_if_there_are_any(tmp_path):
    trainer = run(tmp_path, [2.0, 1.0], iterations=4)
    assert trainer.model.weight.item() == 4
    assert trainer._hooks[-1].load_best() and trainer.model.weight.item() == 2
    (tmp_path / "none").mkdir()
    trainer = run(tmp_path / "none", [math.nan, math.nan], iterations=4)
    assert not trainer._hooks[-1].load_best() and trainer.model.weight.item() == 4


def test_a_file_of_another_metric_is_no_best_score(tmp_path):
    run(tmp_path, [9.0, 9.0], iterations=4, metric="bbox/AP50")
    run(tmp_path, [9.0, 9.0, 1.0], iterations=6)
    assert torch.load(tmp_path / "model_best.pth", weights_only=True)["metric"] == "bbox/AP"


def test_the_evaluation_at_the_end_counts(tmp_path):
    run(tmp_path, [1.0, 2.0], iterations=4)
    assert weight(tmp_path) == 4


def test_a_resumed_run_keeps_the_best_score_and_continues_from_its_last_iteration(tmp_path):
    run(tmp_path, [5.0, 1.0], iterations=4)
    trainer = run(tmp_path, [5.0, 1.0, 4.0], iterations=6)
    assert trainer.start_iter == 4
    assert weight(tmp_path) == 2 and weight(tmp_path, "model_final.pth") == 6
    run(tmp_path, [5.0, 1.0, 4.0, 6.0], iterations=8)
    assert weight(tmp_path) == 8


def test_training_stops_when_the_score_no_longer_improves(tmp_path):
    scores = [1.0, 4.0, 3.0, 3.5, 9.0, 9.0]
    trainer = run(tmp_path, scores, iterations=12, patience=2)
    assert trainer.iter + 1 == trainer.max_iter == 8
    assert weight(tmp_path) == 4 and weight(tmp_path, "model_final.pth") == 8
    assert (tmp_path / "last_checkpoint").read_text() == "model_final.pth"
    again = run(tmp_path, scores, iterations=12, patience=2)
    assert weight(tmp_path, "model_final.pth") == 8 and again.model.weight.item() == 8
    run(tmp_path, scores, iterations=12, patience=3)
    assert weight(tmp_path) == 10
