"""A training run of a few seconds: data, config, losses, and ways to interrupt it."""

from __future__ import annotations

import contextlib
import functools
import json
import multiprocessing
import os
import re
import signal
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from unittest import mock

import torch

from tests.helpers import tiny_cfg, write_voc

# All sources of randomness: images of both aspect ratios, with and without objects, sizes, flips,
# dropout.
OPTIONS = [
    "DATASETS.TRAIN", ("small_wide", "small_tall"), "DATASETS.TEST", (),
    "MODEL.ROI_HEADS.NUM_CLASSES", 2,
    "MODEL.HYPERNET.FEATURE.IN_FEATURES", ["res2", "res3"],
    "MODEL.HYPERNET.PROPOSALS.SIZES", [12, 24],
    "MODEL.HYPERNET.PROPOSALS.ASPECT_RATIOS", [0.5, 2.0],
    "MODEL.HYPERNET.BOX_HEAD.DROPOUT", 0.25,
    "DATALOADER.FILTER_EMPTY_ANNOTATIONS", False,
    "INPUT.MIN_SIZE_TRAIN", (48, 56, 64),
    "SOLVER.STEPS", (), "SOLVER.WARMUP_ITERS", 4, "SOLVER.MAX_ITER", 12,
    "SOLVER.CHECKPOINT_PERIOD", 3, "SEED", 7,
]  # fmt: skip


def write_data(root: Path) -> None:
    """Write two sets of small images, wide and tall ones, for `register`.

    Every other wide image has no object.
    """
    write_voc(root / "wide", count=6, size=(64, 80))
    write_voc(root / "tall", count=4, size=(80, 56))
    for path in sorted((root / "wide/Annotations").iterdir())[::2]:
        path.write_text(re.sub("<object>.*</object>", "", path.read_text()))


def register(root: Path) -> None:
    """Register the sets of `write_data` in place of those of another folder."""
    from detectron2.data import DatasetCatalog, MetadataCatalog

    from hypernet_d2.data import register_voc_style

    for name in ("wide", "tall"):
        if f"small_{name}" in DatasetCatalog:
            DatasetCatalog.remove(f"small_{name}")
            MetadataCatalog.remove(f"small_{name}")
        register_voc_style(f"small_{name}", root / name, "all", ["square", "bar"])


def config(*opts):
    """The config of the run; ``opts`` are KEY, VALUE, KEY, VALUE, ..."""
    return tiny_cfg(*OPTIONS, *opts)


def train(
    output: Path, *opts, at: Mapping[int, Callable[[], object]] = MappingProxyType({})
) -> None:
    """Train or resume; each iteration appends its losses to ``output/losses.jsonl``.

    Args:
        output: ``OUTPUT_DIR``.
        opts: further KEY, VALUE, ...
        at: functions that are called after an iteration.
    """
    from detectron2.engine import HookBase
    from detectron2.utils import comm
    from detectron2.utils.env import seed_all_rng

    from hypernet_d2.engine import Trainer

    class Recorder(HookBase):
        def after_step(self):
            latest = self.trainer.storage.latest()
            row = {k: v for k, (v, _) in latest.items() if "loss" in k}
            if comm.is_main_process():
                with open(output / "losses.jsonl", "a") as file:
                    file.write(json.dumps({"iteration": self.trainer.iter, **row}) + "\n")
            if self.trainer.iter in at:
                at[self.trainer.iter]()

    cfg = config(*opts, "OUTPUT_DIR", str(output))
    output.mkdir(parents=True, exist_ok=True)
    seed_all_rng(cfg.SEED + comm.get_rank())
    trainer = Trainer(cfg)
    # Before the stock hooks: the losses are recorded before the run can be interrupted.
    trainer.register_hooks([Recorder()])
    trainer._hooks.insert(0, trainer._hooks.pop())
    trainer.resume_or_load(resume=True)
    trainer.train()


def send(name: str, *pids: int) -> None:
    """Send a signal, as another process."""
    subprocess.run(["kill", f"-{name}", *map(str, pids)], check=True)


def sigterm() -> None:
    """SIGTERM to this process and to its loader's, as a scheduler sends it."""
    send("TERM", os.getpid(), *(child.pid for child in multiprocessing.active_children()))


def losses(output: Path) -> list[dict]:
    """The losses of each iteration, as first recorded.

    An iteration that a resumed run repeats must have the same losses.
    """
    rows: dict[int, dict] = {}
    for line in (output / "losses.jsonl").read_text().splitlines():
        row = json.loads(line)
        first = rows.setdefault(row["iteration"], row)
        assert difference(first, row) <= 1e-5, (first, row)
    assert sorted(rows) == list(range(len(rows)))
    return [rows[i] for i in range(len(rows))]


def difference(a: dict, b: dict) -> float:
    """The largest difference between two iterations' losses."""
    assert a.keys() == b.keys()
    return max(abs(a[key] - b[key]) for key in a)


def in_a_child(function, *args, **kwargs) -> multiprocessing.Process:
    """Start a function in a child of this process, which has everything imported."""
    context = multiprocessing.get_context("fork")
    child = context.Process(target=_quietly, args=(functools.partial(function, *args, **kwargs),))
    child.start()
    return child


def _quietly(function) -> None:
    torch.set_num_threads(1)
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    function()


@contextlib.contextmanager
def dies_while_writing(name: str, after: int):
    """SIGKILL to this process when a file whose name contains ``name`` has ``after`` bytes."""
    from hypernet_d2.checkpoint import output_files
    from hypernet_d2.utils.files import atomic_write

    @contextlib.contextmanager
    def dying(path, mode="wb"):
        with atomic_write(path, mode) as file:
            yield _Dying(file, after) if name in str(path) else file

    with mock.patch.object(output_files, "atomic_write", dying):
        yield


class _Dying:
    """A file that takes so many bytes, and then the process with it."""

    def __init__(self, file, after: int):
        self.file = file
        self.left = after

    def write(self, data):
        self.left -= len(data)
        if self.left < 0:
            self.file.write(data[: self.left])
            self.file.flush()
            os.kill(os.getpid(), signal.SIGKILL)
        return self.file.write(data)

    def __getattr__(self, name):
        return getattr(self.file, name)
