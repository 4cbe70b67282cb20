"""Hypercolumns: all activations above a pixel (Hariharan et al., CVPR 2015).

Positions are continuous: the pixel in row i and column j has its centre at x = j + 0.5,
y = i + 0.5, and an image of H x W pixels spans [0, W] x [0, H].

Shapes: ``N`` images, ``C`` channels, ``P`` points, ``H`` x ``W`` pixels, ``h`` x ``w`` cells.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["hypercolumn_picture", "hypercolumns"]

_PICTURE_POINTS = 64  # along each side of the grid from which the components are found
_PICTURE_RANGE = (0.01, 0.99)  # quantiles of a component that become 0 and 255
_PICTURE_MARGIN = 0.08  # width of the margin by that side of the image
_PICTURE_MARGIN_BRIGHTNESS = 0.4


def hypercolumns(
    features: Mapping[str, Tensor], points: Tensor, image_size: tuple[int, int]
) -> Tensor:
    """The bilinearly interpolated activations of all maps above each point, concatenated.

    At a pixel's centre this is what ``F.interpolate(x, size=image_size, mode="bilinear",
    align_corners=False)`` of every map has at that pixel, without the maps being enlarged. Between
    pixels, and beyond the centres of the outermost cells, the same rule goes on: a position there
    has the border's value.

    Args:
        features: {name: (N, C, h, w)}, floating point.
        points: (N, P, 2), x and y in pixels; any real number, floating point.
        image_size: (H, W), what the maps cover, in pixels. For a batch of padded images this is the
            size of the padded tensor (``images.tensor.shape[-2:]``), not that of one image.

    Returns:
        (N, P, sum of C), channels in the order of ``features``, of the type of ``points``;
        differentiable in the maps and in the points.

    Raises:
        ValueError: if there is no map, the points have another shape, or a map has another number
            of images than the points.
    """
    _check(features)
    if points.dim() != 3 or points.shape[-1] != 2:
        raise ValueError(f"points has the shape {tuple(points.shape)}; expected (N, P, 2)")
    for name, x in features.items():
        if len(x) != len(points):
            raise ValueError(f"map {name!r} has {len(x)} images and points has {len(points)}")
    # From -1 at the image's left or top edge to 1 at its right or bottom edge.
    grid = 2 * points / points.new_tensor([image_size[1], image_size[0]]) - 1
    columns = [
        F.grid_sample(
            x.to(points.dtype), grid[:, :, None], padding_mode="border", align_corners=False
        )
        for x in features.values()
    ]
    return torch.cat(columns, dim=1).squeeze(3).transpose(1, 2)


@torch.no_grad()
def hypercolumn_picture(
    features: Mapping[str, Tensor],
    image_size: tuple[int, int],
    content_size: tuple[int, int] | None = None,
) -> Tensor:
    """The three principal components of an image's hypercolumns as red, green and blue.

    Pixels of like color have like hypercolumns. Every map is scaled to a total variance of one, so
    that all count alike. The components, and the range of each that becomes 0 to 255 (its 1st to
    99th percentile), are those of a regular grid of at most 64 x 64 points. The grid leaves out the
    image's margin, where the zero padding of the convolutions dominates the features; it is drawn
    darker. As the components are linear, they are computed on each map before it is enlarged.

    Args:
        features: {name: (1, C, h, w)}, the maps of one image.
        image_size: (H, W), what the maps cover, in pixels; as in :func:`hypercolumns`.
        content_size: (h, w), the top left part that is drawn, in pixels: the image without its
            padding. By default all.

    Returns:
        (h, w, 3), uint8, on the CPU.

    Raises:
        ValueError: if there is no map, or a map has another number of images than one.
    """
    _check(features)
    height, width = content_size or image_size
    maps = {name: _one_image(name, x) for name, x in features.items()}
    widths = [x.shape[1] for x in maps.values()]
    points = _points_within_margin((height, width))
    columns = hypercolumns(maps, points[None], image_size)[0]
    mean, basis = _principal_components(columns, widths)
    picture = -(mean @ basis)[:, None, None]
    for x, rows in zip(maps.values(), basis.split(widths), strict=True):
        component = F.conv2d(x, rows.T[:, :, None, None])
        enlarged = F.interpolate(component, size=image_size, mode="bilinear", align_corners=False)
        picture = picture + enlarged[0, :, :height, :width]
    low, high = torch.quantile((columns - mean) @ basis, columns.new_tensor(_PICTURE_RANGE), dim=0)[
        ..., None, None
    ]
    scaled = (picture - low) / (high - low).clamp(min=torch.finfo(picture.dtype).tiny)
    return (255 * scaled.clamp(0, 1) * _brightness(height, width)).round().byte().permute(1, 2, 0)


def _check(features: Mapping[str, Tensor]) -> None:
    if not features:
        raise ValueError("features is empty; expected {name: (N, C, h, w)} of one or more maps")


def _one_image(name: str, x: Tensor) -> Tensor:
    if x.dim() != 4 or len(x) != 1:
        raise ValueError(f"map {name!r} has the shape {tuple(x.shape)}; expected (1, C, h, w)")
    return x.detach().float().cpu()


def _brightness(height: int, width: int) -> Tensor:
    """(h, w): 1 within the margin of a picture, less on it."""
    y, x = round(_PICTURE_MARGIN * height), round(_PICTURE_MARGIN * width)
    brightness = torch.full((height, width), _PICTURE_MARGIN_BRIGHTNESS)
    brightness[y : height - y, x : width - x] = 1
    return brightness


def _points_within_margin(image_size: tuple[int, int]) -> Tensor:
    """(P, 2): x and y of a regular grid over the image without its margin."""
    margin = _PICTURE_MARGIN
    ys, xs = (
        (margin + (1 - 2 * margin) * (torch.arange(n) + 0.5) / n) * side
        for side in image_size
        for n in [min(side, _PICTURE_POINTS)]
    )
    return torch.stack(torch.meshgrid(xs, ys, indexing="xy"), dim=-1).reshape(-1, 2)


def _principal_components(columns: Tensor, widths: list[int]) -> tuple[Tensor, Tensor]:
    """Mean (C,) and the three directions (C, 3) of largest variance; their sign is fixed.

    The channels of a map, ``widths`` of them in turn, are divided by the root of their total
    variance, which the directions contain. Where the columns span fewer directions the rest are
    zero.
    """
    mean = columns.mean(0)
    centered = columns - mean
    parts = centered.square().mean(0).split(widths)
    scale = torch.cat([1 / v.sum().sqrt().clamp(min=1e-12).expand(len(v)) for v in parts])
    q = min(3, *columns.shape)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # the algorithm starts from random directions
        basis = torch.pca_lowrank(centered * scale, q=q, center=False)[2]
    largest = basis.gather(0, basis.abs().argmax(0, keepdim=True))
    return mean, F.pad(scale[:, None] * basis * largest.sign(), (0, 3 - q))
