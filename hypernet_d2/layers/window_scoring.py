"""Objectness and box offsets of every window of a regular grid (HyperNet, sections 3.2 and 3.5).

Legend: N images, C channels, (H, W) map, R windows, P bins along an axis, O channels of the
convolution, t taps along an axis (3, or 1 where the convolution goes before pooling), n (ny, nx)
positions of a shape along an axis, K cells that a window may touch along an axis.
"""

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import roi_align, roi_pool

from .window_pooling import align_weights, max_pool_weights, sliding_max, with_taps
from .windows import WindowGrid, remember

__all__ = ["WindowScorer"]

POOLER_TYPES = ("ROIPool", "ROIAlignV2")

# Values that one step works on: small enough for a CPU's cache, large enough to fill a GPU.
_CPU_STEP = 1 << 20
_CUDA_STEP = 1 << 25


@dataclass(frozen=True)
class _ShapePlan:
    """How the windows of one shape are pooled and convolved on a map of one size.

    The keys of `rows` and `columns` are the extents of the sliding maximum that the weights select
    from; RoIAlign reads the map itself, which is the maximum over a single cell.
    """

    index: int  # in the grid
    stride: tuple[int, int]  # (y, x) in cells
    rows: dict[int, Tensor]  # {kh: (ny, P, Kh * t)}
    columns: dict[int, Tensor]  # {kw: (nx, Kw * t, P)}

    @property
    def pairs(self) -> list[tuple[int, int]]:
        return [(kh, kw) for kh in self.rows for kw in self.columns]


