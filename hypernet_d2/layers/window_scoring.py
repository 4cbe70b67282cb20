"""Objectness and box offsets of every window of a regular grid (HyperNet, sections 3.2 and 3.5).

`WindowScorer.forward_boxes` is the definition: pool each box, convolve, classify. `forward`
computes the same function for all windows of the grid, without pooling each of them.
`window_max_pool` and `window_align` compute the convolved features of a few rows of windows at a
time, and the fully connected layers follow at once, so that the features stay in cache.

Legend: N images, C channels, (H, W) map, R windows, P bins along an axis, O channels of the
convolution, t taps along an axis (3, or 1 where the convolution goes before pooling), (ny, nx)
positions of a window shape.
"""

import warnings
from collections import OrderedDict
from contextlib import nullcontext
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import roi_align, roi_pool

from .window_align import AlignedWindows
from .window_max_pool import MaxPooledWindows
from .window_steps import use_large_chunks
from .windows import WindowGrid, get_or_build, int_size

__all__ = ["WindowScorer"]

POOLER_TYPES = ("ROIPool", "ROIAlignV2")
Reader = MaxPooledWindows | AlignedWindows


class _Weights(NamedTuple):
    """The parameters in the form in which `forward` multiplies by them."""

    taps: Tensor | None  # the projection of the reader; None where the convolution goes first
    lower_bound: Tensor | None  # (P * P * O,), of the features; None without ReLU after them
    fc: Tensor  # (P * P * O, hidden), the features in the reader's order
    fc_bias: Tensor
    predictor: Tensor  # (hidden, 5), objectness and deltas
    predictor_bias: Tensor


