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
from .window_pooling import range_max, sliding_max, span_max

__all__ = ["Maps", "projected_maps", "values_per_step"]

Maps = dict[tuple[int, int], Tensor]  # {(kh, kw): (H', t, O, W', t)}


def values_per_step(device: torch.device) -> int:
    """How many values to work on at once: so many stay in a CPU's cache, or keep a GPU busy."""
    return 1 << 25 if _few_steps(device) else 1 << 19


def _few_steps(device: torch.device) -> bool:
    """Whether steps are to be few and large: on a GPU, and where each becomes nodes of a graph."""
    return device.type != "cpu" or torch.compiler.is_compiling()


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
    cells = _with_margin(image, plans)
    sharing = [plan for plan in plans if plan.pairs]
    last_use = {pair: plan.index for plan in sharing for pair in plan.pairs}
    shared: Maps = {}
    for plan in plans:
        if not plan.pairs:
            yield plan, {(1, 1): _bins_side_by_side(cells, plan, taps)}
            continue
        for pair in plan.pairs:
            if pair not in shared:
                shared[pair] = _projected_maximum(cells, pair, image.shape[1:], sharing, taps)
        yield plan, shared
        shared = {pair: m for pair, m in shared.items() if last_use[pair] != plan.index}


def _with_margin(image: Tensor, plans: list[ShapePlan]) -> Tensor:
    """(C, H, W) -> (H', W', C), with cells beyond the border that lose every maximum."""
    below = max(plan.rows.most for plan in plans) - 1
    right = max(plan.columns.most for plan in plans) - 1
    cells = F.pad(image, (0, right, 0, below), value=-torch.inf)
    return cells.permute(1, 2, 0).contiguous()


def _projected_maximum(
    cells: Tensor,
    pair: tuple[int, int],
    size: tuple[int, int],
    sharing: list[ShapePlan],
    taps: Tensor | None,
) -> Tensor:
    """Returns the map after a maximum over kh x kw cells, projected: (H', t, O, W', t).

    Its margins, for windows that overhang the map of `size` (H, W), are 0.
    """
    (kh, kw), (height, width) = pair, size
    above = max(plan.rows.before for plan in sharing)
    left = max(plan.columns.before for plan in sharing)
    length_y = max([height + above, *(plan.rows.length for plan in sharing)])
    length_x = max([width + left, *(plan.columns.length for plan in sharing)])
    projected = None
    step = max(1, values_per_step(cells.device) // cells[0].numel())
    for first in range(0, height, step):
        last = min(first + step, height)
        strip = sliding_max(sliding_max(cells[first : last + kh - 1], kh, 0), kw, 1)
        strip = _project(strip[:, :width], taps)
        if projected is None:
            _, t, channels, _, _ = strip.shape
            projected = cells.new_zeros(length_y, t, channels, length_x, t)
        projected[above + first : above + last, :, :, left : left + width] = strip
    return projected


def _bins_side_by_side(cells: Tensor, plan: ShapePlan, taps: Tensor | None) -> Tensor:
    """Returns the pooled bins of all windows of a shape, projected: (ny * P, t, O, nx * P, t)."""
    rows, columns = plan.rows.bins, plan.columns.bins
    # The first in few steps, the other in few passes over the map.
    row_maxima = range_max if _few_steps(cells.device) else span_max
    step = max(1, values_per_step(cells.device) // cells[0].numel())
    strips = []
    for first in range(0, len(rows.spans), step):
        strip = row_maxima(cells, rows.part(first, step), 0)
        strips.append(_project(range_max(strip, columns, 1), taps))
    return torch.cat(strips).contiguous()


def _project(cells: Tensor, taps: Tensor | None) -> Tensor:
    """(H, W, C) -> (H, t, O, W, t)."""
    height, width, channels = cells.shape
    if taps is None:
        return cells.view(height, width, 1, channels, 1).permute(0, 2, 3, 1, 4)
    products = cells.reshape(-1, channels) @ taps
    return products.view(height, width, 3, -1, 3).permute(0, 2, 3, 1, 4)
