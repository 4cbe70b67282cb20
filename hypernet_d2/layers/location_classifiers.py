"""K x K location-specific linear classifiers over hypercolumns (Hariharan et al., CVPR 2015).

A heat map of M x M positions lies over a box. A K x K grid of linear classifiers lies over the same
box, or over a slightly larger one. The score at a position is the bilinear interpolation of the
scores that the four nearest classifiers give to the hypercolumn there. Everything is linear, so:

- each classifier runs as a convolution on each map, before any map is enlarged, and the responses
  are summed over the maps;
- at a position only the responses of the four nearest classifiers are sampled, for any K.

Shapes: ``N`` images, ``R`` boxes, ``K`` classifiers along a side, ``L`` labels (one heat map each),
``M`` positions along a side of a heat map, ``C`` channels, ``S`` positions along an axis at which a
classifier has a weight, ``U`` classes that occur in a batch.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torchvision.ops import roi_align

__all__ = ["LocationClassifiers", "interpolation_weights"]


def interpolation_weights(grid_size: int, heatmap_size: int, margin: float = 0.0) -> NDArray:
    """Computes the weight of each classifier at each position along an axis.

    Without a margin these are the weights of bilinear interpolation (``align_corners=False``) from
    ``grid_size`` to ``heatmap_size`` values.

    Args:
        grid_size: K.
        heatmap_size: M.
        margin: length by which the grid of classifiers extends beyond either end of the heat map,
            as a fraction of the heat map's side.

    Returns:
        (K, M); each column has at most two nonzero values, and sums to one. A NumPy array, so that
        it is a constant in a captured graph.
    """
    position = (np.arange(heatmap_size) + 0.5) / heatmap_size
    position = (position + margin) / (1 + 2 * margin) * grid_size - 0.5
    distance = position.clip(0, grid_size - 1) - np.arange(grid_size)[:, None]
    return (1 - np.abs(distance)).clip(min=0)


class LocationClassifiers(nn.Module):
    """Predicts heat maps of boxes by K x K linear classifiers for each class and label.

    Args:
        in_channels: {map name: channels}.
        strides: {map name: stride in pixels}, with the same names.
        num_classes: classes of boxes that have their own classifiers; 1 if all classes share them.
        num_labels: L, heat maps per box.
        grid_size: K.
        heatmap_size: M.
        kernel_size: side of the classifiers' convolutions in cells, odd.

    Raises:
        ValueError: an even kernel, no classifier, or more classifiers than positions.
    """

    def __init__(
        self,
        in_channels: Mapping[str, int],
        strides: Mapping[str, int],
        *,
        num_classes: int = 1,
        num_labels: int = 1,
        grid_size: int = 5,
        heatmap_size: int = 50,
        kernel_size: int = 1,
    ):
        super().__init__()
        if kernel_size % 2 == 0:
            raise ValueError(f"HYPERCOLUMN.KERNEL_SIZE is {kernel_size}; expected an odd number")
        if not 1 <= grid_size <= heatmap_size:
            raise ValueError(
                f"HYPERCOLUMN.GRID_SIZE is {grid_size}; expected 1 to HEATMAP_SIZE, {heatmap_size}"
            )
        self.strides = {name: strides[name] for name in in_channels}
        self.num_classes, self.num_labels = num_classes, num_labels
        self.grid_size, self.heatmap_size = grid_size, heatmap_size
        self.out_channels = num_classes * grid_size**2 * num_labels
        self.convs = nn.ModuleDict(
            {
                name: nn.Conv2d(
                    channels, self.out_channels, kernel_size, padding=kernel_size // 2, bias=False
                )
                for name, channels in in_channels.items()
            }
        )
        self.bias = nn.Parameter(torch.zeros(self.out_channels))
        for conv in self.convs.values():
            nn.init.normal_(conv.weight, std=0.001)  # as the stock mask predictor

    def forward(
        self,
        features: Mapping[str, Tensor],
        rois: Tensor,
        classes: Tensor | None = None,
        box_bias: Tensor | None = None,
        margin: float = 0.0,
    ) -> Tensor:
        """Computes the logits of the heat maps that lie over ``rois``.

        The maps are sampled by ``torchvision.ops.roi_align`` with one sample per position. This
        equals :func:`hypercolumns`, except that responses are 0 more than one cell off the map.

        Args:
            features: {name: (N, C, h, w)}; maps without classifiers are ignored.
            rois: (R, 5), the index of the image and x1, y1, x2, y2 in pixels.
            classes: (R,) from 0, the class whose classifiers score a box; None with one class.
            box_bias: (R, ``out_channels``), added to the biases of the classifiers; or None.
            margin: see :func:`interpolation_weights`.

        Returns:
            (R, L, M, M).
        """
        if classes is None:
            classes = rois.new_zeros(rois.shape[0], dtype=torch.int64)
        present, index = self._present(classes)
        starts, length, weights = self._windows(margin)
        windows = self._window_rois(rois, index, present.shape[0], starts, length)
        bias = self._bias(classes, box_bias)
        responses = bias.flatten(0, 1)[:, :, None, None]
        for name, conv in self.convs.items():
            kernel = conv.weight.view(self.num_classes, -1, *conv.weight.shape[1:])[present]
            x = nn.functional.conv2d(features[name], kernel.flatten(0, 1), padding=conv.padding)
            x = x.reshape(-1, self.num_labels, *x.shape[-2:])
            responses = responses + roi_align(
                x.to(windows.dtype), windows, length, 1 / self.strides[name], 1, aligned=True
            )
        return self._interpolate(responses, starts, length, weights.to(responses))

    def _present(self, classes: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the classes that occur (U,), and the index of each box's class in them (R,).

        Class 0 is always among them, so that U is at least 1 without boxes, also in a traced model.
        """
        if self.num_classes == 1:
            return classes.new_zeros(1), classes
        present, index = torch.cat([classes, classes.new_zeros(1)]).unique(return_inverse=True)
        return present, index[:-1]

    def _windows(self, margin: float) -> tuple[list[int], int, Tensor]:
        """Returns the first position of each classifier's window (K), S, and its weights (K, S).

        A window holds all positions at which a classifier has a weight. All windows have the length
        of the longest, so that they form one batch.
        """
        weights = interpolation_weights(self.grid_size, self.heatmap_size, margin)
        positions = [np.flatnonzero(row).tolist() or [0] for row in weights]
        length = max(row[-1] - row[0] + 1 for row in positions)
        starts = [min(row[0], self.heatmap_size - length) for row in positions]
        windows = [row[i : i + length] for row, i in zip(weights, starts, strict=True)]
        return starts, length, torch.from_numpy(np.stack(windows))

    def _window_rois(
        self, rois: Tensor, index: Tensor, num_present: int, starts: list[int], length: int
    ) -> Tensor:
        """Returns (R * K * K, 5), the part of each box that a classifier's window covers."""
        first = rois.new_tensor(starts) / self.heatmap_size
        side = length / self.heatmap_size
        size = rois[:, 3:] - rois[:, 1:3]
        x = rois[:, 1, None] + size[:, 0, None] * first
        y = rois[:, 2, None] + size[:, 1, None] * first
        k = self.grid_size
        group = rois[:, 0].long() * num_present + index
        group = group[:, None] * k**2 + torch.arange(k**2, device=rois.device)
        x1, y1 = x[:, None, :].expand(-1, k, -1), y[:, :, None].expand(-1, -1, k)
        x2, y2 = x1 + side * size[:, 0, None, None], y1 + side * size[:, 1, None, None]
        windows = [group.view(-1, k, k).to(rois.dtype), x1, y1, x2, y2]
        return torch.stack(windows, dim=-1).reshape(-1, 5)

    def _bias(self, classes: Tensor, box_bias: Tensor | None) -> Tensor:
        """Returns (R, K * K, L), the biases of each box's classifiers."""
        shape = (-1, self.num_classes, self.grid_size**2, self.num_labels)
        bias = self.bias.view(shape)[0, classes]
        if box_bias is None:
            return bias
        boxes = torch.arange(classes.shape[0], device=classes.device)
        return bias + box_bias.reshape(shape)[boxes, classes]

    def _interpolate(
        self, responses: Tensor, starts: list[int], length: int, weights: Tensor
    ) -> Tensor:
        """Weights and adds up responses: (R * K * K, L, S, S) -> (R, L, M, M)."""
        k, m = self.grid_size, self.heatmap_size
        x = responses.view(-1, k, k, self.num_labels, length, length)
        x = x * weights[:, None, None, :, None] * weights[None, :, None, None, :]
        return _overlap_add(_overlap_add(x, starts, m), starts, m)


def _overlap_add(x: Tensor, starts: list[int], size: int) -> Tensor:
    """Adds up the items of dimension 1, each at its start along dimension 4, padded to ``size``."""
    out = x.new_zeros(x.shape[0], *x.shape[2:4], size, *x.shape[5:])
    for k, start in enumerate(starts):
        out.narrow(3, start, x.shape[4]).add_(x[:, k])
    return out
