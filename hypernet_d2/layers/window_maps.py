"""The maps that the dense scoring of windows reads.

Legend: C channels, (H, W) map, (H', W') map with its margins, O channels of the convolution,
t taps of the convolution along an axis (3, or 1 where none follows pooling), P bins, (ny, nx)
positions of a window shape.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from .window_plan import ShapePlan
from .window_pooling import range_max, sliding_max

__all__ = ["Maps", "projected_maps", "values_per_step"]

Maps = dict[tuple[int, int], Tensor]  # {(kh, kw): (H', t, O, W', t)}


def values_per_step(device: torch.device) -> int:
    """How many values to work on at once: so many stay in a CPU's cache, or keep a GPU busy."""
    return 1 << 19 if device.type == "cpu" else 1 << 25


def projected_maps(
    image: Tensor, plans: list[ShapePlan], taps: Tensor | None
) -> Iterator[tuple[ShapePlan, Maps]]:
    """Yields each plan with the maps that it reads.

    A shared map is made for the first shape that reads it and dropped after the last.

    Args:
        image: (C, H, W).
        plans: in the order in which they are to come.
        taps: (C, t * O * t), the 1x1 products of the convolution that follows pooling; None where
            none follows.
    """
    height, width = image.shape[1:]
    cells = _with_margin(image, plans)
    margins = _margins(plans, height, width)
    last_use = {pair: plan.index for plan in plans for pair in plan.pairs}
    shared: Maps = {}
    maxima: dict[int, Tensor] = {}
    for plan in plans:
        if plan.rows.bins is not None:
            reach = plan.rows.bins.reach
            if reach not in maxima:
                maxima = {reach: sliding_max(cells, reach, 0)}
            yield plan, {(1, 1): _bins_side_by_side(maxima[reach], plan, taps)}
            continue
        for pair in plan.pairs:
            if pair not in shared:
                maximum = _projected_maximum(cells, pair, height, width, taps)
                shared[pair] = F.pad(maximum, margins).contiguous()
        yield plan, shared
        shared = {pair: m for pair, m in shared.items() if last_use[pair] != plan.index}


def _with_margin(image: Tensor, plans: list[ShapePlan]) -> Tensor:
    """(C, H, W) -> (H', W', C), with cells beyond the border that lose every maximum."""
    below = max(plan.rows.most for plan in plans) - 1
    right = max(plan.columns.most for plan in plans) - 1
    cells = F.pad(image, (0, right, 0, below), value=-torch.inf)
    return cells.permute(1, 2, 0).contiguous()


def _margins(plans: list[ShapePlan], height: int, width: int) -> tuple[int, ...]:
    """Returns the zeros that `F.pad` adds to (H, t, O, W, t) for windows that overhang the map."""
    sharing = [plan for plan in plans if plan.pairs]
    above = max((plan.rows.before for plan in sharing), default=0)
    left = max((plan.columns.before for plan in sharing), default=0)
    below = max([0, *(plan.rows.length - above - height for plan in sharing)])
    right = max([0, *(plan.columns.length - left - width for plan in sharing)])
    return (0, 0, left, right, 0, 0, 0, 0, above, below)


def _projected_maximum(
    cells: Tensor, pair: tuple[int, int], height: int, width: int, taps: Tensor | None
) -> Tensor:
    """Returns the map after a maximum over kh x kw cells, projected: (H, t, O, W, t)."""
    kh, kw = pair
    step = max(1, values_per_step(cells.device) // cells[0].numel())
    strips = []
    for first in range(0, height, step):
        strip = cells[first : min(first + step, height) + kh - 1]
        strip = sliding_max(sliding_max(strip, kh, 0), kw, 1)[:, :width]
        strips.append(_project(strip, taps))
    return torch.cat(strips)


def _bins_side_by_side(maxima: Tensor, plan: ShapePlan, taps: Tensor | None) -> Tensor:
    """Returns the pooled bins of all windows of a shape, projected: (ny * P, t, O, nx * P, t).

    Args:
        maxima: (H', W', C), over the reach of the rows' ranges.
    """
    rows, columns = plan.rows.bins, plan.columns.bins
    step = max(1, values_per_step(maxima.device) // maxima[0].numel())
    strips = []
    for first in range(0, len(rows.first), step):
        strip = range_max(maxima, rows.part(first, step), 0)
        strip = range_max(sliding_max(strip, columns.reach, 1), columns, 1)
        strips.append(_project(strip, taps))
    return torch.cat(strips).contiguous()


def _project(cells: Tensor, taps: Tensor | None) -> Tensor:
    """(H, W, C) -> (H, t, O, W, t)."""
    height, width, channels = cells.shape
    if taps is None:
        return cells.view(height, width, 1, channels, 1).permute(0, 2, 3, 1, 4)
    products = cells.reshape(-1, channels) @ taps
    return products.view(height, width, 3, -1, 3).permute(0, 2, 3, 1, 4)
