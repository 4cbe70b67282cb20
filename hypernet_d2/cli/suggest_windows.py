"""Suggests SIZES and ASPECT_RATIOS of MODEL.HYPERNET.PROPOSALS for a data set.

The boxes are resized as the config resizes images at test time. Candidate sizes are evenly spaced
on a logarithmic scale from the 1st to the 99th percentile of the sizes of the boxes, aspect ratios
from the 5th to the 95th. For each number of sizes and of ratios the grid of windows is built with
the other keys of the config. Printed are the sizes and ratios whose windows fit the boxes best
(largest mean over the boxes of the best IoU), among those with at most as many windows as the
config has.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

import matplotlib

matplotlib.use("Agg")

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import transforms as T
from detectron2.structures import Boxes, BoxMode, pairwise_iou
from matplotlib import pyplot as plt
from matplotlib.ticker import FixedLocator, NullLocator, StrMethodFormatter
from tabulate import tabulate
from torch import Tensor
from tqdm import tqdm

from hypernet_d2.data import check_registered, load_dataset
from hypernet_d2.engine import add_data_argument, setup_cfg
from hypernet_d2.layers import WindowGrid

from .arguments import CommandParser, add_config_arguments

IOUS = (0.45, 0.5, 0.7)  # the first is what makes a window positive in training (paper 3.4)
NUM_SIZES, NUM_RATIOS = range(3, 10), range(1, 6)
SIZE_RANGE, RATIO_RANGE = (0.01, 0.99), (0.05, 0.95)  # quantiles of the boxes
SIZE_TICKS = [2**k for k in range(1, 12)]
RATIO_TICKS = [0.1, 0.2, 0.33, 0.5, 0.67, 1, 1.5, 2, 3, 5, 10]
INK, NOW, SUGGESTED = "#222222", "#d9822b", "#2f6fb0"


class Fit(NamedTuple):
    """Sizes and ratios of windows, and for each of n boxes the best IoU (n,) with a window."""

    sizes: list[float]
    ratios: list[float]
    num_windows: int
    best_iou: Tensor

    def recall(self, iou: float) -> float:
        """The fraction of boxes that a window overlaps with an IoU of at least ``iou``."""
        return float((self.best_iou >= iou).float().mean())


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = CommandParser(
        __doc__,
        "--config Digits-Detection/hypernet_R_18 --dataset digits_train --output windows.png",
    )
    add = parser.add_argument
    add_config_arguments(parser)
    add("--dataset", help="name of the data set (default: the first of DATASETS.TRAIN)")
    add("--output", type=Path, help="plot to write, .png or .pdf")
    add(
        "--max-windows",
        type=int,
        help="maximum of windows in an image of the most frequent size (default: as many as the "
        "config has)",
    )
    add(
        "--num-boxes",
        type=int,
        default=1000,
        help="random boxes on which candidates are compared; the figures printed are of all boxes "
        "(default: 1000)",
    )
    add_data_argument(parser)
    add("--opts", nargs=argparse.REMAINDER, default=[], help="KEY VALUE ..., as in train_net.py")
    args = parser.parse_args(argv)
    for name in ("max_windows", "num_boxes"):
        value = getattr(args, name)
        if value is not None and value < 1:
            parser.error(f"--{name.replace('_', '-')} {value}: expected 1 or more")
    return args


def load_boxes(cfg: CfgNode, name: str) -> list[tuple[tuple[int, int], Tensor]]:
    """For each image (height, width) and boxes (n, 4) in pixels of the network's input.

    Raises:
        KeyError: no data set has the name.
        ValueError: it has no box with an area.
    """
    check_registered(name, "--dataset")
    images = []
    for record in load_dataset(name):
        old = record["height"], record["width"]
        new = T.ResizeShortestEdge.get_output_shape(
            *old, cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST
        )
        boxes = [
            BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS)
            for a in record["annotations"]
            if not a.get("iscrowd", 0)
        ]
        scale = torch.tensor([new[1] / old[1], new[0] / old[0]]).repeat(2)
        resized = Boxes(torch.tensor(boxes).reshape(-1, 4) * scale)
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
    """The best candidate with at most ``max_windows`` windows.

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
    best = max(affordable, key=lambda f: float(f.best_iou.mean()))
    return fit(cfg, images, best.sizes, best.ratios)


