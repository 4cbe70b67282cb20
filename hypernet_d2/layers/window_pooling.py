"""RoI pooling of regular windows, written as one small matrix for each axis of a window shape.

A window of a regular grid starts at a whole cell, so which cells a bin covers depends on the
window's shape alone. Both poolers are separable: a pooled value is

    pooled[i, j] = sum over y, x of rows[i, y] * columns[j, x] * m[y0 + y, x0 + x]

where for RoIAlign m is the map itself and the weights are bilinear weights, averaged over a bin's
samples, and where for RoI max pooling m is the map after a sliding maximum and the weights select
one cell. A bin of max pooling covers k or k + 1 cells along an axis, so there are as many maps m
as pairs of extents and each bin selects from one of them.

The functions here give the weights of all n positions of a shape along one axis, the rules at the
map's border included. Legend: n positions, P bins, K cells that a window may touch.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["align_weights", "max_pool_weights", "sliding_max", "with_taps"]


def max_pool_bins(extent: int, bins: int, dtype: torch.dtype) -> tuple[list[int], list[int]]:
    """Returns the first cell and the number of cells of each bin of `roi_pool`, along one axis.

    Computed in `dtype` as the kernel does: rounding can add a cell to a bin, which exact fractions
    would not.
    """
    size = torch.tensor(extent, dtype=dtype) / torch.tensor(bins, dtype=dtype)
    edges = torch.arange(bins + 1, dtype=dtype) * size
    starts, ends = edges[:-1].floor().long(), edges[1:].ceil().long()
    return starts.tolist(), (ends - starts).tolist()


def max_pool_weights(
    extent: int, stride: int, count: int, length: int, bins: int, dtype: torch.dtype
) -> dict[int, Tensor]:
    """Returns, for each number of cells that a bin covers, which cell each bin selects.

    Position k of the shape starts at cell k * stride of a map of `length` cells.

    Returns:
        {cells covered: (count, bins, extent) of 0 and 1}. A bin that lies wholly beyond the map
        selects nothing: its pooled value is 0, as in `roi_pool`.
    """
    starts, covered = max_pool_bins(extent, bins, dtype)
    selected = F.one_hot(torch.tensor(starts), extent).to(dtype)
    cell = torch.arange(count)[:, None] * stride + torch.tensor(starts)
    selected = selected * (cell < length)[:, :, None]
    covered = torch.tensor(covered)
    return {
        int(cells): selected * (covered == cells)[:, None] for cells in covered.unique().tolist()
    }


def align_weights(
    extent: int,
    stride: int,
    count: int,
    length: int,
    bins: int,
    sampling_ratio: int,
    feature_stride: int,
    dtype: torch.dtype,
) -> Tensor:
    """Returns the weights of `roi_align(aligned=True)` along one axis.

    Position k of the shape starts at cell k * stride of a map of `length` cells; its weights are
    those of the cells k * stride - 1 to k * stride + extent - 1, because the samples are shifted
    by half a cell.

    Returns:
        (count, bins, extent + 1).
    """
    # The kernel's own order of operations: a sample on the border is in or out by its last bit.
    first = torch.arange(count) * stride
    scale = torch.tensor(1 / feature_stride, dtype=dtype)
    start = (first * feature_stride).to(dtype) * scale - 0.5
    end = ((first + extent - 1) * feature_stride).to(dtype) * scale - 0.5
    size = (end - start) / bins
    samples = sampling_ratio if sampling_ratio > 0 else int(size[0].ceil())
    within = (torch.arange(samples, dtype=dtype) + 0.5) * size[:, None] / max(samples, 1)
    bin_start = start[:, None] + torch.arange(bins, dtype=dtype) * size[:, None]
    position = bin_start[:, :, None] + within[:, None, :]  # (n, P, samples), in cells

    # Up to one cell outside a sample takes the border's value; farther out it is 0.
    exists = (position >= -1) & (position <= length)
    position = position.clamp(0, length - 1)
    low = position.floor()
    fraction = position - low
    cell = low.long() - (first - 1)[:, None, None]
    # A clamped position may lie before the cells of its window, but then it does not exist.
    cell, next_cell = cell.clamp(0, extent), (cell + 1).clamp(0, extent)
    weights = torch.zeros(count, bins, extent + 1, dtype=dtype)
    weights.scatter_add_(2, cell, (1 - fraction) * exists)
    weights.scatter_add_(2, next_cell, fraction * exists)
    return weights / max(samples, 1)


def with_taps(weights: Tensor) -> Tensor:
    """Joins a 3-tap convolution over the bins, padded by zeros, to pooling weights.

    Output bin i of the convolution reads, with its tap t, what pooling gives for bin i + t - 1.

    Args:
        weights: (n, P, K).

    Returns:
        (n, P, K * 3), the tap innermost.
    """
    padded = F.pad(weights, (0, 0, 1, 1))
    taps = [padded[:, tap : tap + weights.shape[1]] for tap in range(3)]
    return torch.stack(taps, dim=-1).flatten(2)


def sliding_max(x: Tensor, extent: int, dim: int, length: int) -> Tensor:
    """Returns the maxima of x over [i, i + extent) for i in [0, length), along a dimension.

    x has at least length + extent - 1 entries there. Takes log2(extent) passes by doubling.
    """
    reach = 1
    while reach < extent:
        step = min(reach, extent - reach)
        size = x.shape[dim] - step if reach + step < extent else length
        x = torch.maximum(x.narrow(dim, 0, size), x.narrow(dim, step, size))
        reach += step
    return x.narrow(dim, 0, length)
