"""Thousands of images through one process, and a deployed detector in several threads.

    python -m tests.reliability.load --images 10000

Memory, open files and time per image must not grow after the first tenth.
"""

from __future__ import annotations

import argparse
import itertools
import json
import logging
import mmap
import os
import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import torch

from hypernet_d2.data import generate_digits
from hypernet_d2.deploy import Detector

from . import small_run

SHIPPED = Path(__file__).resolve().parents[2] / "hypernet_d2/deploy/models/digits.onnx"

PAGE = mmap.PAGESIZE


def detect_many(images: int, folder: Path) -> dict:
    """Read images of several sizes and detect in them, one at a time, as ``demo.py`` does.

    A tenth of the images comes first and is not counted, as it loads and allocates what is used
    later. Returns the figures.
    """
    from detectron2.modeling import build_model

    from hypernet_d2.engine import Predictor

    small_run.write_data(folder)
    small_run.register(folder)
    weights = str(folder / "model.pth")
    cfg = small_run.config("DATASETS.TEST", ("small_wide",), "MODEL.WEIGHTS", weights)
    torch.save({"model": build_model(cfg).state_dict()}, weights)
    predictor = Predictor(cfg)
    paths = itertools.cycle(sorted(folder.glob("*/JPEGImages/*.jpg")))

    def tenth() -> dict:
        times = []
        for path in itertools.islice(paths, images // 10):
            started = time.process_time()
            predictor(cv2.imread(str(path)))
            times.append(time.process_time() - started)
        return {
            "memory in MB": int(Path("/proc/self/statm").read_text().split()[1]) * PAGE / 2**20,
            "open files": len(os.listdir("/proc/self/fd")),
            "median CPU ms an image": 1000 * statistics.median(times),
        }

    tenth()
    parts = [tenth() for _ in range(10)]
    figures = {key: [round(part[key], 2) for part in parts] for key in parts[0]}
    memory, files = figures["memory in MB"], figures["open files"]
    assert max(memory) <= 1.02 * memory[0], memory
    assert len(set(files)) == 1, files
    times = figures["median CPU ms an image"]
    assert statistics.mean(times[5:]) <= 1.3 * statistics.mean(times[:5]), times
    return {"images": images // 10 * 11, **figures}


def detect_in_threads(threads: int, images: int, folder: Path) -> dict:
    """Compare the shipped model's detections in several threads with those in one; the figures."""
    paths = sorted(generate_digits(folder, "val", num_images=images).glob("*.png"))
    detector = Detector(SHIPPED, threads=1)
    expected = [detector(path) for path in paths]
    with ThreadPoolExecutor(threads) as pool:
        # All threads process all images, each starting at another one.
        orders = [np.roll(np.arange(images), i * images // threads) for i in range(threads)]
        answers = list(pool.map(lambda order: [(i, detector(paths[i])) for i in order], orders))
    for i, found in itertools.chain(*answers):
        for one, other in zip(found, expected[i], strict=True):
            np.testing.assert_array_equal(one, other)
    detections = sum(len(found.scores) for found in expected)
    assert detections
    return {"threads": threads, "images a thread": images, "detections an order": detections}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--images", type=int, default=10000)
    args = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable(logging.INFO)
    with tempfile.TemporaryDirectory() as root:
        print(json.dumps(detect_many(args.images, Path(root))))
        print(json.dumps(detect_in_threads(8, 24, Path(root))))
