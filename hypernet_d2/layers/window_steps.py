"""What RoI max pooling and RoIAlign of the windows of a regular grid have in common."""

from typing import NamedTuple

import numpy as np
import torch

from .windows import WindowGrid

__all__ = [
    "WindowAxis",
    "kernel_dtype",
    "rows_per_chunk",
    "use_large_chunks",
    "window_axes",
]

# Values to compute at a time: small chunks stay in a CPU's cache, large ones keep a GPU busy.
_SMALL_CHUNK, _LARGE_CHUNK = 1 << 19, 1 << 25


class WindowAxis(NamedTuple):
    """The windows of one shape along one axis, in cells."""

    extent: int  # of a window
    stride: int  # from one window to the next
    count: int  # number of windows
    length: int  # of the map


def window_axes(grid: WindowGrid, map_size: tuple[int, int]) -> list[tuple[WindowAxis, WindowAxis]]:
    """Returns the axes (y, x) of each window shape, on a map of (H, W) cells."""
    shapes = zip(grid.shapes, grid.strides, grid.counts(map_size), strict=True)
    return [
        tuple(WindowAxis(*axis) for axis in zip(*shape, map_size, strict=True)) for shape in shapes
    ]


def kernel_dtype(dtype: torch.dtype) -> type[np.floating]:
    """Returns the type in which torchvision's kernels compute bins and samples of such maps."""
    return np.float64 if dtype == torch.float64 else np.float32


def use_large_chunks(device: torch.device) -> bool:
    """Whether to compute in few large chunks.

    True on a GPU, and while a graph is captured, because each chunk adds nodes to the graph.
    """
    return device.type != "cpu" or torch.compiler.is_compiling() or torch.jit.is_tracing()


def rows_per_chunk(device: torch.device, values_per_row: int) -> int:
    """Returns the number of rows to compute at a time, at least 1."""
    return max(1, (_LARGE_CHUNK if use_large_chunks(device) else _SMALL_CHUNK) // values_per_row)