class WindowScorer(nn.Module):
    """Pools each window to P x P, convolves 3 x 3, and predicts objectness and box offsets.

    pool -> conv 3x3 -> ReLU -> fc -> ReLU -> {objectness, deltas}; in HyperNet-SP (section 3.5)
    conv 3x3 -> ReLU -> pool -> fc -> ReLU -> {objectness, deltas}.
    """
    def __init__(
        self,
        in_channels: int,
        grid: WindowGrid,
        *,
        pooler_type: str = "ROIPool",
        pooler_resolution: int = 13,
        sampling_ratio: int = 0,
        conv_channels: int = 4,
        fc_dim: int = 256,
        conv_before_pooling: bool = False,
    ):
        super().__init__()
        if pooler_type not in POOLER_TYPES:
            raise ValueError(f"pooler_type: expected one of {POOLER_TYPES}, got {pooler_type!r}")
        self.grid = grid
        self.pooler_type = pooler_type
        self.pooler_resolution = pooler_resolution
        self.sampling_ratio = sampling_ratio
        self.conv_before_pooling = conv_before_pooling
        self.conv = nn.Conv2d(in_channels, conv_channels, 3, padding=1)
        self.fc = nn.Linear(conv_channels * pooler_resolution**2, fc_dim)
        self.objectness = nn.Linear(fc_dim, 1)
        self.deltas = nn.Linear(fc_dim, 4)
        for layer in (self.conv, self.fc):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        for layer in (self.objectness, self.deltas):
            nn.init.normal_(layer.weight, std=0.01)
        for layer in (self.conv, self.fc, self.objectness, self.deltas):
            nn.init.zeros_(layer.bias)
        self._plans = OrderedDict()

    def forward_boxes(self, x: Tensor, boxes: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Scores given boxes, with gradient: the definition of what `forward` computes.

        Args:
            x: (N, C, H, W).
            boxes: N tensors (Ri, 4), x1 y1 x2 y2 in pixels.

        Returns:
            logits (sum of Ri,) and deltas (sum of Ri, 4), image after image.
        """
        if self.conv_before_pooling:
            pooled = self._pool(F.relu(self.conv(x)), boxes)
        elif self.pooler_type == "ROIAlignV2":
            pooled = F.relu(self._pool_projected(x, boxes))
        else:
            pooled = F.relu(self.conv(self._pool(x, boxes)))
        hidden = F.relu(self.fc(pooled.flatten(1)))
        return self.objectness(hidden).squeeze(1), self.deltas(hidden)

    def _pool(self, x: Tensor, boxes: list[Tensor]) -> Tensor:
        """Returns (sum of Ri, C, P, P). Half precision is pooled in float32, as torchvision does
        under autocast: the bins' edges need the digits."""
        dtype = x.dtype
        if dtype in (torch.float16, torch.bfloat16):
            x = x.float()
        boxes = [b.to(x.dtype) for b in boxes]
        scale = 1 / self.grid.feature_stride
        if self.pooler_type == "ROIPool":
            pooled = roi_pool(x, boxes, self.pooler_resolution, scale)
        else:
            pooled = roi_align(
                x, boxes, self.pooler_resolution, scale, self.sampling_ratio, aligned=True
            )
        return pooled.to(dtype)

    def _pool_projected(self, x: Tensor, boxes: list[Tensor]) -> Tensor:
        """Returns conv(pool(x)) (sum of Ri, O, P, P) for a linear pooler.

        The convolution's nine 1x1 products commute with the pooler, so its 9 * O channels are
        pooled instead of C; `fold` then sums the nine shifted copies, padded by zeros.
        """
        # fold moves a tap's values the other way than a convolution reads them.
        taps = self.conv.weight.flip(2, 3).permute(0, 2, 3, 1).flatten(0, 2)[..., None, None]
        pooled = self._pool(F.conv2d(x, taps), boxes)
        size = self.pooler_resolution
        return F.fold(pooled.flatten(2), (size, size), 3, padding=1) + self.conv.bias[:, None, None]

    @torch.no_grad()
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Scores all windows of the grid; for inference only, gradients are not recorded.

        Args:
            x: (N, C, H, W).

        Returns:
            logits (N, R) and deltas (N, R, 4), in the order of `self.grid.boxes((H, W))`.
        """
        device = x.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
        with torch.autocast(device, enabled=False):
            scores = torch.stack([self._score_image(image) for image in x.to(dtype)])
        return scores[..., 0], scores[..., 1:]

    def _score_image(self, image: Tensor) -> Tensor:
        """(C, H, W) -> (R, 5), objectness and deltas."""
        if self.conv_before_pooling:
            weight, bias = self.conv.weight.to(image.dtype), self.conv.bias.to(image.dtype)
            image = F.conv2d(image[None], weight, bias, padding=1).relu_()[0]
        plans = self._plan((image.shape[1], image.shape[2]), image.device, image.dtype)
        head = _Head(self, image.dtype)
        scores: dict[int, Tensor] = {}
        for plan, maps in self._maps(image, plans):
            scores[plan.index] = head.score(plan, maps)
        return torch.cat([scores[index] for index in sorted(scores)])

    def _maps(self, image: Tensor, plans: list[_ShapePlan]) -> Iterator:
        """Yields each shape's plan with {(kh, kw): (H', t, O, W', t)} of the pairs it selects from.

        A pair's map is made when the first shape needs it and dropped after the last.
        """
        last_use = {pair: plan.index for plan in plans for pair in plan.pairs}
        reach_y = max(max(plan.rows) for plan in plans) - 1
        reach_x = max(max(plan.columns) for plan in plans) - 1
        height, width = image.shape[1:]
        cells = F.pad(image, (0, reach_x, 0, reach_y), value=-torch.inf)
        cells = cells.permute(1, 2, 0).contiguous()
        before = int(self.pooler_type == "ROIAlignV2")
        size = self._padded_size(plans)
        size = (max(size[0], height + before), max(size[1], width + before))
        maps: dict[tuple[int, int], Tensor] = {}
        maxima: dict[int, Tensor] = {}
        for plan in plans:
            maxima = {kh: maxima[kh] for kh in plan.rows if kh in maxima}
            for kh, kw in plan.pairs:
                if (kh, kw) in maps:
                    continue
                if kh not in maxima:
                    maxima[kh] = sliding_max(cells, kh, 0, height)
                projected = self._project(sliding_max(maxima[kh], kw, 1, width))
                padding = (before, size[1] - width - before, before, size[0] - height - before)
                maps[kh, kw] = F.pad(projected, (0, 0, *padding[:2], 0, 0, 0, 0, *padding[2:]))
            yield plan, maps
            maps = {pair: m for pair, m in maps.items() if last_use[pair] != plan.index}

    def _project(self, cells: Tensor) -> Tensor:
        """(H, W, C) -> (H, t, O, W, t), the 1x1 products of the convolution's taps."""
        if self.conv_before_pooling:
            return cells.permute(0, 2, 1)[:, None, :, :, None]
        height, width, channels = cells.shape
        taps = self.conv.weight.to(cells.dtype).permute(1, 2, 0, 3).flatten(1)  # C, (t, O, t)
        products = cells.reshape(-1, channels) @ taps
        return products.view(height, width, 3, -1, 3).permute(0, 2, 3, 1, 4)

    def _padded_size(self, plans: list[_ShapePlan]) -> tuple[int, int]:
        taps = 1 if self.conv_before_pooling else 3
        height = width = 0
        for plan in plans:
            rows, columns = next(iter(plan.rows.values())), next(iter(plan.columns.values()))
            height = max(height, (len(rows) - 1) * plan.stride[0] + rows.shape[2] // taps)
            width = max(width, (len(columns) - 1) * plan.stride[1] + columns.shape[1] // taps)
        return height, width

    def _plan(self, map_size, device, dtype) -> list[_ShapePlan]:
        def build():
            return self._build_plan(map_size, device, dtype)
        return remember(self._plans, (map_size, device, dtype), build)

    def _build_plan(self, map_size, device, dtype) -> list[_ShapePlan]:
        plans = []
        exact = torch.float64 if dtype == torch.float64 else torch.float32
        taps = (lambda w: w) if self.conv_before_pooling else with_taps

        def axis(extent, stride, count, length):
            if self.pooler_type == "ROIPool":
                weights = max_pool_weights(
                    extent, stride, count, length, self.pooler_resolution, exact
                )
            else:
                weights = {1: align_weights(
                    extent, stride, count, length, self.pooler_resolution,
                    self.sampling_ratio, self.grid.feature_stride, exact)}
            return {k: taps(v).to(device, dtype) for k, v in weights.items()}

        grid = self.grid
        for index, ((h, w), (sy, sx), (ny, nx)) in enumerate(
            zip(grid.shapes, grid.strides, grid.counts(map_size), strict=True)
        ):
            columns = axis(w, sx, nx, map_size[1])
            plans.append(_ShapePlan(
                index, (sy, sx), axis(h, sy, ny, map_size[0]),
                {k: v.transpose(1, 2).contiguous() for k, v in columns.items()},
            ))
        return sorted(plans, key=lambda p: p.pairs)


class _Head:
    def __init__(self, scorer: WindowScorer, dtype: torch.dtype):
        bins, channels = scorer.pooler_resolution, scorer.conv.out_channels
        self.bins, self.channels = bins, channels
        fc = scorer.fc.weight.to(dtype).view(-1, channels, bins, bins)
        # (P, O, P) is the order in which the windows' features arise.
        self.fc_weight = fc.permute(2, 1, 3, 0).flatten(0, 2)
        self.fc_bias = scorer.fc.bias.to(dtype)
        layers = (scorer.objectness, scorer.deltas)
        self.weight = torch.cat([layer.weight for layer in layers]).to(dtype).t()
        self.bias = torch.cat([layer.bias for layer in layers]).to(dtype)
        self.conv_bias = None if scorer.conv_before_pooling else scorer.conv.bias.to(dtype)
        self.taps = 1 if scorer.conv_before_pooling else 3

    def score(self, plan, maps) -> Tensor:
        """Returns (ny * nx, 5)"""
        ny, nx = len(next(iter(plan.rows.values()))), len(next(iter(plan.columns.values())))
        some = next(iter(maps.values()))
        row_size = self.bins * some.shape[2:].numel() * len(plan.columns) + nx * (
            self.fc_weight.shape[0] + self.fc_weight.shape[1])
        step = max(1, (_CPU_STEP if some.device.type == "cpu" else _CUDA_STEP) // row_size)
        out = []
        for first in range(0, ny, step):
            count = min(step, ny - first)
            features = self.features(plan, maps, first, count)
            if self.conv_bias is not None:
                features.view(-1, self.bins, self.channels, self.bins).add_(
                    self.conv_bias[:, None]).relu_()
            hidden = torch.addmm(self.fc_bias, features, self.fc_weight).relu_()
            out.append(torch.addmm(self.bias, hidden, self.weight).view(nx, count, 5).transpose(0, 1))
        return torch.cat(out).reshape(-1, 5)

    def features(self, plan, maps, first, count):
        """(nx * count, P * O * P)"""
        out = None
        for kw, columns in plan.columns.items():
            rows = None
            for kh, weights in plan.rows.items():
                m = maps[kh, kw]
                flat = m.flatten(2).flatten(0, 1)  # H' * t, O*W'*t
                cells = flat[first * plan.stride[0] * self.taps:].unfold(
                    0, weights.shape[2], plan.stride[0] * self.taps)[:count].transpose(1, 2)
                part = torch.bmm(weights[first:first + count], cells)
                rows = part if rows is None else rows.add_(part)
            # (count, P, O * W' * t) ->
            flat = rows.view(count * self.bins * self.channels, -1)
            cells = flat.unfold(1, columns.shape[1], plan.stride[1] * self.taps)[:, :len(columns)]
            part = torch.bmm(cells.transpose(0, 1), columns)
            out = part if out is None else out.add_(part)
        return out.view(len(out) * count, -1)