def plot(now: Fit, suggested: Fit, boxes: Tensor, title: str) -> plt.Figure:
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 5), dpi=110, layout="constrained")
    w, h = (boxes[:, 2:] - boxes[:, :2]).T
    few = torch.randperm(len(boxes), generator=torch.Generator().manual_seed(0))[:5000]
    left.loglog((w * h).sqrt()[few], (h / w)[few], ".", ms=2, color="#999999", label="boxes")
    for choice, color, marker, name in ((now, NOW, "s", "now"), (suggested, SUGGESTED, "o", "")):
        xs, ys = zip(*[(s, r) for s in choice.sizes for r in choice.ratios], strict=True)
        left.loglog(xs, ys, marker, mfc="none", color=color, label=f"windows {name}".strip())
    left.lines[-1].set_label("windows suggested")
    left.set(xlabel="size: square root of the area, pixels of the input", ylabel="height / width")
    for axis, ticks in ((left.xaxis, SIZE_TICKS), (left.yaxis, RATIO_TICKS)):
        axis.set_major_locator(FixedLocator(ticks))
        axis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axis.set_minor_locator(NullLocator())
    left.margins(y=0.25)  # for the legend
    left.legend(loc="upper left")
    ious = np.linspace(0.3, 1, 141)
    for choice, color, name in ((now, NOW, "now"), (suggested, SUGGESTED, "suggested")):
        label = f"{name}: {choice.num_windows} windows"
        right.plot(ious, [choice.recall(iou) for iou in ious], color=color, label=label)
    for iou in IOUS:
        right.axvline(iou, color=INK, lw=0.6, ls=":")
    right.set(xlabel="IoU", ylabel="fraction of the boxes with such a window", ylim=(0, 1.02))
    right.legend()
    figure.suptitle(title)
    return figure


def report(now: Fit, suggested: Fit) -> str:
    header = ["", "sizes x ratios", "windows", "mean best IoU"]
    header += [f"recall at IoU {iou:g}" for iou in IOUS]
    rows = [
        [
            name,
            f"{len(f.sizes)} x {len(f.ratios)}",
            f.num_windows,
            f"{float(f.best_iou.mean()):.3f}",
            *(f"{100 * f.recall(iou):.1f}%" for iou in IOUS),
        ]
        for name, f in (("now", now), ("suggested", suggested))
    ]
    return tabulate(rows, header, tablefmt="github", disable_numparse=True)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    cfg = setup_cfg(args)
    if cfg.MODEL.PROPOSAL_GENERATOR.NAME != "HyperNetProposals":
        raise ValueError(
            f"{args.config_file}: MODEL.PROPOSAL_GENERATOR.NAME is "
            f"{cfg.MODEL.PROPOSAL_GENERATOR.NAME!r}; only 'HyperNetProposals' has windows"
        )
    name = args.dataset or cfg.DATASETS.TRAIN[0]
    images = load_boxes(cfg, name)
    boxes = torch.cat([b for _, b in images])
    keys = cfg.MODEL.HYPERNET.PROPOSALS
    now = fit(cfg, images, list(keys.SIZES), list(keys.ASPECT_RATIOS))
    suggested = suggest(cfg, images, args.num_boxes, args.max_windows or now.num_windows)

    sides = (boxes[:, 2:] - boxes[:, :2]).prod(1).sqrt()
    low, middle, high = np.quantile(sides.numpy(), (0.01, 0.5, 0.99))
    print(
        f"\n{name}: {len(boxes)} boxes in {len(images)} images, resized to a short side of "
        f"{cfg.INPUT.MIN_SIZE_TEST} (long side at most {cfg.INPUT.MAX_SIZE_TEST}).\n"
        f"Sizes: median {middle:.0f} pixels, 98% between {low:.0f} and {high:.0f}.\n"
        f"The best of {len(NUM_SIZES) * len(NUM_RATIOS)} combinations of sizes and aspect ratios "
        f"with at most {args.max_windows or now.num_windows} windows:\n"
    )
    print(report(now, suggested))
    print(
        "\nRecall is that of the windows, before the network regresses their boxes.\n\n"
        "MODEL:\n  HYPERNET:\n    PROPOSALS:\n"
        f"      SIZES: {suggested.sizes}\n      ASPECT_RATIOS: {suggested.ratios}"
    )
    if args.output:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        plot(now, suggested, boxes, f"{name}, {args.config_file}").savefig(args.output)
        print(f"\n{args.output}")
