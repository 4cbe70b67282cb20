"""Measures how long training iterations and detection take on this machine."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable
from itertools import pairwise

import torch
from detectron2.config import CfgNode
from detectron2.utils.events import EventStorage

from hypernet_d2.data.choices import Speed

from .tiled import TiledDetector
from .trainer import Trainer

__all__ = ["measure_speed"]

REPEATS = 5  # of each measurement, after one that is not used
MAX_SECONDS = 15  # of each measurement, after which it ends earlier


def measure_speed(cfg: CfgNode) -> Speed:
    """Train for a few iterations on ``DATASETS.TRAIN``, detect in a few images, forget the model.

    Args:
        cfg: of the model; its initial weights are random here.

    Returns:
        The medians.

    Raises:
        ValueError, FileNotFoundError: see :class:`Trainer`.
    """
    model = Trainer.build_model(cfg)
    optimizer = Trainer.build_optimizer(cfg, model.train())
    for group in optimizer.param_groups:
        group["lr"] *= cfg.SOLVER.WARMUP_FACTOR

    def train(batch: list[dict]) -> None:
        loss = sum(model(batch).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    with EventStorage():
        iteration = _median_seconds(train, Trainer.build_train_loader(cfg))
    model.eval()
    detector = TiledDetector(cfg, model) if cfg.MODEL.HYPERNET.TILES.SIZE else model
    with torch.no_grad():
        image = _median_seconds(detector, Trainer.build_test_loader(cfg, cfg.DATASETS.TEST[0]))
    return Speed(iteration, image)


def _median_seconds(function: Callable, inputs: Iterable) -> float:
    """Of calls with the first of the inputs, reading included; of a single input, of that alone."""
    times = [_now()]
    for one in inputs:
        function(one)
        times.append(_now())
        if len(times) > REPEATS + 1 or times[-1] - times[0] > MAX_SECONDS:
            break
    seconds = [end - start for start, end in pairwise(times)]
    return statistics.median(seconds[1:] or seconds)


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()
