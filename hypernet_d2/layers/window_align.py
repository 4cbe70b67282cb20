"""RoIAlign and a convolution of all windows of a regular grid, without pooling each window.

Bilinear sampling and averaging are linear, and separate into rows and columns:

    pooled[i, j] = sum over y, x of rows[i, y] * columns[j, x] * map[y0 + y, x0 + x]

So the 1x1 products of the convolution come first, once for the whole map. A matrix product over
the rows of all windows of a shape, and then one over their columns, pool the projected map and add
up the taps.

Legend: C channels, (H, W) map, (H', W') map with margins, n or (ny, nx) positions of a window
shape, P bins along an axis, O channels of the convolution, t taps along an axis (3, or 1 where the
convolution goes before pooling), K cells that a window may touch along an axis.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import DTypeLike, NDArray
from torch import Tensor

from .window_steps import WindowAxis, kernel_dtype, rows_per_chunk, window_axes
from .windows import WindowGrid

__all__ = ["AlignedWindows", "align_weights", "with_taps"]


def align_weights(
    extent: int,
    first: NDArray,
    length: int,
    bins: int,
    sampling_ratio: int,
    feature_stride: int,
    dtype: DTypeLike,
) -> Tensor:
    """Returns the weights of `roi_align(aligned=True)` along one axis.

    Args:
        extent: cells of the window.
        first: (n,) integers, the first cells of the windows.
        length: cells of the map; may be symbolic during an export.
        bins: P.
        sampling_ratio: samples per bin; 0 or less means ceil((extent - 1) / P).
        feature_stride: pixels per cell.
        dtype: the type in which the kernel computes.

    Returns:
        (n, P, extent + 1), the weights of the cells from first - 1 on, because aligned samples are
        shifted by half a cell.
    """
    # The order of operations is the kernel's: one bit can decide whether a sample is on the map.
    scale = np.array([1 / feature_stride], dtype)
    half = np.array([0.5], dtype)
    start = (first * feature_stride).astype(dtype) * scale - half
    end = ((first + extent - 1) * feature_stride).astype(dtype) * scale - half
    size = ((end - start) / np.array([bins], dtype))[:, None]
    samples = sampling_ratio if sampling_ratio > 0 else int(np.ceil(size[0, 0]))
    count = max(samples, 1)
    within = (np.arange(samples).astype(dtype) + half) * size / np.array([count], dtype)
    bin_start = start[:, None] + np.arange(bins).astype(dtype) * size
    position = bin_start[:, :, None] + within[:, None, :]  # (n, P, samples), in cells
    position = torch.tensor(position, dtype=torch.float64)
    cells = torch.tensor(first[:, None] - 1 + np.arange(extent + 1))  # (n, extent + 1)

    # A sample up to one cell outside the map has the value of the border; farther out it is 0.
    exists = (position >= -1) & (position <= length)
    position = position.clamp(min=0).minimum(torch.full((), length - 1, dtype=torch.float64))
    weights = (1 - (position[..., None] - cells[:, None, None]).abs()).clamp(min=0)
    return (weights * exists[..., None]).sum(dim=2) / count


def with_taps(weights: Tensor) -> Tensor:
    """Combines the weights of pooling with a zero-padded convolution of three taps.

    Tap u of output bin i reads pooled bin i + u - 1.

    Args:
        weights: (n, P, K).

    Returns:
        (n, P, K * 3), taps last.
    """
    return F.pad(weights, (0, 0, 1, 1)).unfold(1, 3, 1).flatten(2)


@dataclass(frozen=True)
class _Axis:
    """Pooling, and the taps of the convolution, along one axis of one window shape."""

    count: int  # n
    stride: int  # cells
    cells: int  # K
    weights: Tensor  # (n, P, K * t)

    @property
    def length(self) -> int:
        """Cells from the start of the first window to the end of the last."""
        return (self.count - 1) * self.stride + self.cells

    def windows(self, x: Tensor, dim: int) -> Tensor:
        """Returns a view of all windows' cells: n or more along `dim`, and K * t last."""
        taps = self.weights.shape[2] // self.cells
        return x.unfold(dim, self.cells * taps, self.stride * taps)


