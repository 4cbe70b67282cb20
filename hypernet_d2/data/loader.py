"""The loaders. In training, batch i is the same in every run with one seed, resumed or not.

A batch of a stock loader depends on the number of batches before it, and on the worker that
augmented an image. Here batch i is a function of the seed and i: the n-th image of the sampler's
endless sequence is augmented with its own random numbers, seeded by n, and images are grouped by
aspect ratio before they are read, so that a resumed run skips the first batches without reading
them. The number of workers changes nothing.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import random
import signal
import threading
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import (
    DatasetFromList,
    MapDataset,
    build_detection_test_loader,
    build_detection_train_loader,
)
from detectron2.data.build import trivial_batch_collator
from detectron2.utils import comm
from torch.utils import data

from .build import get_test_records, get_training_records
from .tiles import input_size

__all__ = [
    "build_test_loader",
    "build_train_loader",
    "defer_sigterm_to_parent",
    "seed_everything",
]

logger = logging.getLogger(__name__)

# Not detectron2's weighted ones, which read the data sets again, unchecked, and need a key that its
# configs do not have.
SAMPLERS = ("TrainingSampler", "RepeatFactorTrainingSampler", "RandomSubsetTrainingSampler")


def build_train_loader(cfg: CfgNode, mapper: Callable[[dict], dict]) -> Iterable[list[dict]]:
    """The stock loader of this config on checked data, in a form that can start at any batch.

    The loader has ``batch_sampler.start``, the number of the first batch, 0 before it is set.
    Batches hold the images that the stock loader of one process without workers has. Where ``SEED``
    is negative, so that nothing is to be repeated, augmentation differs from run to run. For a
    torch data set, whose images are not known beforehand, it is the stock loader.

    Raises:
        ValueError, FileNotFoundError: see `get_training_records`; the processes cannot share
            ``SOLVER.IMS_PER_BATCH`` evenly; or ``DATALOADER.SAMPLER_TRAIN`` is none of `SAMPLERS`.
    """
    if cfg.DATALOADER.SAMPLER_TRAIN not in SAMPLERS:
        raise ValueError(
            f"DATALOADER.SAMPLER_TRAIN is {cfg.DATALOADER.SAMPLER_TRAIN!r}, expected one of "
            f"{list(SAMPLERS)}"
        )
    dataset = get_training_records(cfg)
    parts = build_detection_train_loader.from_config(cfg, mapper=mapper, dataset=dataset)
    total, world_size = parts["total_batch_size"], comm.get_world_size()
    if total < world_size or total % world_size:
        raise ValueError(
            f"SOLVER.IMS_PER_BATCH is {total}; expected a multiple of the {world_size} processes"
        )
    if not isinstance(dataset, list):
        logger.warning(
            "the training data is no list of images: a resumed run starts it from the beginning"
        )
        return build_detection_train_loader(**parts)
    groups = None
    if parts["aspect_ratio_grouping"]:
        sizes = map(input_size, dataset)
        groups = [width > height for height, width in sizes]
    seed = cfg.SEED if cfg.SEED >= 0 else int.from_bytes(os.urandom(8), "big")
    return data.DataLoader(
        _SeededDataset(MapDataset(DatasetFromList(dataset, copy=False), mapper), seed),
        batch_sampler=_BatchSampler(parts["sampler"], total // world_size, groups),
        num_workers=parts["num_workers"],
        collate_fn=trivial_batch_collator,
        worker_init_fn=defer_sigterm_to_parent,
        generator=torch.Generator(),  # the global one would be advanced
    )


def build_test_loader(
    cfg: CfgNode, dataset_name: str, mapper: Callable[[dict], dict]
) -> data.DataLoader:
    """The stock loader on checked data.

    Raises:
        ValueError, FileNotFoundError: see `get_test_records`.
    """
    loader = build_detection_test_loader(
        get_test_records(cfg, dataset_name), mapper=mapper, num_workers=cfg.DATALOADER.NUM_WORKERS
    )
    loader.worker_init_fn = defer_sigterm_to_parent
    return loader


def seed_everything(*words: int, seed_torch: Callable[[int], object] = torch.manual_seed) -> None:
    """Seed Python, NumPy and PyTorch, GPUs included, with one seed derived from ``words``."""
    state = np.random.SeedSequence(words).generate_state(4)
    random.seed(int(state[0]))
    np.random.seed(state[1])
    seed_torch(int(state[2]) << 32 | int(state[3]))


class _SeededDataset(data.Dataset):
    """Item (n, i) is image i of a map-style data set, augmented with a seed derived from n."""

    def __init__(self, dataset: data.Dataset, seed: int):
        self.dataset = dataset
        self.seed = seed

    def __getitem__(self, key: tuple[int, int]) -> dict:
        position, index = key
        with _restore_random_state():
            seed_everything(self.seed, 1, position, seed_torch=torch.default_generator.manual_seed)
            return self.dataset[index]


class _BatchSampler(data.Sampler):
    """Endless batches of (position, index), grouped as detectron2's AspectRatioGroupedDataset does.

    Args:
        sampler: this process's share of an endless sequence of indices.
        batch_size: number of images in a batch of this process.
        groups: group of each image of the data set; None for no groups.
    """

    def __init__(self, sampler: data.Sampler, batch_size: int, groups: list[bool] | None):
        self.sampler = sampler
        self.batch_size = batch_size
        self.groups = groups
        self.start = 0

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        return itertools.islice(self._batches(), self.start, None)

    def _batches(self) -> Iterator[list[tuple[int, int]]]:
        positions = itertools.count(comm.get_rank(), comm.get_world_size())
        waiting = {False: [], True: []}
        for position, index in zip(positions, self.sampler):  # noqa: B905 (both are endless)
            group = self.groups is not None and self.groups[index]
            waiting[group].append((position, index))
            if len(waiting[group]) == self.batch_size:
                yield waiting[group]
                waiting[group] = []


@contextlib.contextmanager
def _restore_random_state() -> Iterator[None]:
    """Restore the states of Python's, NumPy's and PyTorch's CPU generators afterwards."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


def defer_sigterm_to_parent(worker: int) -> None:
    """Make a loader's worker process exit on SIGTERM only if its parent sent the signal.

    Schedulers send SIGTERM to all processes of a job. A worker that exited at once would end the
    training process with an error, which is about to save a checkpoint.
    """
    if not hasattr(signal, "sigwaitinfo"):  # macOS
        return
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_exit_on_sigterm_from_parent, daemon=True).start()


def _exit_on_sigterm_from_parent() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)
