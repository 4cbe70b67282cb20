"""RoI pooling of regular windows, as one small matrix for each axis of a window shape.

A window of a regular grid starts at a whole cell, so which of its cells a bin covers depends on the
window's shape alone, and both poolers separate into rows and columns:

    pooled[i, j] = sum over y, x of rows[i, y] * columns[j, x] * map[y0 + y, x0 + x]

For RoIAlign the map is the feature itself, and the weights are bilinear weights averaged over the
samples of a bin. For RoI max pooling the map is the feature after a sliding maximum, and the
weights select one cell. A bin of max pooling covers k or k + 1 cells along an axis, so a shape
reads one map for each pair of extents (kh, kw), and each of its bins selects from one of them.

Legend: n positions of a window shape along an axis, P bins, K cells that a window may touch.
"""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import DTypeLike, NDArray
from torch import Tensor

__all__ = [
    "Ranges",
    "align_weights",
    "max_pool_bins",
    "max_pool_weights",
    "range_max",
    "sliding_max",
    "span_max",
    "with_taps",
]

Array = NDArray  # weights are small, and of NumPy so that capturing a graph does not touch them


def max_pool_bins(extent: int, bins: int, dtype: DTypeLike) -> tuple[Array, Array]:
    """Returns the first cell and the number of cells of each bin of `roi_pool`, along one axis.

    Computed in `dtype` as the kernel does: rounding can add a cell to a bin, where exact fractions
    would not.

    Returns:
        Two (P,) arrays of whole numbers; the first cells count from the start of the window.
    """
    size = np.array([extent], dtype) / np.array([bins], dtype)
    edges = np.arange(bins + 1).astype(dtype) * size
    first = np.floor(edges[:-1]).astype(np.int64)
    return first, np.ceil(edges[1:]).astype(np.int64) - first


def max_pool_weights(first: Array, covered: Array, extent: int, exists: Array) -> dict[int, Array]:
    """Returns which cell each bin of max pooling selects from the map of each extent.

    Args:
        first, covered: of `max_pool_bins`.
        extent: K.
        exists: (n, P) bool; a bin wholly beyond the map selects nothing, and so becomes 0.

    Returns:
        {cells covered: (n, P, K) of 0 and 1}.
    """
    selected = (first[:, None] == np.arange(extent)) & exists[:, :, None]
    return {
        int(cells): (selected & (covered == cells)[:, None]).astype(np.float64)
        for cells in np.unique(covered)
    }


def align_weights(
    extent: int,
    first: Array,
    length: int,
    bins: int,
    sampling_ratio: int,
    feature_stride: int,
    dtype: DTypeLike,
) -> Array:
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


def with_taps(weights: Array) -> Array:
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


def sliding_max(x: Tensor, extent: int, dim: int) -> Tensor:
    """Returns the maxima of x over every [i, i + extent) along a dimension.

    The reach doubles with each pass: log2(extent) passes. The result is extent - 1 shorter than x.
    """
    reach = 1
    while reach < extent:
        step = min(reach, extent - reach)
        size = x.shape[dim] - step
        x = torch.maximum(x.narrow(dim, 0, size), x.narrow(dim, step, size))
        reach += step
    return x


class Ranges(NamedTuple):
    """Ranges of cells along an axis."""

    spans: list[tuple[int, int]]  # B of [first, last)
    first: Array | Tensor  # (B,) whole numbers
    last_reach: Array | Tensor  # (B,), where the last `reach` cells of a range start
    reach: int  # at most the cells of the smallest range, at least half those of the largest

    @classmethod
    def of(cls, first: Array, covered: Array) -> "Ranges":
        """Ranges that start at `first` and cover so many cells, (B,) both."""
        # The bins of a window differ by so little that a power of two reaches half of each.
        reach = 1 << (int(covered.min()).bit_length() - 1)
        assert covered.max() <= 2 * reach
        end = first + covered
        spans = [(int(start), int(stop)) for start, stop in zip(first, end, strict=True)]
        return cls(spans, first, end - reach, reach)

    def to(self, device: torch.device) -> "Ranges":
        first, last_reach = torch.tensor(self.first), torch.tensor(self.last_reach)
        return self._replace(first=first.to(device), last_reach=last_reach.to(device))

    def part(self, start: int, count: int) -> "Ranges":
        part = slice(start, start + count)
        return Ranges(self.spans[part], self.first[part], self.last_reach[part], self.reach)


def span_max(x: Tensor, ranges: Ranges, dim: int) -> Tensor:
    """Returns the maximum over each range of cells along a dimension: x with B entries there.

    Reads each cell about once, by one operation a range.
    """
    spans = [x.narrow(dim, start, stop - start).amax(dim) for start, stop in ranges.spans]
    return torch.stack(spans, dim)


def range_max(x: Tensor, ranges: Ranges, dim: int) -> Tensor:
    """Returns what `span_max` does by few operations, whatever the number of ranges."""
    x = sliding_max(x, ranges.reach, dim)
    from_start = x.index_select(dim, ranges.first)
    return torch.maximum(from_start, x.index_select(dim, ranges.last_reach))
