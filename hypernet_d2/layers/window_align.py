"""RoIAlign, and the convolution after it, of all windows of a regular grid.

Bilinear sampling and averaging are linear and separate into rows and columns:

    pooled[i, j] = sum over y, x of rows[i, y] * columns[j, x] * map[y0 + y, x0 + x]

So the convolution's 1x1 products go first, once for the map; a matrix product over the rows of all
windows of a shape, then one over their columns, pools what they give and adds the taps up.

Legend: C channels, (H, W) map, (H', W') map with its margins, n or (ny, nx) positions of a window
shape, P bins along an axis, O channels of the convolution, t its taps along an axis (3, or 1 where
it goes before pooling), K cells that a window may touch along an axis.
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
) -> NDArray:
    """Returns the weights of `roi_align(aligned=True)` along one axis.

    Args:
        extent: cells of the window.
        first: (n,) whole numbers, the cells at which the windows start.
        length: cells of the map.
        sampling_ratio: samples of a bin; 0 or less takes ceil((extent - 1) / P).
        dtype: what the kernel computes in.

    Returns:
        (n, P, extent + 1): the weights of the cells from first - 1 on, since aligned samples are
        shifted by half a cell.
    """
    # The kernel's own order of operations: whether a sample lies on the map can hang on a bit.
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

    # A sample up to one cell outside takes the border's value; one farther out is 0.
    exists = (position >= -1) & (position <= length)
    position = position.clip(0, length - 1)
    low = np.floor(position)
    fraction = position - low
    # Of samples that do not exist the cell may not be the window's either.
    cell = (low.astype(np.int64) - (first - 1)[:, None, None]).clip(0, extent)
    weights = np.zeros((len(first), bins, extent + 1))
    n, i = np.arange(len(first))[:, None, None], np.arange(bins)[:, None]
    np.add.at(weights, (n, i, cell), (1 - fraction) * exists)
    np.add.at(weights, (n, i, (cell + 1).clip(max=extent)), fraction * exists)
    return weights / count


def with_taps(weights: NDArray) -> NDArray:
    """Joins a 3-tap convolution over the bins, padded by zeros, to the weights of pooling.

    Output bin i of the convolution reads, by its tap t, what pooling gives for bin i + t - 1.

    Args:
        weights: (n, P, K).

    Returns:
        (n, P, K * 3), the tap innermost.
    """
    n, bins, cells = weights.shape
    padded = np.pad(weights, ((0, 0), (1, 1), (0, 0)))
    taps = [padded[:, tap : tap + bins] for tap in range(3)]
    return np.stack(taps, axis=-1).reshape(n, bins, cells * 3)


@dataclass(frozen=True)
class _Axis:
    """Pooling, and the taps of the convolution, along one axis of one window shape."""

    count: int  # n
    stride: int  # cells
    cells: int  # K
    weights: Tensor  # (n, P, K * t)

    @property
    def length(self) -> int:
        """The cells of the map with its margins, as far as windows reach."""
        return (self.count - 1) * self.stride + self.cells

    def windows(self, x: Tensor, dim: int) -> Tensor:
        """Views the cells of every position: dim becomes n or more, and K * t comes last."""
        taps = self.weights.shape[2] // self.cells
        return x.unfold(dim, self.cells * taps, self.stride * taps)


class AlignedWindows:
    """Reads the features of all windows of a grid from maps of one size."""

    # A window's features are (P, O, P), rows first; windows come column by column.
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
    ):
        """
        Args:
            map_size: (H, W).
            bins: P.
            taps: t.
            sampling_ratio: samples of a bin along an axis; 0 adapts to the window.
            device, dtype: of the maps.
        """
        exact = kernel_dtype(dtype)

        def weighted(axis: WindowAxis) -> _Axis:
            extent, stride, count, length = axis
            first = np.arange(count) * stride
            weights = align_weights(
                extent, first, length, bins, sampling_ratio, grid.feature_stride, exact
            )
            weights = torch.tensor(weights if taps == 1 else with_taps(weights))
            return _Axis(count, stride, extent + 1, weights.to(device, dtype))

        self._axes = [
            (weighted(rows), weighted(columns)) for rows, columns in window_axes(grid, map_size)
        ]

    @staticmethod
    def taps(weight: Tensor) -> Tensor:
        """(O, C, t, t) -> (C, t * O * t), the 1x1 products as the map holds them."""
        return weight.permute(1, 2, 0, 3).flatten(1)

    def read(self, image: Tensor, taps: Tensor | None, values: int) -> Iterator[tuple[int, Tensor]]:
        """Yields the features of some rows of windows at a time, of one shape each.

        Args:
            image: (C, H, W).
            taps: of `taps`; None where no convolution follows.
            values: of a window that the caller works on, besides its features.

        Yields:
            the index of a shape in the grid, and the features of the next of its rows,
            (nx, rows, F).
        """
        cells = self._projected(image, taps)
        for index, (rows, columns) in enumerate(self._axes):
            for features in _windows(cells, rows, columns, values):
                yield index, features

    def _projected(self, image: Tensor, taps: Tensor | None) -> Tensor:
        """(C, H, W) -> (H', t, O, W', t); its margins are 0."""
        channels, height, width = image.shape
        if taps is None:
            cells = image.permute(1, 0, 2)[:, None, :, :, None]
        else:
            products = image.permute(1, 2, 0).reshape(-1, channels) @ taps
            cells = products.view(height, width, 3, -1, 3).permute(0, 2, 3, 1, 4)
        # One cell before the first window's, and as many after as windows overhang.
        below = max(0, *(rows.length - height - 1 for rows, _ in self._axes))
        right = max(0, *(columns.length - width - 1 for _, columns in self._axes))
        return F.pad(cells, (0, 0, 1, right, 0, 0, 0, 0, 1, below))


def _windows(cells: Tensor, rows: _Axis, columns: _Axis, values: int) -> Iterator[Tensor]:
    """Yields (nx, some of ny, P * O * P) of the map (H', t, O, W', t)."""
    _, taps, channels, width, _ = cells.shape
    bins = rows.weights.shape[1]
    slabs = rows.windows(cells.flatten(2).flatten(0, 1), 0)  # (n or more, O * W' * t, K * t)
    row_values = bins * channels * width * taps + columns.count * (bins**2 * channels + values)
    step = rows_per_chunk(cells.device, row_values)
    for first in range(0, rows.count, step):
        some = slice(first, min(first + step, rows.count))
        strip = torch.bmm(rows.weights[some], slabs[some].transpose(1, 2))
        strip = columns.windows(strip.view(-1, width * taps), 1)[:, : columns.count]
        features = torch.bmm(strip.transpose(0, 1), columns.weights.transpose(1, 2))
        yield features.view(columns.count, some.stop - first, -1)
