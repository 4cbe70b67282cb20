"""A training loader whose batch i is the same in every run with one seed, however it got there.

What a stock loader gives depends on how many batches it gave before, and on the process that
augmented an image. Here batch i is a function of the seed and i: the n-th image of the sampler's
endless sequence is augmented with random numbers of its own, seeded by n, and images are grouped
by aspect ratio before they are read, so that the first batches can be passed over unread. The
number of workers changes nothing.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import signal
import threading
from collections.abc import Callable, Iterator

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetFromList, MapDataset, build_detection_train_loader
from detectron2.data.build import trivial_batch_collator
from detectron2.utils import comm
from torch.utils import data

__all__ = ["build_repeatable_train_loader", "outlive_sigterm", "seed_everything"]


def build_repeatable_train_loader(
    cfg: CfgNode, mapper: Callable[[dict], dict]
) -> data.DataLoader | None:
    """The stock loader of this config in a form that can start at any batch.

    The loader has ``batch_sampler.start``, the first batch to give, 0 before it is set. Batches
    hold the images that the stock loader of one process without workers has. Where ``SEED`` is
    negative, so that nothing is to be repeated, augmentation differs from run to run.

    Returns:
        The loader; None for a data set that is no list, whose images are not known beforehand.

    Raises:
        ValueError: the processes cannot share ``SOLVER.IMS_PER_BATCH`` out.
    """
    parts = build_detection_train_loader.from_config(cfg, mapper=mapper)
    images = parts["dataset"]
    if not isinstance(images, list):
        return None
    total, world_size = parts["total_batch_size"], comm.get_world_size()
    if total < world_size or total % world_size:
        raise ValueError(
            f"SOLVER.IMS_PER_BATCH is {total}; expected a multiple of the {world_size} processes"
        )
    groups = None
    if parts["aspect_ratio_grouping"]:
        groups = [image.get("width", 0) > image.get("height", 0) for image in images]
    seed = cfg.SEED if cfg.SEED >= 0 else int.from_bytes(os.urandom(8), "big")
    return data.DataLoader(
        _SeededDataset(MapDataset(DatasetFromList(images, copy=False), mapper), seed),
        batch_sampler=_BatchSampler(parts["sampler"], total // world_size, groups),
        num_workers=parts["num_workers"],
        collate_fn=trivial_batch_collator,
        worker_init_fn=outlive_sigterm,
        generator=torch.Generator(),  # or a number of the model's would be drawn
    )


def seed_everything(*words: int, seed_torch: Callable[[int], object] = torch.manual_seed) -> None:
    """Seed Python, NumPy and PyTorch, its GPUs too, with a number made of several."""
    state = np.random.SeedSequence(words).generate_state(4)
    random.seed(int(state[0]))
    np.random.seed(state[1])
    seed_torch(int(state[2]) << 32 | int(state[3]))


class _SeededDataset(data.Dataset):
    """Item (n, i) is image i of a map-style data set, with the random numbers of position n."""

    def __init__(self, dataset: data.Dataset, seed: int):
        self.dataset = dataset
        self.seed = seed

    def __getitem__(self, key: tuple[int, int]) -> dict:
        position, index = key
        with _random_state_kept():
            seed_everything(self.seed, 1, position, seed_torch=torch.default_generator.manual_seed)
            return self.dataset[index]


class _BatchSampler(data.Sampler):
    """Endless batches of (position, index), grouped as detectron2's AspectRatioGroupedDataset does.

    Args:
        sampler: this process's share of an endless sequence of indices.
        batch_size: number of images in a batch of this process.
        groups: for each image of the data set its group; None for no groups.
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
def _random_state_kept() -> Iterator[None]:
    """Python's, NumPy's and PyTorch's random numbers of the CPU go on as if nothing had been."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


def outlive_sigterm(worker: int) -> None:
    """Leave a loader's process, which runs this, to its parent.

    Schedulers send SIGTERM to all processes of a job. A worker that left at once would take the
    training process with it, which is about to save a checkpoint.
    """
    if not hasattr(signal, "sigwaitinfo"):  # macOS
        return
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_leave_when_the_parent_says_so, daemon=True).start()


def _leave_when_the_parent_says_so() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)
