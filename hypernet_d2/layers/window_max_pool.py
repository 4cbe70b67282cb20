"""RoI max pooling and a convolution of all windows of a regular grid, without pooling each window.

Windows start at whole cells. So the bins of a window shape cover the same cells in every window,
counted from the window's start, and the maximum over a bin of kh x kw cells is a value of the map

    M[kh, kw] = the feature map after a sliding maximum over kh x kw cells.

A convolution is a sum of 1x1 convolutions, one for each tap, and a 1x1 convolution commutes with
picking cells. So each M[kh, kw] is projected once, from C channels to O channels for each tap, at
the lines and columns at which bins start. The result is the table T[kh, kw]. The output of the
convolution at bin (i, j) of a window is a sum over the taps,

    sum over u, v of T[kh, kw][y, x][u, v],

where bin (i + u - 1, j + v - 1) starts at cell (y, x) and covers kh x kw cells. Two steps compute
it, and both add up rows of a table (an embedding bag):

1. the sum over u, for whole lines: all windows that start in the same line share it;
2. the sum over v, for each window.

Bins outside the window (the padding of the convolution) and bins outside the map (empty, so that
`roi_pool` gives 0) read line 0 or column 0 of the table, which are zeros.

Shapes whose bins have the same extents form a group, which has one table for all its kh and kw.

Legend: C channels, (H, W) map, n or (ny, nx) positions of a window shape, P bins along an axis, O
channels of the convolution, t taps along an axis (3, or 1 where the convolution goes before
pooling), L lines and K columns of a table. A line is a row of cells of the map.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import DTypeLike, NDArray
from torch import Tensor

from .window_steps import WindowAxis, kernel_dtype, rows_per_chunk, window_axes
from .windows import WindowGrid

__all__ = ["MaxPooledWindows", "max_pool_bins", "sliding_max"]

Cells = range | Tensor  # ascending indices of cells along an axis; a range where consecutive
Features = Iterator[tuple[int, Tensor]]


def max_pool_bins(extent: int, bins: int, dtype: DTypeLike) -> tuple[NDArray, NDArray]:
    """Computes the bins of `roi_pool` along one axis, in cells from the start of the window.

    Args:
        extent: cells of the window.
        bins: P.
        dtype: the type in which the kernel computes; its rounding can add a cell to a bin.

    Returns:
        (P,) first cells and (P,) extents, each of them ceil(extent / P) or one cell more.
    """
    size = np.array([extent], dtype) / np.array([bins], dtype)
    edges = np.arange(bins + 1).astype(dtype) * size
    first = np.floor(edges[:-1]).astype(np.int64)
    return first, np.ceil(edges[1:]).astype(np.int64) - first


def sliding_max(x: Tensor, extent: int, dim: int, reach: int = 1) -> Tensor:
    """Computes maxima over [i, i + extent) from maxima over [i, i + reach), along a dimension.

    Each pass at most doubles the reach; the result is shorter than x by extent - reach.
    """
    while reach < extent:
        step = min(reach, extent - reach)
        size = x.shape[dim] - step
        x = torch.maximum(x.narrow(dim, 0, size), x.narrow(dim, step, size))
        reach += step
    return x


class _Bins(NamedTuple):
    """The bins of one window shape along one axis."""

    start: NDArray  # (n, P), the first cell
    extent: NDArray  # (n, P), the number of cells
    on_map: NDArray  # (n, P), whether the first cell lies on the map


class _Shape(NamedTuple):
    """Which entries of its group's table the windows of one shape read; t for each bin."""

    index: int  # of the shape in the grid
    rows: Tensor  # (ny, P, t), entries of the (1 + L) * t lines
    columns: Tensor  # (nx, P, t), entries of the (1 + K) * t columns


class _Group(NamedTuple):
    """Shapes whose bins have the same extents, and the cells at which these bins start."""

    lines: dict[int, Cells]  # {kh: cells along y}, L in all
    columns: dict[int, Cells]  # {kw: cells along x}, K in all
    shapes: list[_Shape]


