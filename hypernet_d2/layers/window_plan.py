"""What the dense scoring of windows needs to know of each window shape, for one size of map.

Legend: n positions of a shape along an axis, P bins, K cells, t taps of the convolution along an
axis (3, or 1 where no convolution follows pooling).
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .window_pooling import Ranges, align_weights, max_pool_bins, max_pool_weights, with_taps
from .windows import WindowGrid

__all__ = ["AxisPlan", "ShapePlan", "plan_roi_align", "plan_roi_pool"]


@dataclass(frozen=True)
class AxisPlan:
    """Pooling, and the taps of the convolution, along one axis of one window shape."""

    count: int  # n
    stride: int  # cells of the map that is read
    cells: int  # K, of the map that is read
    weights: dict[int, Tensor]  # {extent of the sliding maximum: (n, P, K * t)}
    before: int = 0  # cells of it before the first window's own
    most: int = 1  # cells that a bin covers at most
    bins: Ranges | None = None  # of all windows (n * P,), where these are laid side by side

    @property
    def length(self) -> int:
        """The cells that the map which is read must have, padding included."""
        return (self.count - 1) * self.stride + self.cells

    def apply(self, convert: Callable[[Tensor], Tensor], device: torch.device) -> "AxisPlan":
        weights = {extent: convert(weight) for extent, weight in self.weights.items()}
        bins = self.bins
        if bins is not None:
            bins = Ranges(bins.first.to(device), bins.covered.to(device), bins.reach)
        return replace(self, weights=weights, bins=bins)


@dataclass(frozen=True)
class ShapePlan:
    """How the windows of one shape are read from the maps.

    Where the windows are many, all bins select from maps that the shapes share. Where they are few
    (large windows, far apart), a whole map costs more than the bins: then the pooled bins of all
    windows are laid side by side in a small map of their own, in which each window is P x P cells.
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
    grid: WindowGrid, map_size: tuple[int, int], bins: int, dtype: torch.dtype
) -> list[ShapePlan]:
    """Plans RoI max pooling; `dtype` is the one that `roi_pool` computes the bins in."""

    def axis(extent: int, stride: int, count: int, length: int, side_by_side: bool) -> AxisPlan:
        first, covered = max_pool_bins(extent, bins, dtype)
        cell = torch.arange(count)[:, None] * stride + first
        exists = cell < length
        most = int(covered.max())
        if not side_by_side:
            weights = max_pool_weights(first, covered, extent, exists)
            return AxisPlan(count, stride, extent, weights, most=most)
        weights = torch.eye(bins) * exists[:, :, None]
        ranges = Ranges.of(cell.clamp(max=length - 1).flatten(), covered.repeat(count))
        return AxisPlan(count, bins, bins, {1: weights}, most=most, bins=ranges)

    height, width = map_size
    plans = []
    for index, ((h, w), (stride_y, stride_x), (ny, nx)) in enumerate(
        zip(grid.shapes, grid.strides, grid.counts(map_size), strict=True)
    ):
        # A shape may need four maps, and shares them in part with other shapes.
        few = ny * nx * bins**2 <= 2 * height * width
        rows = axis(h, stride_y, ny, height, few)
        plans.append(ShapePlan(index, rows, axis(w, stride_x, nx, width, few)))
    # Neighbours share maps, so that few of these live at a time.
    return sorted(plans, key=lambda plan: (plan.pairs, plan.index))


def plan_roi_align(
    grid: WindowGrid,
    map_size: tuple[int, int],
    bins: int,
    sampling_ratio: int,
    dtype: torch.dtype,
) -> list[ShapePlan]:
    """Plans RoIAlign; `dtype` is the one that `roi_align` computes the samples in."""

    def axis(extent: int, stride: int, count: int, length: int) -> AxisPlan:
        first = torch.arange(count) * stride
        weights = align_weights(
            extent, first, length, bins, sampling_ratio, grid.feature_stride, dtype
        )
        return AxisPlan(count, stride, extent + 1, {1: weights}, before=1)

    return [
        ShapePlan(index, axis(h, stride_y, ny, map_size[0]), axis(w, stride_x, nx, map_size[1]))
        for index, ((h, w), (stride_y, stride_x), (ny, nx)) in enumerate(
            zip(grid.shapes, grid.strides, grid.counts(map_size), strict=True)
        )
    ]


def place(
    plans: list[ShapePlan], taps: int, device: torch.device, dtype: torch.dtype
) -> list[ShapePlan]:
    """Joins the convolution's taps to the weights, and moves these to a device and dtype."""

    def convert(weights: Tensor) -> Tensor:
        return (weights if taps == 1 else with_taps(weights)).to(device, dtype)

    return [
        ShapePlan(p.index, p.rows.apply(convert, device), p.columns.apply(convert, device))
        for p in plans
    ]