class WindowScorer(nn.Module):
    """Pools windows to P x P, convolves them, and predicts objectness and box offsets.

    pool -> conv 3x3 (-> ReLU) -> fc -> ReLU -> {objectness, deltas} as in section 3.2, or
    conv 3x3 (-> ReLU) -> pool -> fc -> ReLU -> {objectness, deltas} as in HyperNet-SP, section 3.5.
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
        conv_relu: bool = True,
    ):
        """
        Args:
            in_channels: C.
            grid: the windows that `forward` scores.
            pooler_type: "ROIPool" (the paper) or "ROIAlignV2".
            pooler_resolution: P.
            sampling_ratio: RoIAlign's samples of a bin along an axis; 0 adapts to the window.
            conv_channels: O.
            fc_dim: width of the fully connected layer.
            conv_before_pooling: HyperNet-SP.
            conv_relu: whether a ReLU follows the convolution.

        Raises:
            ValueError: an unknown pooler, or a size below 1.
        """
        super().__init__()
        if pooler_type not in POOLER_TYPES:
            raise ValueError(f"pooler_type: expected one of {POOLER_TYPES}, got {pooler_type!r}")
        sizes = {
            "in_channels": in_channels,
            "pooler_resolution": pooler_resolution,
            "conv_channels": conv_channels,
            "fc_dim": fc_dim,
        }
        for name, size in sizes.items():
            if size < 1:
                raise ValueError(f"{name}: expected at least 1, got {size}")
        self.grid = grid
        self.pooler_type = pooler_type
        self.pooler_resolution = pooler_resolution
        self.sampling_ratio = sampling_ratio
        self.conv_before_pooling = conv_before_pooling
        self.conv_relu = conv_relu
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
        self._readers: OrderedDict[tuple, Reader] = OrderedDict()

    def forward_boxes(self, x: Tensor, boxes: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Scores given boxes, with gradient: the definition of what `forward` computes.

        Args:
            x: (N, C, H, W).
            boxes: N tensors (Ri, 4), x1 y1 x2 y2 in pixels.

        Returns:
            logits (sum of Ri,) and deltas (sum of Ri, 4), image after image.
        """
        if self.conv_before_pooling:
            features = self._pool(self._activate(self.conv(x)), boxes)
        elif self.pooler_type == "ROIAlignV2":
            features = self._activate(self._convolve_and_pool(x, boxes))
        else:
            features = self._activate(self.conv(self._pool(x, boxes)))
        hidden = F.relu(self.fc(features.flatten(1)))
        return self.objectness(hidden).squeeze(1), self.deltas(hidden)

    def _activate(self, x: Tensor) -> Tensor:
        return F.relu(x) if self.conv_relu else x

    def _pool(self, x: Tensor, boxes: list[Tensor]) -> Tensor:
        """Returns the pooled boxes, (sum of Ri, channels of x, P, P)."""
        # Half precision is too coarse for the edges of bins, and not all kernels support it.
        full = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
        boxes = [b.to(full.dtype) for b in boxes]
        size, scale = self.pooler_resolution, 1 / self.grid.feature_stride
        if self.pooler_type == "ROIPool":
            return roi_pool(full, boxes, size, scale).to(x.dtype)
        return roi_align(full, boxes, size, scale, self.sampling_ratio, aligned=True).to(x.dtype)

    def _convolve_and_pool(self, x: Tensor, boxes: list[Tensor]) -> Tensor:
        """Returns conv(pool(x)), (sum of Ri, O, P, P), for a linear pooler.

        Projects the map to 9 * O channels, one group for each tap, and pools these instead of C
        channels. Then adds up the nine taps, shifted, with zero padding around the P x P bins.
        """
        # The weight is flipped because fold shifts in the opposite direction of a convolution.
        taps = self.conv.weight.flip(2, 3).permute(0, 2, 3, 1).flatten(0, 2)[:, :, None, None]
        pooled = self._pool(F.conv2d(x, taps), boxes).flatten(2)
        size = (self.pooler_resolution, self.pooler_resolution)
        return F.fold(pooled, size, 3, padding=1) + self.conv.bias[:, None, None]

    @torch.no_grad()
    def forward(self, x: Tensor, map_size: tuple[int, int] | None = None) -> tuple[Tensor, Tensor]:
        """Scores all windows of the grid, without gradient.

        A traced or exported scorer works for the map size and the batch size of its example input.
        `torch.export` with strict=True needs a call with a map of that size before it. An exported
        scorer that is called with `map_size` also works for smaller maps of dynamic size.

        Args:
            x: (N, C, H, W).
            map_size: size (H', W') in cells of the grid, if it is larger than x. The scores of
                windows inside x (see `WindowGrid.inside`) do not depend on it; those of the other
                windows are undefined.

        Returns:
            logits (N, R) and deltas (N, R, 4), in the order of `self.grid.boxes((H, W))`, or of
            `self.grid.boxes(map_size)`.
        """
        if not torch.jit.is_tracing():
            return self._forward(x, map_size)
        with warnings.catch_warnings():
            # Sizes become constants on purpose; the traced scorer refuses maps of another size.
            warnings.simplefilter("ignore", torch.jit.TracerWarning)
            return self._forward(x, map_size)

    def _forward(self, x: Tensor, map_size: tuple[int, int] | None) -> tuple[Tensor, Tensor]:
        device = x.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
        with torch.autocast(device, enabled=False):
            x, input_size = x.to(dtype), None
            if map_size is None:
                map_size = int_size(x.shape[2:])
                reader = self._reader(map_size, x.device, dtype)
                x = x.expand(-1, -1, *map_size)  # makes a traced graph refuse another map size
            else:
                input_size = tuple(x.shape[2:])
                reader = self._build_reader(map_size, x.device, dtype, input_size)
            weights = self._weights(reader, dtype)
            if self.conv_before_pooling:
                bias = self.conv.bias.to(dtype)
                x = self._activate(F.conv2d(x, self.conv.weight.to(dtype), bias, padding=1))
            if input_size is not None:
                below, right = (a - b for a, b in zip(map_size, input_size, strict=True))
                value = -torch.inf if self.pooler_type == "ROIPool" else 0.0
                x = F.pad(x, (0, right, 0, below), value=value)
            # Inference mode makes many small operations faster.
            with nullcontext() if use_large_chunks(x.device) else torch.inference_mode():
                scores = [self._score_image(image, reader, weights) for image in x]
            scores = torch.stack(scores)
        return scores[:, :, 0], scores[:, :, 1:]

    def _reader(
        self, map_size: tuple[int, int], device: torch.device, dtype: torch.dtype
    ) -> Reader:
        # The reader is a constant of the graph. Tracing its NumPy code takes long.
        build = torch.compiler.disable(self._build_reader)
        key = (map_size, device, dtype)
        return get_or_build(self._readers, key, lambda: build(*key))

    def _build_reader(
        self,
        map_size: tuple[int, int],
        device: torch.device,
        dtype: torch.dtype,
        input_size: tuple[int, int] | None = None,
    ) -> Reader:
        taps = 1 if self.conv_before_pooling else 3
        sizes = (self.grid, map_size, self.pooler_resolution, taps)
        if self.pooler_type == "ROIPool":
            return MaxPooledWindows(*sizes, device, dtype, masked=input_size is not None)
        return AlignedWindows(*sizes, self.sampling_ratio, device, dtype, input_size)

    def _weights(self, reader: Reader, dtype: torch.dtype) -> _Weights:
        bins, channels = self.pooler_resolution, self.conv.out_channels
        order = [("channel", "y", "x").index(dim) for dim in reader.feature_order]
        fc = self.fc.weight.view(-1, channels, bins, bins).permute(*(1 + i for i in order), 0)
        fc, fc_bias, taps, lower_bound = fc.flatten(0, 2), self.fc.bias, None, None
        if not self.conv_before_pooling:
            taps = reader.taps(self.conv.weight).to(dtype)
            conv_bias = self.conv.bias[:, None, None].expand(-1, bins, bins)
            conv_bias = conv_bias.permute(order).flatten()
            # ReLU(x + b) = max(x, -b) + b, and the fc layer's bias takes the last term.
            fc_bias = fc_bias + conv_bias @ fc
            if self.conv_relu:
                lower_bound = -conv_bias.to(dtype)
        siblings = (self.objectness, self.deltas)
        return _Weights(
            taps=taps,
            lower_bound=lower_bound,
            fc=fc.to(dtype).contiguous(),
            fc_bias=fc_bias.to(dtype),
            predictor=torch.cat([layer.weight for layer in siblings]).to(dtype).t(),
            predictor_bias=torch.cat([layer.bias for layer in siblings]).to(dtype),
        )

    def _score_image(self, image: Tensor, reader: Reader, weights: _Weights) -> Tensor:
        """(C, H, W) -> (R, 5), objectness and deltas."""
        scores: list[list[Tensor]] = [[] for _ in range(self.grid.num_shapes)]
        for shape, features in reader.read(image, weights.taps, self.fc.out_features):
            size, features = features.shape[:2], features.flatten(0, 1)
            if weights.lower_bound is not None:
                features.clamp_min_(weights.lower_bound)
            hidden = torch.addmm(weights.fc_bias, features, weights.fc).relu_()
            score = torch.addmm(weights.predictor_bias, hidden, weights.predictor).view(*size, 5)
            scores[shape].append(score.transpose(0, 1) if reader.by_column else score)
        return torch.cat([rows.flatten(0, 1) for chunks in scores for rows in chunks])
