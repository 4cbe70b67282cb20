"""The regular grid of candidate windows (HyperNet, section 3.2).

Legend: R windows, s feature stride in pixels, (h, w) a window's shape and (H, W) a map's size, both
in cells.
"""

import math
import warnings
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

__all__ = ["WindowGrid", "get_or_build", "int_size"]

T = TypeVar("T")

# Map sizes for which boxes and readers are kept, at up to 5 MB each.
_CACHE_SIZE = 32


class WindowGrid:
    """Windows of several shapes, each shape on its own regular grid of whole cells.

    A shape is (h, w) in cells as RoI pooling counts them: the window at cell (y0, x0) is the pixel
    box [x0 * s, y0 * s, (x0 + w - 1) * s, (y0 + h - 1) * s], so that its pooled extent
    round(x2 / s) - round(x1 / s) + 1 is w, and likewise h.

    Along an axis the positions are k * stride, k = 0, 1, ...; the window at 0 always exists, so
    that an image smaller than the smallest window still has windows, and each other one exists when
    its center lies in the map. Windows therefore overhang the right and the bottom border by up to
    half their side.

    Windows are ordered by shape, then by row, then by column.
    """

    def __init__(
        self,
        shapes: Sequence[tuple[int, int]],
        strides: Sequence[tuple[int, int]],
        feature_stride: int,
    ):
        """
        Args:
            shapes: (h, w) in cells, at least one.
            strides: (stride in y, stride in x) in cells, one for each shape.
            feature_stride: pixels per cell.

        Raises:
            ValueError: no shape, another number of strides than of shapes, or a value that is not
                a whole number >= 1.
        """
        self.shapes = _int_pairs("shapes", shapes)
        self.strides = _int_pairs("strides", strides)
        if not self.shapes:
            raise ValueError("shapes: expected at least one (h, w), got none")
        if len(self.shapes) != len(self.strides):
            raise ValueError(
                f"strides: expected one (y, x) for each of the {len(self.shapes)} shapes, "
                f"got {len(self.strides)}"
            )
        if feature_stride != int(feature_stride) or feature_stride < 1:
            raise ValueError(f"feature_stride: expected a whole number >= 1, got {feature_stride}")
        self.feature_stride = int(feature_stride)
        self._boxes: OrderedDict[tuple, Tensor] = OrderedDict()

    @classmethod
    def from_sizes(
        cls,
        sizes: Sequence[float],
        aspect_ratios: Sequence[float],
        feature_stride: int,
        step: float = 1 / 3,
        min_stride: float = 0.0,
    ) -> "WindowGrid":
        """Builds the grid from sizes and aspect ratios, as anchors are described.

        Args:
            sizes: square roots of the windows' areas, in pixels.
            aspect_ratios: height / width.
            feature_stride: pixels per cell.
            step: stride as a fraction of the window's side, along each axis.
            min_stride: lower bound of the strides, in pixels.

        Sides and strides are rounded to whole cells, at least one. Shapes that become equal are
        merged.

        Raises:
            ValueError: an empty list, or a value that is not positive (min_stride: not negative).
        """
        _check_positive("sizes", sizes)
        _check_positive("aspect_ratios", aspect_ratios)
        _check_positive("step", [step])
        if not (math.isfinite(min_stride) and min_stride >= 0):
            raise ValueError(f"min_stride: expected a number of pixels >= 0, got {min_stride}")

        def cells(pixels: float) -> int:
            return max(1, math.floor(pixels / feature_stride + 0.5))

        # dict.fromkeys merges equal shapes and keeps the order.
        sides = dict.fromkeys(
            (cells(size * math.sqrt(ratio)), cells(size / math.sqrt(ratio)))
            for size in sizes
            for ratio in aspect_ratios
        )
        lower_bound = math.ceil(min_stride / feature_stride)

        def stride(side: int) -> int:
            return max(1, lower_bound, math.floor(step * side + 0.5))

        # RoI pooling counts both ends: a box as long as n cells covers n + 1 of them.
        return cls(
            [(h + 1, w + 1) for h, w in sides],
            [(stride(h), stride(w)) for h, w in sides],
            feature_stride,
        )

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(shapes={self.shapes}, strides={self.strides}, "
            f"feature_stride={self.feature_stride})"
        )

    @property
    def num_shapes(self) -> int:
        return len(self.shapes)

    def counts(self, map_size: tuple[int, int]) -> list[tuple[int, int]]:
        """Returns, for each shape, the numbers of windows (in y, in x).

        Args:
            map_size: (H, W) in cells.
        """

        def count(extent: int, stride: int, length: int) -> int:
            # k * stride + (extent - 1) / 2 < length, in whole numbers.
            return max(1, -(-(2 * length - extent + 1) // (2 * stride)))

        height, width = int_size(map_size)
        return [
            (count(h, stride_y, height), count(w, stride_x, width))
            for (h, w), (stride_y, stride_x) in zip(self.shapes, self.strides, strict=True)
        ]

    def num_windows(self, map_size: tuple[int, int]) -> int:
        """Returns R for a map of `map_size` (H, W) cells."""
        return sum(ny * nx for ny, nx in self.counts(map_size))

    def boxes(self, map_size: tuple[int, int], device: torch.device | str | None = None) -> Tensor:
        """Returns all windows: (R, 4) float32, x1 y1 x2 y2 in pixels.

        The tensor is kept for the next call and must not be written to.

        Args:
            map_size: (H, W) in cells.
        """
        device = torch.device("cpu" if device is None else device)
        size = int_size(map_size)
        return get_or_build(self._boxes, (size, device), lambda: self._build_boxes(size, device))

    def _build_boxes(self, map_size: tuple[int, int], device: torch.device) -> Tensor:
        boxes = []
        for (h, w), (stride_y, stride_x), (ny, nx) in zip(
            self.shapes, self.strides, self.counts(map_size), strict=True
        ):
            y1 = torch.arange(ny, device=device).mul_(stride_y)[:, None].expand(ny, nx)
            x1 = torch.arange(nx, device=device).mul_(stride_x)[None, :].expand(ny, nx)
            boxes.append(torch.stack([x1, y1, x1 + (w - 1), y1 + (h - 1)], dim=-1).view(-1, 4))
        return torch.cat(boxes).mul_(self.feature_stride).float()

    def inside(
        self,
        map_size: tuple[int, int],
        image_size: tuple[int, int],
        device: torch.device | str | None = None,
    ) -> Tensor:
        """Tells which windows belong to an image in the top left part of a padded tensor.

        Args:
            map_size: (H, W) of the padded map, in cells.
            image_size: (height, width) of the image before padding, in pixels.

        Returns:
            (R,) bool, true where the window, along each axis, starts at 0 or has its center in the
            image.
        """
        x1, y1, x2, y2 = self.boxes(map_size, device).unbind(dim=1)
        height, width = image_size
        return ((y1 == 0) | (y1 + y2 < 2 * height)) & ((x1 == 0) | (x1 + x2 < 2 * width))


def int_size(map_size: Sequence[int]) -> tuple[int, int]:
    """Returns (H, W) as Python integers, also while tracing: a trace is for one map size."""
    height, width = map_size
    if torch.jit.is_tracing():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", torch.jit.TracerWarning)
            return int(height), int(width)
    return int(height), int(width)


def get_or_build(cache: OrderedDict, key: Hashable, build: Callable[[], T]) -> T:
    """Returns cache[key], built if missing; the least recently used entry of a full cache goes."""
    # While a graph is captured, tensors may be fake, and must not stay in the cache afterwards.
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return cache[key] if key in cache else build()
    if key not in cache:
        # An inference tensor could never take part in a graph that needs gradients.
        with torch.inference_mode(False):
            cache[key] = build()
        if len(cache) > _CACHE_SIZE:
            cache.popitem(last=False)
    cache.move_to_end(key)
    return cache[key]


def _int_pairs(name: str, pairs: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    for pair in pairs:
        if len(pair) != 2 or any(value != int(value) or value < 1 for value in pair):
            raise ValueError(f"{name}: expected pairs of whole numbers of cells >= 1, got {pair}")
    return [(int(y), int(x)) for y, x in pairs]


def _check_positive(name: str, values: Sequence[float]) -> None:
    if not values or not all(math.isfinite(value) and value > 0 for value in values):
        raise ValueError(f"{name}: expected positive numbers, got {list(values)}")
