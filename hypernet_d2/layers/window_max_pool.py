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
different extents of a shape's bins along x, Dy and Dx bins of a shape that read different cells.
"""

from collections.abc import Iterator
from itertools import groupby, pairwise
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import DTypeLike, NDArray
from torch import Tensor

from .window_steps import WindowAxis, few_steps, kernel_dtype, rows_at_a_time, window_axes
from .windows import WindowGrid

__all__ = ["MaxPooledWindows", "Bins", "gather_bins", "max_pool_bins", "pick_bins", "sliding_max"]

# Lines of a CPU's bands: more leave the cache, as measured, and fewer make many small steps.
_BAND = 24

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
    last: int  # the cell at which the last `reach` cells of its bin start
    stride: int  # cells from bin to bin
    count: int

    def part(self, lines: slice) -> "Series":
        """Returns what of it is among some lines, with a count below 1 where nothing is."""
        line = max(self.line, lines.start)
        skipped = (line - self.line) * self.stride
        count = min(self.line + self.count, lines.stop) - line
        return Series(line, self.first + skipped, self.last + skipped, self.stride, count)


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
            last, count = least + int(covered) - self.reach, (most - least) // stride + 1
            series = Series(self.size, least, last, stride, count)
            self.lines[alike] = series.line + (cells - least) // stride
            self.series.append(series)
            self.size += series.count
        starts = [
            np.add.outer((some.first, some.last), np.arange(some.count) * stride)
            for some in self.series
        ]
        # (2, size), where the two ranges of each line start.
        self.ranges = torch.tensor(np.concatenate(starts, axis=1), device=device)


def pick_bins(x: Tensor, bins: Bins, dim: int, some: slice = slice(None)) -> Tensor:
    """Returns the maxima over bins, by one operation for each series.

    Args:
        x: maxima over `bins.reach` cells along `dim`, as far as bins on the map reach.
        some: of the lines, all by default.

    Returns:
        x with the lines in place of `dim`.
    """
    some = slice(*some.indices(bins.size))
    maxima = x.new_empty(*x.shape[:dim], some.stop - some.start, *x.shape[dim + 1 :])
    cells, lines = x.movedim(dim, 0), maxima.movedim(dim, 0)
    for series in bins.series:
        line, first, last, stride, count = series.part(some)
        if count > 0:
            torch.maximum(
                cells[first : first + count * stride : stride],
                cells[last : last + count * stride : stride],
                out=lines[line - some.start : line - some.start + count],
            )
    return maxima


def gather_bins(x: Tensor, bins: Bins, dim: int, some: slice = slice(None)) -> Tensor:
    """Returns what `pick_bins` does, by two gathers."""
    return torch.maximum(*(x.index_select(dim, cells) for cells in bins.ranges[:, some]))


def _sums(table: Tensor, index: Tensor, offsets: Tensor) -> Tensor:
    """Sums picked rows: (M, D) and (B, t) whole numbers -> (B, D).

    Args:
        offsets: multiples of t, B or more.
    """
    if torch.compiler.is_compiling():
        # Exporters make a loop over the bags of the other.
        return table.index_select(0, index.flatten()).unflatten(0, index.shape).sum(1)
    return F.embedding_bag(index.flatten(), table, offsets[: len(index)], mode="sum")


def _with_taps(cells: NDArray, exists: NDArray, taps: int) -> NDArray:
    """Returns what bin i of the convolution's output reads by each tap: (n, P) -> (n, P, t).

    Tap t of bin i reads bin i + t - 1. A cell has t entries; those of cell 0 are 0, and stand for
    bins that do not exist, or that lie outside the window.
    """
    bins, around = cells.shape[1], taps // 2
    taken = np.pad(np.where(exists, cells, 0), ((0, 0), (around, around)))
    taken = np.stack([taken[:, tap : tap + bins] for tap in range(taps)], axis=-1)
    return np.where(taken > 0, taken * taps + np.arange(taps), 0)


def _different(taken: NDArray) -> tuple[NDArray, NDArray]:
    """Finds the bins that read different cells.

    Args:
        taken: what each of P bins reads, (n, P, t).

    Returns:
        (D,) those bins, and as a (D, P) matrix which bins read what each of them does.
    """
    keys = [taken[:, i].tobytes() for i in range(taken.shape[1])]
    different = list(dict.fromkeys(keys))
    kept = [keys.index(key) for key in different]
    return np.array(kept), np.array([[key == other for other in keys] for key in different])


class _Shape(NamedTuple):
    """How the windows of one shape are read.

    A table has t rows for each line of its maps, after a line of zeros. The second table has a
    block for each row of windows: first a row of zeros, then one for each extent along x and bin
    along y. Its rows are seen as entries of O channels, t for each cell.
    """

    index: int  # of the shape in the grid
    rows: list[Tensor]  # of (ny, 1 + k * Dy, t) rows of the table, those to read at a time
    columns: Tensor  # (nx, Dx, t) entries of a block, of the first bin along y
    height: int  # Dy


class _Reading(NamedTuple):
    """What it takes, besides a table, to read the windows of a shape."""

    step: int  # rows of windows at a time
    entries: Tensor  # (step, nx, Dy * Dx, t) of the second table
    offsets: Tensor  # multiples of t, as many as there are sums at a time


class _Part(NamedTuple):
    """The lines of a shared map that are made for a band."""

    first: int  # of the table's lines
    some: Tensor | None  # which of the band's these are, where windows do not read all of them


class _Bands(NamedTuple):
    """How maps that shapes share are made: a few lines of all of them at a time.

    Bands are in one of two halves of the table in turns, so that it has the lines of the last two.
    """

    maps: list[Pair]
    parts: list[tuple[range, list[_Part]]]  # for each band its lines, and what of each map
    size: int  # lines of the table
    shapes: list[_Shape]  # with the rows of windows that end in each band


class MaxPooledWindows:
    """Reads the features of all windows of a grid from maps of one size.

    Where the windows of a shape are many, their bins are read from maps that the shapes share.
    Where they are few (large windows, far apart), a whole map costs more than the bins: then the
    different bins of all windows make up a small map of their own.
    """

    # A window's features are (P, P, O), rows first, or (Dy, Dx, O); windows come row by row.
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
        self._device, self._dtype = device, dtype
        exact = kernel_dtype(dtype)
        shapes = {
            i: tuple(Bins(axis, bins, exact, device) for axis in axes)
            for i, axes in enumerate(window_axes(grid, map_size))
        }
        # Cells beyond the border that a bin may cover.
        self._margins = [max(int(s[i].extents[-1]) for s in shapes.values()) - 1 for i in (0, 1)]
        # Of shapes some of whose bins read the same cells in every window, as where the bins are
        # more than the cells: matrices (Dy, P) and (Dx, P) of ones and zeros. Their features are
        # of D bins, each of which stands for the bins of its row.
        self.equal_bins: dict[int, tuple[Tensor, Tensor]] = {}
        shared = _worth_sharing(shapes, map_size)
        self._bands = {True: self._in_bands(shared, map_size[0])}
        if device.type == "cpu":
            self._bands[False] = self._in_bands(shared, _BAND)
        apart = [i for i in shapes if i not in shared]
        # By reach, so that maxima over the least of the shapes to come serve them all.
        apart.sort(key=lambda i: [some.reach for some in shapes[i]])
        self._apart = [(self._with_own_map(i, *shapes[i]), *shapes[i]) for i in apart]

    def _in_bands(self, axes: dict[int, tuple[Bins, Bins]], least: int) -> _Bands:
        """Returns bands of `least` lines, or of as many as the tallest windows need."""
        height, width = self._size
        needed: dict[Pair, NDArray] = {}
        for some in axes.values():
            for pair, lines in _lines_read(*some, height).items():
                needed[pair] = needed.get(pair, False) | lines
        maps = sorted(needed)
        spans = [int(np.ptp(rows.cells, axis=1).max()) for rows, _ in axes.values()]
        band = max([least, *spans])
        bands = [range(top, min(top + band, height)) for top in range(0, height, band)]
        parts, places, size = self._parts(np.array([needed[pair] for pair in maps]), bands)
        shapes = []
        for i, (rows, columns) in axes.items():
            cells = np.minimum(rows.cells, height - 1)
            lines = [
                places[[maps.index((kh, kw)) for kh in rows.covered], cells]
                for kw in columns.extents
            ]
            of_extent = np.searchsorted(columns.extents, columns.covered)
            shape = self._shape(i, (rows, columns), lines, of_extent, columns.cells, width)
            # At the border the last bin on the map can be above that of the row of windows before.
            last = np.maximum.accumulate(np.where(rows.exists, rows.cells, 0).max(axis=1))
            ends = np.searchsorted(last, [lines.stop for lines in bands])
            split = [shape.rows[0][first:end] for first, end in pairwise([0, *ends])]
            shapes.append(shape._replace(rows=split))
        return _Bands(maps, list(zip(bands, parts, strict=True)), size, shapes)

    def _parts(self, needed: NDArray, bands: list[range]) -> tuple[list[list[_Part]], NDArray, int]:
        """Lays out the table of shared maps.

        Args:
            needed: which lines of the maps are read, (maps, H).

        Returns:
            for each band its parts; for each line of the maps that of the table, (maps, H); and
            how many lines the table has.
        """
        some = [[np.flatnonzero(of_map[lines]) for of_map in needed] for lines in bands]
        room = [max(map(len, of_map)) for of_map in zip(*some, strict=True)]
        half = sum(room)
        places = np.zeros_like(needed, dtype=int)
        parts: list[list[_Part]] = []
        for i, (lines, of_band) in enumerate(zip(bands, some, strict=True)):
            starts = 1 + i % 2 * half + np.cumsum([0, *room])[:-1]
            parts.append([])
            for of_map, first, chosen in zip(places, starts, of_band, strict=True):
                of_map[lines.start + chosen] = first + np.arange(len(chosen))
                all_lines = len(chosen) == len(lines)
                index = None if all_lines else torch.tensor(chosen, device=self._device)
                parts[-1].append(_Part(int(first), index))
        return parts, places, 1 + min(2, len(bands)) * half

    def _with_own_map(self, index: int, rows: Bins, columns: Bins) -> _Shape:
        one = np.zeros_like(columns.covered)
        lines = [1 + rows.lines]
        return self._shape(index, (rows, columns), lines, one, columns.lines, columns.size)

    def _shape(
        self,
        index: int,
        bins: tuple[Bins, Bins],
        lines: list[NDArray],
        of_extent: NDArray,
        cells: NDArray,
        width: int,
    ) -> _Shape:
        """
        Args:
            index: of the shape in the grid.
            bins: along y and x.
            lines: of the table, k times (ny, P): those to read for each extent along x.
            of_extent: which of these each bin along x reads, (P,).
            cells: of these lines, (nx, P).
            width: cells of a line.
        """
        rows, columns = bins
        lines = [_with_taps(some, rows.exists, self._taps) for some in lines]
        kept_y, equal_y = _different(np.concatenate(lines))
        lines = [np.zeros_like(lines[0][:, :1]), *(some[:, kept_y] for some in lines)]
        entries = (1 + of_extent * len(kept_y)) * width + cells
        entries = _with_taps(entries, columns.exists, self._taps)
        kept_x, equal_x = _different(entries)
        if len(kept_y) * len(kept_x) < cells.shape[1] ** 2:
            self.equal_bins[index] = tuple(
                torch.tensor(equal, dtype=self._dtype, device=self._device)
                for equal in (equal_y, equal_x)
            )
        lines, entries = (
            torch.tensor(np.ascontiguousarray(some), dtype=torch.int32, device=self._device)
            for some in (np.concatenate(lines, axis=1), entries[:, kept_x])
        )
        return _Shape(index, [lines], entries, len(kept_y))

    @staticmethod
    def taps(weight: Tensor) -> Tensor:
        """(O, C, t, t) -> (C, t * t * O), the 1x1 products as the maps hold them."""
        return weight.permute(1, 2, 3, 0).flatten(1)

    def read(self, image: Tensor, taps: Tensor | None, values: int) -> Iterator[tuple[int, Tensor]]:
        """Yields the features of some rows of windows at a time, of one shape each.

        Args:
            image: (C, H, W).
            taps: of `taps`; None where no convolution follows.
            values: of a window that the caller works on, besides its features.

        Yields:
            the index of a shape in the grid, and the features of the next of its rows,
            (rows, nx, F).
        """
        height, width = self._size
        below, right = self._margins
        cells = image.new_empty(height + below, width + right, image.shape[0])
        cells[:height, :width] = image.permute(1, 2, 0)
        # Cells beyond the border lose every maximum.
        cells[height:] = cells[:, width:] = -torch.inf

        yield from self._read_shared_maps(cells, taps, values)
        reach = (1, 1)
        for i, (shape, rows, columns) in enumerate(self._apart):
            least = rows.reach, min(to_come.reach for _, _, to_come in self._apart[i:])
            for dim in (0, 1):
                _extend_reach(cells, least[dim], dim, reach[dim])
            reach = least
            table = self._own_map(cells, rows, columns, reach[1], taps)
            yield from self._windows(table, shape, 0, self._reading(shape, table, values))
            del table  # before the next is made

    def _read_shared_maps(
        self, cells: Tensor, taps: Tensor | None, values: int
    ) -> Iterator[tuple[int, Tensor]]:
        """Yields as `read` does."""
        height, width = self._size
        bands = self._bands[few_steps(cells.device)]
        table = self._table(cells, bands.size, width, taps)
        readings: dict[int, _Reading] = {}
        for i, (lines, parts) in enumerate(bands.parts):
            band = _map_maxima(cells[lines.start :], len(lines), width, bands.maps)
            for (first, some), maxima in zip(parts, band, strict=True):
                if some is not None:
                    maxima = maxima.index_select(0, some)
                table[first : first + len(maxima)] = self._project(maxima, taps)[:, :, :width]
            for shape in bands.shapes:
                # As a band of a CPU reads with what the one before did.
                reading = readings.pop(shape.index, None) or self._reading(shape, table, values)
                yield from self._windows(table, shape, i, reading)
                if lines.stop < height:
                    readings[shape.index] = reading

    def _own_map(
        self, cells: Tensor, rows: Bins, columns: Bins, reach: int, taps: Tensor | None
    ) -> Tensor:
        """Returns the table of bins, from maxima over their reach along y, and `reach` along x."""
        bin_maxima = gather_bins if few_steps(cells.device) else pick_bins
        table = self._table(cells, 1 + rows.size, columns.size, taps)
        for lines in _strips(rows.size, cells[0].numel(), cells.device):
            strip = bin_maxima(cells, rows, 0, lines)
            strip = bin_maxima(sliding_max(strip, columns.reach, 1, reach), columns, 1)
            table[1 + lines.start : 1 + lines.stop] = self._project(strip, taps)
        return table

    def _table(self, cells: Tensor, lines: int, width: int, taps: Tensor | None) -> Tensor:
        """Returns a table (lines, t, width, t * O) to fill, but for its line of zeros."""
        channels = cells.shape[2] if taps is None else taps.shape[1] // self._taps
        table = cells.new_empty(lines, self._taps, width, channels)
        table[0] = 0
        return table

    def _project(self, cells: Tensor, taps: Tensor | None) -> Tensor:
        """(H, W, C) -> (H, t, W, t * O)."""
        if taps is None:
            return cells[:, None]
        return (cells @ taps).unflatten(2, (self._taps, -1)).transpose(1, 2)

    def _reading(self, shape: _Shape, table: Tensor, values: int) -> _Reading:
        """Returns what holds for all rows of windows of a shape."""
        lines, row = shape.rows[0].shape[1], table[0, 0].numel()
        channels = table.shape[-1] // self._taps
        nx, bins = shape.columns.shape[0], shape.height * shape.columns.shape[1]
        in_row = lines * row + nx * (bins * (self._taps + channels) + values)
        step = min(rows_at_a_time(table.device, in_row), max(map(len, shape.rows)))

        def multiples(count: int, of: int) -> Tensor:
            return torch.arange(count, dtype=torch.int32, device=table.device) * of

        first = shape.columns[:, None]
        below = multiples(shape.height, row // channels)[:, None, None]
        entries = (first + below * (first > 0)).flatten(1, 2)
        blocks = multiples(step, lines * row // channels)[:, None, None, None]
        return _Reading(step, entries + blocks, multiples(step * max(lines, nx * bins), self._taps))

    def _windows(
        self, table: Tensor, shape: _Shape, part: int, reading: _Reading
    ) -> Iterator[tuple[int, Tensor]]:
        """Yields as `read` does."""
        channels = table.shape[-1] // self._taps
        table = table.flatten(0, 1).flatten(1)
        for rows in shape.rows[part].split(reading.step):
            if not len(rows):
                continue
            second = _sums(table, rows.flatten(0, 1), reading.offsets).view(-1, channels)
            entries = reading.entries[: len(rows)].reshape(-1, self._taps)
            features = _sums(second, entries, reading.offsets)
            yield shape.index, features.view(len(rows), len(shape.columns), -1)


def _pairs(rows: Bins, columns: Bins) -> list[Pair]:
    """Returns the extents of the maps that a shape reads."""
    return [(int(kh), int(kw)) for kh in rows.extents for kw in columns.extents]


def _lines_read(rows: Bins, columns: Bins, height: int) -> dict[Pair, NDArray]:
    """Returns of each map that a shape reads which of its lines these are, (H,)."""
    read = {}
    for kh, kw in _pairs(rows, columns):
        read[kh, kw] = np.zeros(height, bool)
        read[kh, kw][rows.cells[rows.exists & (rows.covered == kh)]] = True
    return read


def _worth_sharing(
    shapes: dict[int, tuple[Bins, Bins]], map_size: tuple[int, int]
) -> dict[int, tuple[Bins, Bins]]:
    """Returns the shapes for which their part in shared maps costs less than a map of their own.

    A map costs in proportion to its cells: one of its own as many as a shape has different bins,
    a line of a shared map in equal parts for the shapes that read it.
    """
    height, width = map_size
    shared = {i: _lines_read(*axes, height) for i, axes in shapes.items()}
    readers: dict[Pair, NDArray] = {}
    for read in shared.values():
        for pair, lines in read.items():
            readers[pair] = readers.get(pair, 0) + lines.astype(int)
    while shared:
        saved = {}
        for i, read in shared.items():
            part = sum((1 / readers[pair][lines]).sum() for pair, lines in read.items())
            rows, columns = shapes[i]
            saved[i] = part * width - rows.size * columns.size
        most = max(saved, key=saved.get)
        if saved[most] <= 0:
            break
        for pair, lines in shared.pop(most).items():
            readers[pair] -= lines
    return {i: shapes[i] for i in shared}


def _map_maxima(cells: Tensor, height: int, width: int, maps: list[Pair]) -> Iterator[Tensor]:
    """Yields the maxima of each map, (height, width or more, C)."""
    if not maps:
        return
    tallest, widest = (max(extents) for extents in zip(*maps, strict=True))
    cells = cells[: height + tallest - 1, : width + widest - 1]
    reach = 1
    for kh, group in groupby(maps, key=lambda pair: pair[0]):
        cells = sliding_max(cells, kh, 0, reach)
        reach = kh
        strip, reach_x = cells[:height], 1
        for _, kw in group:
            strip = sliding_max(strip, kw, 1, reach_x)
            reach_x = kw
            yield strip


def _extend_reach(x: Tensor, extent: int, dim: int, reach: int) -> None:
    """Makes maxima over `reach` cells along a dimension maxima over `extent`, in place.

    Those that start among the last extent - reach cells stay as they are.
    """
    if reach == extent:
        return
    for some in _strips(x.shape[1 - dim], x.numel() // x.shape[1 - dim], x.device):
        strip = x.narrow(1 - dim, some.start, some.stop - some.start)
        maxima = sliding_max(strip, extent, dim, reach)
        strip.narrow(dim, 0, maxima.shape[dim]).copy_(maxima)


def _strips(count: int, values: int, device: torch.device) -> Iterator[slice]:
    """Yields the lines to work on at once, of so many values each."""
    step = rows_at_a_time(device, values)
    for first in range(0, count, step):
        yield slice(first, min(first + step, count))
