"""The hyper feature: maps of a trunk, resampled to one stride and concatenated (paper 3.1).

Shapes: ``N`` images, ``C`` channels, ``H`` x ``W`` cells of the hyper feature.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NORMS = ("LRN", "BN", "GN", "none")
UPSAMPLINGS = ("deconv", "bilinear")


class LocalResponseNorm(nn.LocalResponseNorm):
    """Local response normalization, in float32 also under autocast."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return super().forward(x.float())


def build_norm(name: str, channels: int) -> nn.Module:
    """Builds the normalization of one branch: "LRN" (the paper), "BN", "GN" or "none".

    LRN has AlexNet's constants (5 channels, alpha 1e-4, beta 0.75, k 2), because the paper gives
    none. BN is batch normalization, for trunks that are trained from random weights. GN has at most
    6 groups, and fewer where 6 does not divide ``channels``. Its statistics include the padding of
    a batch, which therefore has a small effect on the images.

    Raises:
        ValueError: an unknown name.
    """
    if name == "LRN":
        return LocalResponseNorm(size=5, alpha=1e-4, beta=0.75, k=2.0)
    if name == "BN":
        return nn.BatchNorm2d(channels)
    if name == "GN":
        return nn.GroupNorm(math.gcd(channels, 6), channels)
    if name == "none":
        return nn.Identity()
    raise ValueError(f"FEATURE.NORM is {name!r}; expected one of {NORMS}")


def fit(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Crops ``x`` (N, C, h, w) at the bottom and right to ``size``, or pads it with its border."""
    missing = (size[0] - x.shape[-2], size[1] - x.shape[-1])
    if missing[0] > 0 or missing[1] > 0:
        x = F.pad(x, (0, max(missing[1], 0), 0, max(missing[0], 0)), mode="replicate")
    return x[..., : size[0], : size[1]]


class Resample(nn.Module):
    """Resamples a map to another stride: max pooling to a coarser one, upsampling to a finer one.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output of a deconvolution. Otherwise the number of channels
            does not change.
        stride, target: strides of input and output in pixels, one a multiple of the other.
        upsampling: "deconv" (paper 3.1; learned, kernel twice the factor) or "bilinear".
    """

    def __init__(
        self, in_channels: int, out_channels: int, stride: int, target: int, upsampling: str
    ):
        super().__init__()
        if max(stride, target) % min(stride, target):
            raise ValueError(
                f"a map of stride {stride} cannot be brought to stride {target}: "
                "one of the two must be a multiple of the other"
            )
        self.pool = target // stride if stride < target else 1
        self.scale = stride // target if stride > target else 1
        self.out_channels = in_channels
        self.deconv = None
        if self.scale > 1 and upsampling == "deconv":
            self.out_channels = out_channels
            self.deconv = nn.ConvTranspose2d(
                in_channels,
                out_channels,
                kernel_size=2 * self.scale,
                stride=self.scale,
                padding=self.scale // 2,
                output_padding=self.scale % 2,
            )
            nn.init.normal_(self.deconv.weight, std=math.sqrt(2 / (4 * in_channels)))
            nn.init.zeros_(self.deconv.bias)

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """Resamples (N, C, h, w) to (N, ``self.out_channels``, *size)."""
        if self.pool > 1:
            return fit(F.max_pool2d(x, self.pool, ceil_mode=True), size)
        if self.deconv is not None:
            return fit(self.deconv(x), size)
        if self.scale > 1:
            return F.interpolate(x, size=size, mode="bilinear", align_corners=False)
        return fit(x, size)


class HyperBranch(nn.Module):
    """The branch of one map: resampling, convolution, ReLU and normalization.

    LRN follows the ReLU, as in AlexNet; BN and GN precede it, as usual.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        stride: int,
        target: int,
        *,
        kernel_size: int,
        norm: str,
        upsampling: str,
        conv_first: bool,
    ):
        super().__init__()
        self.conv_first = conv_first and stride > target
        source = channels if self.conv_first else in_channels
        self.resample = Resample(source, channels, stride, target, upsampling)
        self.conv = nn.Conv2d(
            in_channels if self.conv_first else self.resample.out_channels,
            channels,
            kernel_size,
            padding=kernel_size // 2,
        )
        nn.init.kaiming_normal_(self.conv.weight, mode="fan_in", nonlinearity="relu")
        nn.init.zeros_(self.conv.bias)
        self.norm = build_norm(norm, channels)
        self.norm_first = norm in ("BN", "GN")

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """Computes the branch: (N, C, h, w) to (N, ``channels``, *size)."""
        if self.conv_first:
            return self.resample(self._activate(self.conv(x)), size)
        return self._activate(self.conv(self.resample(x, size)))

    def _activate(self, x: Tensor) -> Tensor:
        return F.relu(self.norm(x)) if self.norm_first else self.norm(F.relu(x))


