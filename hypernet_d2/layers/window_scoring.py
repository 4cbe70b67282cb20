"""Objectness and box of every window (HyperNet, sections 3.2 and 3.5)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import roi_align, roi_pool

from .windows import WindowGrid

__all__ = ["WindowScorer"]

POOLER_TYPES = ("ROIPool", "ROIAlignV2")


class WindowScorer(nn.Module):
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
        for layer in (self.objectness, self.deltas):
            nn.init.normal_(layer.weight, std=0.01)
        for layer in (self.conv, self.fc, self.objectness, self.deltas):
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        boxes = self.grid.boxes(tuple(x.shape[-2:]), x.device)
        n = x.shape[0]
        outs = [self.forward_boxes(x, [c] * n) for c in boxes.split(2048)]
        logits = torch.cat([lo.view(n, -1) for lo, _ in outs], 1)
        deltas = torch.cat([d.view(n, -1, 4) for _, d in outs], 1)
        return logits, deltas

    def forward_boxes(self, x: Tensor, boxes: list[Tensor]) -> tuple[Tensor, Tensor]:
        if self.conv_before_pooling:
            f = self._pool(F.relu(self.conv(x)), boxes)
        else:
            f = F.relu(self.conv(self._pool(x, boxes)))
        f = F.relu(self.fc(f.flatten(1)))
        return self.objectness(f).squeeze(1), self.deltas(f)

    def _pool(self, x: Tensor, boxes: list[Tensor]) -> Tensor:
        scale = 1 / self.grid.feature_stride
        if self.pooler_type == "ROIPool":
            return roi_pool(x, boxes, self.pooler_resolution, scale)
        return roi_align(
            x, boxes, self.pooler_resolution, scale, self.sampling_ratio, aligned=True
        )
