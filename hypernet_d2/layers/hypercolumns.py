"""Hypercolumns: all activations above a pixel (Hariharan et al., CVPR 2015).

Positions are continuous: the pixel in row i and column j has its center at x = j + 0.5,
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
    """Interpolates the activations of all maps above each point, and concatenates them.

    At the center of a pixel this equals ``F.interpolate(x, size=image_size, mode="bilinear",
    align_corners=False)`` of every map at that pixel, without enlarging the maps. Points between
    pixel centers are interpolated likewise. Beyond the centers of the outermost cells the value is
    that of the border.

    Args:
        features: {name: (N, C, h, w)}, floating point.
        points: (N, P, 2), x and y in pixels, floating point; points outside the image are allowed.
        image_size: (H, W) in pixels, the area that the maps cover. For a batch of padded images
            this is the size of the padded tensor (``images.tensor.shape[-2:]``).

    Returns:
        (N, P, sum of C), channels in the order of ``features``, with the dtype of ``points``.
        Gradients flow to the maps and to the points.

    Raises:
        ValueError: no map, points of another shape, or a map whose number of images is not that of
            the points.
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

    Pixels of similar color have similar hypercolumns. Every map is scaled to a total variance of
    one, so that all have the same weight. The components, and the range of each that becomes 0 to
    255 (its 1st to 99th percentile), are those of a regular grid of at most 64 x 64 points. The
    grid leaves out the margin of the image, where the zero padding of the convolutions dominates
    the features; the margin is drawn darker. As the components are linear, they are computed on
    each map before it is enlarged.

    Args:
        features: {name: (1, C, h, w)}, the maps of one image.
        image_size: (H, W) in pixels, the area that the maps cover; see :func:`hypercolumns`.
        content_size: (h, w) in pixels, the image without its padding at the bottom and right. Only
            this part is drawn; by default the whole area.

    Returns:
        (h, w, 3), uint8, on the CPU.

    Raises:
        ValueError: no map, or a map that does not have exactly one image.
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
    """Returns (h, w) factors: 1 inside the margin of a picture, less in the margin."""
    y, x = round(_PICTURE_MARGIN * height), round(_PICTURE_MARGIN * width)
    brightness = torch.full((height, width), _PICTURE_MARGIN_BRIGHTNESS)
    brightness[y : height - y, x : width - x] = 1
    return brightness


def _points_within_margin(image_size: tuple[int, int]) -> Tensor:
    """Returns (P, 2), x and y of a regular grid over the image without its margin."""
    margin = _PICTURE_MARGIN
    ys, xs = (
        (margin + (1 - 2 * margin) * (torch.arange(n) + 0.5) / n) * side
        for side in image_size
        for n in [min(side, _PICTURE_POINTS)]
    )
    return torch.stack(torch.meshgrid(xs, ys, indexing="xy"), dim=-1).reshape(-1, 2)


def _principal_components(columns: Tensor, widths: list[int]) -> tuple[Tensor, Tensor]:
    """Returns the mean (C,) and the three directions of largest variance (C, 3).

    Each map (``widths`` holds their channels) is scaled to a total variance of one. The directions
    include this scale, so they apply to the original channels. Their sign is fixed. Directions that
    the columns do not span are zero.
    """
    mean = columns.mean(0)
    centered = columns - mean
    parts = centered.square().mean(0).split(widths)
    scale = torch.cat([1 / v.sum().sqrt().clamp(min=1e-12).expand(len(v)) for v in parts])
    q = min(3, *columns.shape)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # pca_lowrank starts from random directions
        basis = torch.pca_lowrank(centered * scale, q=q, center=False)[2]
    largest = basis.gather(0, basis.abs().argmax(0, keepdim=True))
    return mean, F.pad(scale[:, None] * basis * largest.sign(), (0, 3 - q))
