"""What both ways of pooling the windows of a regular grid share."""

from typing import NamedTuple

import numpy as np
import torch

from .windows import WindowGrid

__all__ = [
    "WindowAxis",
    "few_steps",
    "kernel_dtype",
    "rows_at_a_time",
    "window_axes",
]


class WindowAxis(NamedTuple):
    """The windows of one shape along one axis, in cells."""

    extent: int  # of a window
    stride: int  # from window to window
    count: int  # of windows
    length: int  # of the map


def window_axes(grid: WindowGrid, map_size: tuple[int, int]) -> list[tuple[WindowAxis, WindowAxis]]:
    """Returns the rows and the columns of each shape's windows on a map of (H, W) cells."""
    return [
        tuple(WindowAxis(*axis) for axis in zip(*of_shape, map_size, strict=True))
        for of_shape in zip(grid.shapes, grid.strides, grid.counts(map_size), strict=True)
    ]


def kernel_dtype(dtype: torch.dtype) -> type[np.floating]:
    """Returns what torchvision's kernels compute bins and samples in, for maps of a dtype."""
    return np.float64 if dtype == torch.float64 else np.float32


def few_steps(device: torch.device) -> bool:
    """Whether steps are to be few and large: on a GPU, and where each becomes nodes of a graph."""
    return device.type != "cpu" or torch.compiler.is_compiling() or torch.jit.is_tracing()


def rows_at_a_time(device: torch.device, values_per_row: int) -> int:
    """How many rows to work on at once: so many stay in a CPU's cache, or keep a GPU busy."""
    values = 1 << 25 if few_steps(device) else 1 << 20
    return max(1, values // values_per_row)
