"""Time and memory of an exported model; runs in a process of its own."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from .detector import Detections, Detector

__all__ = ["Figures", "measure_calls", "measure_file", "peak_memory"]


class Figures(NamedTuple):
    """What was measured.

    Attributes:
        seconds: of each call after the first.
        memory: what the model and its calls added to the peak of the process, in 10**6 bytes.
        detections: of each image, down to the model's least score.
    """

    seconds: list[float]
    memory: float
    detections: list[Detections]


def measure_file(
    path: Path, images: Sequence[np.ndarray], threads: int, calls: int, runtime: str | None
) -> Figures:
    """Measure a file of ``tools/export_model.py``; arguments as of `measure_calls`."""
    if runtime is not None and runtime.startswith("torch"):
        import torch

        torch.set_num_threads(threads)

    def load() -> Callable[[np.ndarray], Detections]:
        detector = Detector(path, threads=threads, runtime=runtime)
        least = detector.info.score_threshold
        return lambda image: detector(image, score_threshold=least)

    return measure_calls(load, images, calls)


def measure_calls(
    load: Callable[[], Callable[[np.ndarray], Detections]],
    images: Sequence[np.ndarray],
    calls: int,
) -> Figures:
    """Load a detector and call it.

    Args:
        load: returns the detector.
        images: (H, W, 3) uint8, BGR; each is detected in once.
        calls: number of calls that are timed, over the first images in turns.
    """
    gc.collect()
    before = peak_memory()
    detect = load()
    detections = [detect(image) for image in images]
    seconds = []
    for k in range(calls):
        start = time.perf_counter()
        detect(images[k % len(images)])
        seconds.append(time.perf_counter() - start)
    return Figures(seconds, peak_memory() - before, detections)


def peak_memory() -> float:
    """The largest resident set of this process so far, in 10**6 bytes; nan on Windows."""
    try:
        import resource
        import sys
    except ImportError:
        return float("nan")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6
