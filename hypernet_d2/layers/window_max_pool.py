"""RoI max pooling, and the convolution after it, of all windows of a regular grid.

A window starts at a whole cell, so which of its cells a bin covers depends on the window's shape
alone. A bin's maximum is a value of the map after a sliding maximum over as many cells as the bin
has; a bin covers k or k + 1 cells along an axis, so that a shape reads one such map M[kh, kw] for
each pair of extents. The convolution's nine 1x1 products commute with picking cells, so that each
map is projected once. What is left for bin (i, j) of a window is a sum over the taps,

    feature[i, j] = sum over t, u of M[kh, kw][y(i + t - 1), x(j + u - 1)][t, u],

a sum over t of rows of the maps, which all windows of a row share, and then one over u of what
these sums have in a few columns. Both are sums of picked rows of a table, an embedding bag each.

Legend: C channels, (H, W) map, n or (ny, nx) positions of a window shape, P bins along an axis, O
channels of the convolution, t its taps along an axis (3, or 1 where it goes before pooling), k
different extents of a shape's bins along x.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import DTypeLike, NDArray
from torch import Tensor

from .window_steps import (
    PooledShape,
    WindowAxis,
    few_steps,
    kernel_dtype,
    rows_at_a_time,
    window_axes,
)
from .windows import WindowGrid

__all__ = ["MaxPooledWindows", "Bins", "gather_bins", "max_pool_bins", "pick_bins", "sliding_max"]

Pair = tuple[int, int]  # extents (kh, kw) of a bin in cells


def max_pool_bins(extent: int, bins: int, dtype: DTypeLike) -> tuple[NDArray, NDArray]:
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


def sliding_max(x: Tensor, extent: int, dim: int, reach: int = 1) -> Tensor:
    """Returns the maxima of x over every [i, i + extent) along a dimension.

    The reach doubles with each pass: log2(extent) passes. The result is extent - reach shorter
    than x, in which each value is already the maximum over `reach`.
    """
    while reach < extent:
        step = min(reach, extent - reach)
        size = x.shape[dim] - step
        x = torch.maximum(x.narrow(dim, 0, size), x.narrow(dim, step, size))
        reach += step
    return x


class Series(NamedTuple):
    """Bins of equal size at equal distances, as lines of the map that consists of them."""

    line: int  # the first of them
    first: int  # the cell at which its bin starts
    covered: int  # cells of a bin
    stride: int  # cells from bin to bin
    count: int

    def part(self, some: slice) -> "Series":
        line, first = self.line + some.start, self.first + some.start * self.stride
        return self._replace(line=line, first=first, count=some.stop - some.start)

    @property
    def lines(self) -> slice:
        return slice(self.line, self.line + self.count)

    def maxima(self, x: Tensor, reach: int = 1, out: Tensor | None = None) -> Tensor:
        """Returns (count, ...) of x (L, ...), which are maxima over `reach` cells already."""
        last = self.first + self.covered - reach
        length = self.count * self.stride
        starts = [*range(self.first, last, reach), last]
        start, *others = (x[cell : cell + length : self.stride] for cell in starts)
        if not others:
            return start if out is None else out.copy_(start)
        out = torch.maximum(start, others[0], out=out)
        for other in others[1:]:
            torch.maximum(out, other, out=out)
        return out


class Bins:
    """The bins of one window shape along one axis, of n windows on a map.

    A bin covers k or k + 1 cells, and so is the union of two ranges of `reach` cells. Windows are
    equally far apart and overlap, so that many bins of one are bins of others: `series` has each
    different one once.
    """

    def __init__(
        self,
        axis: WindowAxis,
        bins: int,
        dtype: DTypeLike,
        device: torch.device | str = "cpu",
    ):
        """
        Args:
            axis: of n windows.
            bins: P.
            dtype: what the kernel computes in.
            device: of the maps.
        """
        extent, stride, count, length = axis
        first, self.covered = max_pool_bins(extent, bins, dtype)
        self.cells = np.arange(count)[:, None] * stride + first  # (n, P), where they start
        self.exists = self.cells < length  # (n, P), whether any cell of a bin is on the map
        self.extents = np.unique(self.covered)
        self.reach = 1 << (int(self.extents[0]).bit_length() - 1)
        assert self.extents[-1] <= 2 * self.reach

        self.series: list[Series] = []
        self.lines = np.zeros_like(self.cells)  # (n, P), those of the bins that exist
        self.size = 0  # how many lines there are
        for start, covered in sorted({*zip(first % stride, self.covered, strict=True)}):
            alike = self.exists & (self.cells % stride == start) & (self.covered == covered)
            if not alike.any():
                continue
            cells = self.cells[alike]
            least, most = int(cells.min()), int(cells.max())
            series = Series(self.size, least, int(covered), stride, (most - least) // stride + 1)
            self.lines[alike] = series.line + (cells - least) // stride
            self.series.append(series)
            self.size += series.count
        first = np.concatenate([s.first + np.arange(s.count) * stride for s in self.series])
        last = first + np.concatenate([[s.covered - self.reach] * s.count for s in self.series])
        self.index = torch.tensor(np.stack([first, last]), device=device)  # of the two ranges


def pick_bins(x: Tensor, bins: Bins, dim: int) -> Tensor:
    """Returns the maxima over bins, by one operation for each series.

    Args:
        x: maxima over `bins.reach` cells along `dim`, as far as bins on the map reach.

    Returns:
        x with the lines in place of `dim`.
    """
    maxima = x.new_empty(*x.shape[:dim], bins.size, *x.shape[dim + 1 :])
    for series in bins.series:
        out = maxima.movedim(dim, 0)[series.lines]
        series.maxima(x.movedim(dim, 0), bins.reach, out=out)
    return maxima


def gather_bins(x: Tensor, bins: Bins, dim: int) -> Tensor:
    """Returns what `pick_bins` does, by two gathers."""
    return torch.maximum(*(x.index_select(dim, cells) for cells in bins.index))


def _sums(table: Tensor, index: Tensor) -> Tensor:
    """Sums picked rows: (M, D) and (B, t) whole numbers -> (B, D)."""
    if torch.compiler.is_compiling():
        # Exporters make a loop over the bags of the other.
        return table.index_select(0, index.flatten()).unflatten(0, index.shape).sum(1)
    return F.embedding_bag(index, table, mode="sum")


def _with_taps(cells: NDArray, exists: NDArray, taps: int) -> NDArray:
    """Returns what bin i of the convolution's output reads by each tap: (n, P) -> (n, P, t).

    Tap t of bin i reads bin i + t - 1. A cell has t entries; those of cell 0 are 0, and stand for
    bins that do not exist, or that lie outside the window.
    """
    bins, around = cells.shape[1], taps // 2
    taken = np.pad(np.where(exists, cells, 0), ((0, 0), (around, around)))
    taken = np.stack([taken[:, tap : tap + bins] for tap in range(taps)], axis=-1)
    return np.where(taken > 0, taken * taps + np.arange(taps), 0)


@dataclass(frozen=True)
class _Shape:
    """How the windows of one shape are read.

    A table has t rows for each line: first a line of zeros, then the lines of its maps, slot after
    slot. The second table, of one or more rows of windows, has a row of zeros and then one for each
    row of windows, extent along x and bin; a row has t entries of O channels for each cell.
    """

    index: int  # of the shape in the grid
    rows: Tensor  # (ny, k * P, t) rows of the table
    columns: Tensor  # (nx, P, t) entries of the second table, of its first window and bin along y
    # Where the shape has a map of its own: the bins along y and x, which make it up.
    bins: tuple[Bins, Bins] | None = None
    # Where it reads shared maps: those to make before it, with the slots that are free then.
    maps: dict[Pair, int] | None = None


class MaxPooledWindows:
    """Reads the features of all windows of a grid from maps of one size.

    Where the windows of a shape are many, their bins are read from maps that the shapes share.
    Where they are few (large windows, far apart), a whole map costs more than the bins: then the
    different bins of all windows make up a small map of their own.
    """

    # A window's features are (P, P, O), rows first; windows come row by row.
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
    ):
        """
        Args:
            map_size: (H, W).
            bins: P.
            taps: t.
            device, dtype: of the maps.
        """
        self._size = map_size
        self._taps = taps
        exact = kernel_dtype(dtype)
        shapes = [
            tuple(Bins(axis, bins, exact, device) for axis in axes)
            for axes in window_axes(grid, map_size)
        ]
        # Cells beyond the border that a bin may cover.
        self._margins = [max(int(s[i].extents[-1]) for s in shapes) - 1 for i in (0, 1)]
        shared = _worth_sharing(shapes, map_size)
        self._apart = [
            self._apart_shape(i, *bins, device) for i, bins in enumerate(shapes) if i not in shared
        ]
        self._shared, self._slots = self._sharing_shapes(shared, device)

    def _apart_shape(self, index: int, rows: Bins, columns: Bins, device: torch.device) -> _Shape:
        cells = columns.size + columns.lines
        return _Shape(
            index,
            _to_tensor([_with_taps(1 + rows.lines, rows.exists, self._taps)], device),
            _to_tensor([_with_taps(cells, columns.exists, self._taps)], device),
            bins=(rows, columns),
        )

    def _sharing_shapes(
        self, axes: dict[int, tuple[Bins, Bins]], device: torch.device
    ) -> tuple[list[_Shape], int]:
        """Returns the shapes in the order in which they are to be read, and how many slots."""
        height, width = self._size
        pairs = {i: _pairs(*bins) for i, bins in axes.items()}
        # Neighbours share maps, so that few of these live at a time.
        order = sorted(axes, key=lambda i: (pairs[i], i))
        last_use = {pair: i for i in order for pair in pairs[i]}
        shapes, live, free, slots = [], {}, [], 0
        for i in order:
            rows, columns = axes[i]
            new = [pair for pair in pairs[i] if pair not in live]
            for pair in new:
                if not free:
                    free.append(slots)
                    slots += 1
                live[pair] = free.pop()
            lines = []
            for kw in columns.extents:
                slot = np.array([live[int(kh), int(kw)] for kh in rows.covered])
                lines.append(_with_taps(1 + slot * height + rows.cells, rows.exists, self._taps))
            line = 1 + np.searchsorted(columns.extents, columns.covered) * len(rows.covered)
            entries = _with_taps(line * width + columns.cells, columns.exists, self._taps)
            shapes.append(
                _Shape(
                    i,
                    _to_tensor(lines, device),
                    _to_tensor([entries], device),
                    maps={pair: live[pair] for pair in new},
                )
            )
            free += [live.pop(pair) for pair in pairs[i] if last_use[pair] == i]
        return shapes, slots

    @staticmethod
    def taps(weight: Tensor) -> Tensor:
        """(O, C, t, t) -> (C, t * t * O), the 1x1 products as the maps hold them."""
        return weight.permute(1, 2, 3, 0).flatten(1)

    def shapes(self, image: Tensor, taps: Tensor | None) -> Iterator[PooledShape]:
        """Yields the window shapes; each is to be read before the next is asked for.

        Args:
            image: (C, H, W).
            taps: of `taps`; None where no convolution follows.
        """
        height, width = self._size
        # Cells beyond the border lose every maximum.
        below, right = self._margins
        cells = F.pad(image.permute(1, 2, 0), (0, 0, 0, right, 0, below), value=-torch.inf)
        channels = image.shape[0] if taps is None else taps.shape[1] // self._taps**2

        table, maps = self._table(cells, self._slots, height, width, channels)
        for shape in self._shared:
            for some in _strips(height, cells[0].numel(), cells.device):
                for kh, of_height in groupby(shape.maps, key=lambda pair: pair[0]):
                    tall = sliding_max(cells[some.start : some.stop + kh - 1], kh, 0)
                    for _, kw in of_height:
                        strip = sliding_max(tall[:, : width + kw - 1], kw, 1)
                        maps[shape.maps[kh, kw], some] = self._project(strip, taps)
            yield PooledShape(shape.index, partial(self._steps, table, shape, channels))
        del table, maps

        bin_maxima = gather_bins if few_steps(cells.device) else pick_bins
        for shape in self._apart:
            rows, columns = shape.bins
            table, maps = self._table(cells, 1, rows.size, columns.size, channels)
            for lines, strip in _row_maxima(cells, rows):
                strip = bin_maxima(sliding_max(strip, columns.reach, 1), columns, 1)
                maps[0, lines] = self._project(strip, taps)
            yield PooledShape(shape.index, partial(self._steps, table, shape, channels))

    def _table(
        self, like: Tensor, slots: int, height: int, width: int, channels: int
    ) -> tuple[Tensor, Tensor]:
        """Returns a table, and its lines as the maps (slots, height, t, width, t * O) to fill."""
        taps = self._taps
        lines = like.new_empty(1 + slots * height, taps, width * taps * channels)
        lines[0] = 0
        maps = lines[1:].view(slots, height, taps, width, taps * channels)
        return lines.flatten(0, 1), maps

    def _project(self, cells: Tensor, taps: Tensor | None) -> Tensor:
        """(H, W, C) -> (H, t, W, t * O)."""
        if taps is None:
            return cells[:, None]
        products = cells.flatten(0, 1) @ taps
        return products.view(*cells.shape[:2], self._taps, -1).transpose(1, 2)

    def _steps(self, table: Tensor, shape: _Shape, channels: int, values: int) -> Iterator[Tensor]:
        """Yields (some of ny, nx, P * P * O)."""
        ny, lines, taps = shape.rows.shape
        nx, bins, _ = shape.columns.shape
        row_values = lines * table.shape[1] + nx * (bins**2 * taps + values)
        step = min(ny, rows_at_a_time(table.device, row_values))
        # The second table's entries before those of a row of windows and of a bin along y.
        windows, rows = (
            torch.arange(n, dtype=torch.int32, device=table.device) for n in (step, bins)
        )
        before = (windows[:, None] * lines + rows) * (table.shape[1] // channels)
        columns = shape.columns[:, None]  # (nx, 1, P, t)
        index = columns + before[:, None, :, None, None] * (columns > 0)
        for first in range(0, ny, step):
            some = shape.rows[first : first + step]
            second = _sums(table, F.pad(some.flatten(0, 1), (0, 0, 1, 0)))
            features = _sums(second.view(-1, channels), index[: len(some)].view(-1, taps))
            yield features.view(len(some), nx, -1)


def _pairs(rows: Bins, columns: Bins) -> list[Pair]:
    """Returns the extents of the maps that a shape reads."""
    return [(int(kh), int(kw)) for kh in rows.extents for kw in columns.extents]


def _worth_sharing(
    shapes: list[tuple[Bins, Bins]], map_size: tuple[int, int]
) -> dict[int, tuple[Bins, Bins]]:
    """Returns the shapes for which their part in shared maps costs less than a map of their own.

    A shared map costs in proportion to its cells, in equal parts for the shapes that read it.
    """
    shared = dict(enumerate(shapes))
    while shared:
        readers = Counter(pair for bins in shared.values() for pair in _pairs(*bins))
        saved = {}
        for i, (rows, columns) in shared.items():
            part = sum(1 / readers[pair] for pair in _pairs(rows, columns))
            # A bin of a map of its own takes about half as long again, as measured.
            saved[i] = part * map_size[0] * map_size[1] - 1.5 * rows.size * columns.size
        most = max(saved, key=saved.get)
        if saved[most] <= 0:
            break
        del shared[most]
    return shared


def _row_maxima(cells: Tensor, rows: Bins) -> Iterator[tuple[slice, Tensor]]:
    """Yields some lines of (H, W, C), the maxima over the bins along y, and which these are."""
    if few_steps(cells.device):
        yield slice(0, rows.size), gather_bins(sliding_max(cells, rows.reach, 0), rows, 0)
        return
    # Maxima over `reach` rows would be a second map of full size, which takes fresh pages.
    for series in rows.series:
        for some in _strips(series.count, cells[0].numel(), cells.device):
            part = series.part(some)
            yield part.lines, part.maxima(cells)


def _strips(count: int, values: int, device: torch.device) -> Iterator[slice]:
    """Yields the lines to work on at once, of so many values each."""
    step = rows_at_a_time(device, values)
    for first in range(0, count, step):
        yield slice(first, min(first + step, count))


def _to_tensor(parts: list[NDArray], device: torch.device) -> Tensor:
    return torch.tensor(np.concatenate(parts, axis=1), dtype=torch.int32, device=device)
