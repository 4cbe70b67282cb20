"""Finds pictures that are nearly identical: copies of other size or quality, neighboring frames.

Notation: n images.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from PIL import Image

__all__ = ["find_near_identical"]

SIDE = 16  # cells; a hash has SIDE * SIDE bits
MAX_DISTANCE = (
    24  # of the 256 bits; half-size copies differ in up to 21, different photographs in 70
)
MAX_COMPARED = 10_000  # images; of more, none is read
CHUNK = 1000  # rows of the comparison that are in memory at a time


def find_near_identical(images: Sequence[str]) -> list[int]:
    """The group of each image: the index of its first member.

    Two images are nearly identical if their difference hashes, which say for 16 x 16 cells of the
    image in gray whether the next cell is brighter, differ in at most 24 of 256 bits. Groups are
    the connected components. An image that cannot be read, or without any contrast, is alone, as
    are all images of more than `MAX_COMPARED`, whose reading would take minutes.

    Args:
        images: n paths.
    """
    groups = list(range(len(images)))
    if len(images) > MAX_COMPARED:
        return groups
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # Pillow decodes without Python's lock
        hashes = list(pool.map(difference_hash, images))
    known = [i for i, bits in enumerate(hashes) if bits is not None]
    if not known:
        return groups

    def root(i: int) -> int:
        while groups[i] != i:
            i = groups[i]
        return i

    for i, j in _pairs([hashes[i] for i in known]):
        first, second = sorted((root(known[i]), root(known[j])))
        groups[second] = first
    return [root(i) for i in range(len(images))]


def difference_hash(path: str) -> np.ndarray | None:
    """(SIDE * SIDE,) bool; None for an image that cannot be read or has no contrast."""
    try:
        with Image.open(path) as image:
            image.draft("L", (4 * SIDE, 4 * SIDE))  # a JPEG file is decoded at a smaller size
            gray = image.convert("L").resize((SIDE + 1, SIDE), Image.Resampling.BOX)
    except Exception:  # damaged files make Pillow raise errors of every kind
        return None
    values = np.asarray(gray, dtype=np.int16)
    if np.ptp(values) < 8:
        return None
    return (values[:, 1:] > values[:, :-1]).ravel()


def _pairs(hashes: list[np.ndarray]) -> list[tuple[int, int]]:
    """Pairs of indices of hashes of a small distance."""
    bits = np.stack(hashes)
    signs = np.where(bits, np.float32(1), np.float32(-1))
    least = bits.shape[1] - 2 * MAX_DISTANCE  # of the product of two hashes
    pairs = []
    for start in range(0, len(signs), CHUNK):
        rows, columns = np.nonzero(signs[start : start + CHUNK] @ signs.T >= least)
        rows += start
        pairs += zip(rows[rows < columns].tolist(), columns[rows < columns].tolist(), strict=True)
    return pairs