class MaxPooledWindows:
    """Computes the convolved features of all windows of a grid, for maps of one size."""

    # A window's features are (P, P, O); windows come row by row.
    feature_order = ("y", "x", "channel")
    by_column = False

    def __init__(
        self,
        grid: WindowGrid,
        map_size: tuple[int, int],
        bins: int,
        taps: int,
        device: torch.device,
        dtype: torch.dtype,
        masked: bool = False,
    ):
        """`map_size` is (H, W), `bins` P, `taps` t. If `masked`, cells of -inf do not exist."""
        self._taps, self._masked = taps, masked
        shapes_of: dict[tuple, list[tuple[int, _Bins, _Bins]]] = {}
        for index, axes in enumerate(window_axes(grid, map_size)):
            rows, columns = (_bins(axis, bins, kernel_dtype(dtype)) for axis in axes)
            extents = tuple(tuple(np.unique(b.extent).tolist()) for b in (rows, columns))
            shapes_of.setdefault(extents, []).append((index, rows, columns))
        # The cells by which bins may overhang the bottom and the right border.
        self._overhang = [max(extents[axis][-1] for extents in shapes_of) - 1 for axis in (0, 1)]
        self._groups: list[_Group] = []
        # Sorted by extents along y, so that `read` can extend the maxima of one group to the next.
        for _, shapes in sorted(shapes_of.items()):
            indices, rows, columns = zip(*shapes, strict=True)
            lines, row_entries = _lay_out(rows, taps, device)
            columns, column_entries = _lay_out(columns, taps, device)
            shapes = list(map(_Shape, indices, row_entries, column_entries))
            self._groups.append(_Group(lines, columns, shapes))

    @staticmethod
    def taps(weight: Tensor) -> Tensor:
        """Reorders a convolution's weight (O, C, t, t) to the projection (C, t * t * O)."""
        return weight.permute(1, 2, 3, 0).flatten(1)

    def read(self, image: Tensor, taps: Tensor | None, extra_values: int) -> Features:
        """Computes the features of all windows, a few rows of windows of one shape at a time.

        Args:
            image: (C, H, W).
            taps: the projection; None where no convolution follows.
            extra_values: values per window that the caller holds besides the features.

        Yields:
            the index of a shape in the grid, and features (rows, nx, P * P * O) of its next rows.
        """
        below, right = self._overhang  # cells beyond the border lose every maximum
        x = F.pad(image.permute(1, 2, 0), (0, 0, 0, right, 0, below), value=-torch.inf)
        reach = 1
        for group in self._groups:
            x, reach = sliding_max(x, min(group.lines), 0, reach), min(group.lines)
            table = self._table(group, x, reach, taps)
            for shape in group.shapes:
                yield from self._features(table, shape, extra_values)

    def _table(self, group: _Group, x: Tensor, reach: int, taps: Tensor | None) -> Tensor:
        """Computes the table of a group, (1 + L, t, 1 + K, t * O).

        `x` has maxima over `reach` cells along y, (H + overhang, W + overhang, C).
        """
        height, width = (1 + sum(map(len, x.values())) for x in (group.lines, group.columns))
        channels = x.shape[2] if taps is None else taps.shape[1] // self._taps
        table = x.new_zeros(height, self._taps, width, channels)
        line = 1
        for kh, lines in group.lines.items():
            step = rows_per_chunk(x.device, 2 * x[0].numel())
            for chunk in (lines[i : i + step] for i in range(0, len(lines), step)):
                strip = _take(x, chunk, 0)
                if kh > reach:
                    strip = torch.maximum(strip, _take(x[kh - reach :], chunk, 0))
                column, reach_x = 1, 1
                for kw, columns in group.columns.items():
                    strip, reach_x = sliding_max(strip, kw, 1, reach_x), kw
                    cells = _take(strip, columns, 1)
                    cells = cells.masked_fill(cells == -torch.inf, 0) if self._masked else cells
                    cells = cells if taps is None else cells @ taps
                    out = table[line : line + len(chunk), :, column : column + len(columns)]
                    out.copy_(cells.unflatten(2, (self._taps, -1)).transpose(1, 2))
                    column += len(columns)
                line += len(chunk)
        return table

    def _features(self, table: Tensor, shape: _Shape, extra_values: int) -> Features:
        """Computes the features of one shape's windows, as `read` yields them."""
        (ny, bins, taps), nx = shape.rows.shape, len(shape.columns)
        width, channels = table.shape[2] * taps, table.shape[3] // taps
        values = bins * width * channels + nx * (bins**2 * (taps + channels) + extra_values)
        step = min(ny, rows_per_chunk(table.device, values))
        # The sum over u leaves a line of (1 + K) * t entries for each row of bins.
        lines = torch.arange(step * bins, dtype=torch.int32, device=table.device) * width
        entries = lines.view(step, 1, bins, 1, 1) + shape.columns[:, None]
        table = table.view(-1, width * channels)
        for rows in shape.rows.split(step):
            sums = _sum_rows(table, rows).view(-1, channels)
            features = _sum_rows(sums, entries[: len(rows)])
            yield shape.index, features.view(len(rows), nx, -1)


def _bins(axis: WindowAxis, bins: int, dtype: DTypeLike) -> _Bins:
    first, extent = max_pool_bins(axis.extent, bins, dtype)
    start = np.arange(axis.count)[:, None] * axis.stride + first
    return _Bins(start, np.broadcast_to(extent, start.shape), start < axis.length)


def _lay_out(
    shapes: Sequence[_Bins], taps: int, device: torch.device
) -> tuple[dict[int, Cells], Sequence[Tensor]]:
    """Lays out one axis of the table of a group.

    Returns:
        {extent: the cells at which bins of this extent start}, in the order of the table, and for
        each shape the entries that its bins read, (n, P, t).
    """
    start, extent, on_map = (np.concatenate(arrays) for arrays in zip(*shapes, strict=True))
    starts, size, positions = {}, 1, np.zeros_like(start)
    for k in np.unique(extent[on_map]).tolist():
        chosen = on_map & (extent == k)
        cells, order = np.unique(start[chosen], return_inverse=True)
        positions[chosen] = size + order
        size += len(cells)
        run = range(int(cells[0]), int(cells[-1]) + 1)
        starts[k] = run if len(run) == len(cells) else torch.tensor(cells, device=device)
    # Tap u of bin i reads bin i + u - t // 2. Position 0 stands for bins that do not exist.
    positions = np.pad(positions, ((0, 0), (taps // 2, taps // 2)))
    entries = sliding_window_view(positions, taps, axis=1) * taps + np.arange(taps)
    entries = torch.tensor(entries, dtype=torch.int32, device=device)
    return starts, entries.split([len(bins.start) for bins in shapes])


def _take(x: Tensor, cells: Cells, dim: int) -> Tensor:
    """Returns x at the given cells along a dimension: a view where they are consecutive."""
    if isinstance(cells, range):
        return x.narrow(dim, cells.start, len(cells))
    return x.index_select(dim, cells)


def _sum_rows(table: Tensor, index: Tensor) -> Tensor:
    """Adds up the rows of a table (M, D) that each t of the indices (..., t) name: -> (B, D)."""
    index = index.flatten(0, -2)
    if torch.compiler.is_compiling():  # exporters turn an embedding bag into a loop over its bags
        return table.index_select(0, index.flatten()).unflatten(0, index.shape).sum(1)
    return F.embedding_bag(index, table, mode="sum")
