"""What the dense scoring of windows needs to know of each window shape, for one size of map.

Legend: n positions of a shape along an axis, P bins, K cells, t taps of the convolution along an
axis (3, or 1 where no convolution follows pooling).
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import DTypeLike
from torch import Tensor

from .window_pooling import Array, Ranges, align_weights, max_pool_bins, max_pool_weights, with_taps
from .windows import WindowGrid

__all__ = ["AxisPlan", "ShapePlan", "plan_roi_align", "plan_roi_pool", "to_tensors"]


@dataclass(frozen=True)
class AxisPlan:
    """Pooling, and the taps of the convolution, along one axis of one window shape."""

    count: int  # n
    stride: int  # cells of the map that is read
    cells: int  # K, of the map that is read
    weights: dict[int, Array | Tensor]  # {extent of the sliding maximum: (n, P, K * t)}
    before: int = 0  # cells that are read before those of the window
    most: int = 1  # cells that a bin covers at most
    bins: Ranges | None = None  # of all windows (n * P,), where these are laid side by side

    @property
    def length(self) -> int:
        """The cells that the map which is read must have, its margins included."""
        return (self.count - 1) * self.stride + self.cells


@dataclass(frozen=True)
class ShapePlan:
    """How the windows of one shape are read from the maps.

    Where the windows are many, their bins select from maps that the shapes share. Where they are
    few (large windows, far apart), a whole map costs more than the bins: then the pooled bins of
    all windows are laid side by side in a small map of their own, where each window is P x P cells.
    """

    index: int  # of the shape in the grid
    rows: AxisPlan
    columns: AxisPlan

    @property
    def pairs(self) -> list[tuple[int, int]]:
        """The extents (kh, kw) of the shared maps that the shape reads."""
        if self.rows.bins is not None:
            return []
        return [(kh, kw) for kh in self.rows.weights for kw in self.columns.weights]


def plan_roi_pool(
    grid: WindowGrid, map_size: tuple[int, int], bins: int, dtype: DTypeLike
) -> list[ShapePlan]:
    """Plans RoI max pooling; `dtype` is what `roi_pool` computes the bins in."""
    height, width = map_size

    def side_by_side(ny: int, nx: int) -> bool:
        # A shape reads up to four shared maps, of which about half serve other shapes too.
        return ny * nx * bins**2 <= 2 * height * width

    def axis(extent: int, stride: int, count: int, length: int, apart: bool) -> AxisPlan:
        first, covered = max_pool_bins(extent, bins, dtype)
        most = int(covered.max())
        cells = np.arange(count)[:, None] * stride + first  # (n, P)
        exists = cells < length
        if not apart:
            weights = max_pool_weights(first, covered, extent, exists)
            return AxisPlan(count, stride, extent, weights, most=most)
        ranges = Ranges.of(cells.clip(max=length - 1).ravel(), np.tile(covered, count))
        weights = np.eye(bins) * exists[:, :, None]
        return AxisPlan(count, bins, bins, {1: weights}, most=most, bins=ranges)

    plans = []
    for index, ((h, w), (stride_y, stride_x), (ny, nx)) in enumerate(
        zip(grid.shapes, grid.strides, grid.counts(map_size), strict=True)
    ):
        apart = side_by_side(ny, nx)
        rows = axis(h, stride_y, ny, height, apart)
        plans.append(ShapePlan(index, rows, axis(w, stride_x, nx, width, apart)))
    # Neighbours share maps, so that few of these live at a time.
    return sorted(plans, key=lambda plan: (plan.pairs, plan.index))


def plan_roi_align(
    grid: WindowGrid,
    map_size: tuple[int, int],
    bins: int,
    sampling_ratio: int,
    dtype: DTypeLike,
) -> list[ShapePlan]:
    """Plans RoIAlign; `dtype` is what `roi_align` computes the samples in."""

    def axis(extent: int, stride: int, count: int, length: int) -> AxisPlan:
        first = np.arange(count) * stride
        weights = align_weights(
            extent, first, length, bins, sampling_ratio, grid.feature_stride, dtype
        )
        return AxisPlan(count, stride, extent + 1, {1: weights}, before=1)

    height, width = map_size
    return [
        ShapePlan(index, axis(h, stride_y, ny, height), axis(w, stride_x, nx, width))
        for index, ((h, w), (stride_y, stride_x), (ny, nx)) in enumerate(
            zip(grid.shapes, grid.strides, grid.counts(map_size), strict=True)
        )
    ]


def to_tensors(
    plans: list[ShapePlan], taps: int, device: torch.device, dtype: torch.dtype
) -> list[ShapePlan]:
    """Joins the convolution's taps to the weights, and makes tensors of all arrays."""

    def convert(axis: AxisPlan) -> AxisPlan:
        weights = {
            extent: torch.tensor(array if taps == 1 else with_taps(array)).to(device, dtype)
            for extent, array in axis.weights.items()
        }
        bins = axis.bins if axis.bins is None else axis.bins.to(device)
        return replace(axis, weights=weights, bins=bins)

    return [replace(plan, rows=convert(plan.rows), columns=convert(plan.columns)) for plan in plans]
