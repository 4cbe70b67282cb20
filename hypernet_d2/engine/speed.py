"""Measures how long training iterations and detection take on this machine."""

from __future__ import annotations

import itertools
import time

import torch
from detectron2.config import CfgNode
from detectron2.utils.events import EventStorage

from hypernet_d2.data.choices import Speed

from .tiled import TiledDetector
from .trainer import Trainer

__all__ = ["measure_speed"]

ITERATIONS, IMAGES = 4, 4  # measured, after one that is not


def measure_speed(cfg: CfgNode) -> Speed:
    """Train for a few iterations on ``DATASETS.TRAIN``, detect in a few images, forget the model.

    Args:
        cfg: of the model; its initial weights are random here.

    Raises:
        ValueError, FileNotFoundError: see :class:`Trainer`.
    """
    model = Trainer.build_model(cfg)
    optimizer = Trainer.build_optimizer(cfg, model.train())
    for group in optimizer.param_groups:
        group["lr"] *= cfg.SOLVER.WARMUP_FACTOR
    batches = iter(Trainer.build_train_loader(cfg))
    with EventStorage():
        for i in range(ITERATIONS + 1):
            if i == 1:
                start = _now()
            loss = sum(model(next(batches)).values())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        iteration = (_now() - start) / ITERATIONS
    del batches, optimizer, loss
    model.eval()
    tiled = cfg.MODEL.HYPERNET.TILES.SIZE
    detector = TiledDetector(cfg, model) if tiled else model
    images = list(
        itertools.islice(Trainer.build_test_loader(cfg, cfg.DATASETS.TEST[0]), IMAGES + 1)
    )
    with torch.no_grad():
        detector(images[0])
        start = _now()
        for image in images[1:] or images:
            detector(image)
        image = (_now() - start) / len(images[1:] or images)
    return Speed(iteration, image)


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()