class HyperFeature(nn.Module):
    """Aggregates maps of different strides into one (paper 3.1, figure 2).

    Each map is resampled to ``stride`` (max pooling down, deconvolution up), convolved
    (``kernel_size`` x ``kernel_size`` x ``channels``) and normalized. The results are concatenated
    in the order of ``in_channels``.

    Args:
        in_channels: {map name: channels}.
        in_strides: {map name: stride in pixels}, with the same names.
        stride: stride of the hyper feature in pixels; 4 in the paper.
        channels: channels of each branch; 42 in the paper.
        kernel_size: side of the branches' convolutions, odd; 5 in the paper.
        norm: "LRN" (paper), "BN", "GN" or "none".
        upsampling: "deconv" (paper) or "bilinear".
        conv_first: whether maps coarser than ``stride`` are convolved before upsampling. The paper
            upsamples first, and its convolution costs factor^2 as much.

    Raises:
        ValueError: no map, different names in ``in_channels`` and ``in_strides``, an even kernel,
            strides of which neither divides the other, or an unknown norm or upsampling.
    """

    def __init__(
        self,
        in_channels: Mapping[str, int],
        in_strides: Mapping[str, int],
        *,
        stride: int = 4,
        channels: int = 42,
        kernel_size: int = 5,
        norm: str = "LRN",
        upsampling: str = "deconv",
        conv_first: bool = False,
    ):
        super().__init__()
        if not in_channels or set(in_channels) != set(in_strides):
            raise ValueError(
                f"channels are given for maps {sorted(in_channels)} and strides for "
                f"{sorted(in_strides)}; expected the same names, at least one"
            )
        if kernel_size % 2 == 0:
            raise ValueError(f"FEATURE.KERNEL_SIZE is {kernel_size}; expected an odd number")
        if upsampling not in UPSAMPLINGS:
            raise ValueError(f"FEATURE.UPSAMPLING is {upsampling!r}; expected one of {UPSAMPLINGS}")
        self.in_strides = dict(in_strides)
        self.stride = stride
        self.out_channels = channels * len(in_channels)
        self.branches = nn.ModuleDict(
            {
                name: HyperBranch(
                    in_channels[name],
                    channels,
                    in_strides[name],
                    stride,
                    kernel_size=kernel_size,
                    norm=norm,
                    upsampling=upsampling,
                    conv_first=conv_first,
                )
                for name in in_channels
            }
        )

    def _reference_order(self, name: str) -> tuple[bool, int]:
        return self.in_strides[name] != self.stride, self.in_strides[name]

    def output_size(self, features: Mapping[str, Tensor]) -> tuple[int, int]:
        """Returns (H, W): the size of the map of stride ``stride``, or the finest map's, scaled."""
        name = min(self.in_strides, key=self._reference_order)
        h, w = features[name].shape[-2:]
        # Rounded up with integers, since torch.export has no symbolic ceil for dynamic sizes.
        stride = self.in_strides[name]
        return -(-h * stride // self.stride), -(-w * stride // self.stride)

    def forward(self, features: Mapping[str, Tensor]) -> Tensor:
        """Computes the hyper feature (N, branches * channels, H, W) of {name: (N, C, h, w)}."""
        size = self.output_size(features)
        return torch.cat(
            [branch(features[name], size) for name, branch in self.branches.items()], dim=1
        )