class AlignedWindows:
    """Computes the convolved features of all windows of a grid, for maps of one size."""

    # A window's features are (P, O, P); windows come column by column.
    feature_order = ("y", "channel", "x")
    by_column = True

    def __init__(
        self,
        grid: WindowGrid,
        map_size: tuple[int, int],
        bins: int,
        taps: int,
        sampling_ratio: int,
        device: torch.device,
        dtype: torch.dtype,
        input_size: tuple[int, int] | None = None,
    ):
        """
        Args:
            map_size: (H, W).
            bins: P.
            taps: t.
            sampling_ratio: samples per bin along an axis; 0 adapts to the window.
            device, dtype: of the maps.
            input_size: (h, w) if the maps have zeros beyond their top left (h, w) cells, and
                samples are to be taken as from a map of that size.
        """

        def with_weights(axis: WindowAxis, length: int) -> _Axis:
            extent, stride, count, _ = axis
            weights = align_weights(
                extent,
                np.arange(count) * stride,
                length,
                bins,
                sampling_ratio,
                grid.feature_stride,
                kernel_dtype(dtype),
            )
            weights = weights if taps == 1 else with_taps(weights)
            return _Axis(count, stride, extent + 1, weights.to(device, dtype))

        height, width = input_size or map_size
        self._axes = [
            (with_weights(rows, height), with_weights(columns, width))
            for rows, columns in window_axes(grid, map_size)
        ]

    @staticmethod
    def taps(weight: Tensor) -> Tensor:
        """Reorders a convolution's weight (O, C, t, t) to the projection (C, t * O * t)."""
        return weight.permute(1, 2, 0, 3).flatten(1)

    def read(
        self, image: Tensor, taps: Tensor | None, extra_values: int
    ) -> Iterator[tuple[int, Tensor]]:
        """Computes the features of all windows, a few rows of windows of one shape at a time.

        Args:
            image: (C, H, W).
            taps: the projection; None where no convolution follows.
            extra_values: values per window that the caller holds besides the features.

        Yields:
            the index of a shape in the grid, and features (nx, rows, P * O * P) of its next rows.
        """
        cells = self._projected(image, taps)
        for index, (rows, columns) in enumerate(self._axes):
            for features in _windows(cells, rows, columns, extra_values):
                yield index, features

    def _projected(self, image: Tensor, taps: Tensor | None) -> Tensor:
        """Projects the map: (C, H, W) -> (H', t, O, W', t), with zeros in the margins."""
        channels, height, width = image.shape
        if taps is None:
            cells = image.permute(1, 0, 2)[:, None, :, :, None]
        else:
            products = image.permute(1, 2, 0).reshape(-1, channels) @ taps
            cells = products.view(height, width, 3, -1, 3).permute(0, 2, 3, 1, 4)
        # One cell at the top and left, and the overhang of the windows at the bottom and right.
        below = max(0, *(rows.length - height - 1 for rows, _ in self._axes))
        right = max(0, *(columns.length - width - 1 for _, columns in self._axes))
        return F.pad(cells, (0, 0, 1, right, 0, 0, 0, 0, 1, below))


def _windows(cells: Tensor, rows: _Axis, columns: _Axis, extra_values: int) -> Iterator[Tensor]:
    """Yields features (nx, rows, P * O * P) from the projected map (H', t, O, W', t)."""
    _, taps, channels, width, _ = cells.shape
    bins = rows.weights.shape[1]
    slabs = rows.windows(cells.flatten(2).flatten(0, 1), 0)  # (n or more, O * W' * t, K * t)
    values = bins * channels * width * taps + columns.count * (bins**2 * channels + extra_values)
    step = rows_per_chunk(cells.device, values)
    for start in range(0, rows.count, step):
        chunk = slice(start, min(start + step, rows.count))
        strip = torch.bmm(rows.weights[chunk], slabs[chunk].transpose(1, 2))
        strip = columns.windows(strip.view(-1, width * taps), 1)[:, : columns.count]
        features = torch.bmm(strip.transpose(0, 1), columns.weights.transpose(1, 2))
        yield features.view(columns.count, chunk.stop - chunk.start, -1)
