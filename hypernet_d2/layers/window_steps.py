"""What both ways of pooling the windows of a regular grid share.

Legend: (ny, nx) positions of a window shape, F features of a window.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["PooledShape", "few_steps", "rows_at_a_time"]


class PooledShape(NamedTuple):
    """The windows of one shape, ready to be read."""

    index: int  # of the shape in the grid
    # Takes the values a window that the caller works on, and yields the features of some rows of
    # windows at a time: (rows, nx, F), or (nx, rows, F) where the reader says so.
    steps: Callable[[int], Iterator[Tensor]]


def few_steps(device: torch.device) -> bool:
    """Whether steps are to be few and large: on a GPU, and where each becomes nodes of a graph."""
    return device.type != "cpu" or torch.compiler.is_compiling() or torch.jit.is_tracing()


def rows_at_a_time(device: torch.device, values_per_row: int) -> int:
    """How many rows to work on at once: so many stay in a CPU's cache, or keep a GPU busy."""
    values = 1 << 25 if few_steps(device) else 1 << 20
    return max(1, values // values_per_row)
