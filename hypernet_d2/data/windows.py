"""Windows that fit the boxes of a data set.

Notation: n boxes.
"""

from __future__ import annotations

from collections import defaultdict
from typing import NamedTuple

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import transforms as T
from detectron2.structures import Boxes, BoxMode, pairwise_iou
from torch import Tensor
from tqdm import tqdm

from hypernet_d2.layers import WindowGrid

from .load import check_registered, load_dataset
from .tiles import training_tiles

__all__ = ["NUM_RATIOS", "NUM_SIZES", "Fit", "fit", "load_boxes", "suggest"]

NUM_SIZES, NUM_RATIOS = range(3, 10), range(1, 6)  # of the candidates
SIZE_RANGE, RATIO_RANGE = (0.01, 0.99), (0.05, 0.95)  # quantiles of the boxes


class Fit(NamedTuple):
    """Sizes and ratios of windows, and for each of n boxes the best IoU (n,) with a window."""

    sizes: list[float]
    ratios: list[float]
    num_windows: int
    best_iou: Tensor

    def recall(self, iou: float) -> float:
        """The fraction of boxes that a window overlaps with an IoU of at least ``iou``."""
        return float((self.best_iou >= iou).float().mean())


def load_boxes(cfg: CfgNode, name: str) -> list[tuple[tuple[int, int], Tensor]]:
    """For each image (height, width) and boxes (n, 4) in pixels of the network's input.

    With ``MODEL.HYPERNET.TILES.TRAIN_SIZE`` the images are the training tiles.

    Raises:
        KeyError: no data set has the name.
        ValueError: it has no box with an area.
    """
    check_registered(name, "--dataset")
    images = []
    for record in training_tiles(cfg, load_dataset(name), name):
        x0, y0, x1, y1 = record.get("tile", (0, 0, record["width"], record["height"]))
        old = y1 - y0, x1 - x0
        new = T.ResizeShortestEdge.get_output_shape(
            *old, cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST
        )
        boxes = [
            BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS)
            for a in record["annotations"]
            if not a.get("iscrowd", 0)
        ]
        scale = torch.tensor([new[1] / old[1], new[0] / old[0]]).repeat(2)
        shift = torch.tensor([x0, y0, x0, y0])
        resized = Boxes((torch.tensor(boxes).reshape(-1, 4) - shift) * scale)
        resized.clip(new)
        images.append((new, resized[resized.nonempty()].tensor))
    if not sum(len(boxes) for _, boxes in images):
        raise ValueError(f"data set {name!r} has no box with an area")
    return images


def sample(images: list, count: int) -> list[tuple[tuple[int, int], Tensor]]:
    """At most ``count`` boxes, drawn at random with a fixed seed, with their images."""
    owners = torch.cat([torch.full((len(b),), i) for i, (_, b) in enumerate(images)])
    picked = torch.randperm(len(owners), generator=torch.Generator().manual_seed(0))[:count]
    kept = torch.zeros(len(owners), dtype=torch.bool)
    kept[picked] = True
    parts = kept.split([len(boxes) for _, boxes in images])
    return [(size, b[k]) for (size, b), k in zip(images, parts, strict=True) if k.any()]


def by_image_size(images: list) -> dict[tuple[int, int], Tensor]:
    groups = defaultdict(list)
    for size, boxes in images:
        groups[size].append(boxes)
    return {size: torch.cat(boxes) for size, boxes in groups.items()}


def fit(cfg: CfgNode, images: list, sizes: list[float], ratios: list[float]) -> Fit:
    """The fit of the windows of these sizes and ratios to the boxes.

    The number of windows is that of an image of the most frequent size.
    """
    keys, stride = cfg.MODEL.HYPERNET.PROPOSALS, cfg.MODEL.HYPERNET.FEATURE.STRIDE
    grid = WindowGrid.from_sizes(sizes, ratios, stride, keys.STEP, keys.MIN_STRIDE)
    groups = by_image_size(images)
    best = []
    for size, boxes in groups.items():
        windows = windows_of(grid, size)
        # In parts: the IoU of all boxes of COCO with all windows would not fit into memory.
        best += [pairwise_iou(Boxes(part), windows).amax(1) for part in boxes.split(200)]
    usual = max(groups, key=lambda size: len(groups[size]))
    return Fit(sizes, ratios, len(windows_of(grid, usual)), torch.cat(best))


def windows_of(grid: WindowGrid, image_size: tuple[int, int]) -> Boxes:
    map_size = tuple(-(-side // grid.feature_stride) for side in image_size)
    return Boxes(grid.boxes(map_size)[grid.inside(map_size, image_size)])


def spread(values: Tensor, count: int, limits: tuple[float, float]) -> list[float]:
    """``count`` values, evenly spaced on a logarithmic scale between two quantiles.

    A single value is the median.
    """
    if count == 1:
        return [float(values.median())]
    low, high = np.quantile(values.numpy(), limits)
    return np.geomspace(low, high, count).tolist()


def candidates(boxes: Tensor) -> list[tuple[list[float], list[float]]]:
    """Distinct pairs of sizes (integers, in pixels) and ratios (two decimals)."""
    w, h = (boxes[:, 2:] - boxes[:, :2]).T
    sizes, ratios = (w * h).sqrt(), h / w
    found = {}
    for m in NUM_SIZES:
        for n in NUM_RATIOS:
            chosen = sorted({max(1, round(s)) for s in spread(sizes, m, SIZE_RANGE)})
            shapes = sorted({round(r, 2) for r in spread(ratios, n, RATIO_RANGE) if r >= 0.005})
            if shapes:
                found[tuple(chosen), tuple(shapes)] = None
    return [(list(s), list(r)) for s, r in found]


def suggest(cfg: CfgNode, images: list, num_boxes: int, max_windows: int) -> Fit:
    """The candidate with the most boxes above the IoU threshold of positive windows.

    Only candidates with at most ``max_windows`` windows are compared.

    Raises:
        ValueError: no candidate has so few.
    """
    few = sample(images, num_boxes)
    pairs = candidates(torch.cat([boxes for _, boxes in images]))
    fits = [fit(cfg, few, *pair) for pair in tqdm(pairs, desc="candidates")]
    affordable = [f for f in fits if f.num_windows <= max_windows]
    if not affordable:
        raise ValueError(
            f"--max-windows {max_windows}: the smallest candidate has "
            f"{min(f.num_windows for f in fits)} windows; increase it, or STEP and MIN_STRIDE"
        )
    # A box that no window overlaps by the threshold is no positive example.
    threshold = cfg.MODEL.RPN.IOU_THRESHOLDS[-1]
    best = max(affordable, key=lambda f: (f.recall(threshold), float(f.best_iou.mean())))
    return fit(cfg, images, best.sizes, best.ratios)
