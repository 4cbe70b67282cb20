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
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import numpy as np
import torch
from matplotlib import pyplot as plt
from matplotlib.ticker import FixedLocator, NullLocator, StrMethodFormatter
from tabulate import tabulate
from torch import Tensor

from hypernet_d2.data.windows import NUM_RATIOS, NUM_SIZES, Fit, fit, load_boxes, suggest
from hypernet_d2.engine import add_data_argument, setup_cfg

from .arguments import CommandParser, add_config_arguments

IOUS = (0.45, 0.5, 0.7)  # the first is what makes a window positive in training (paper 3.4)
SIZE_TICKS = [2**k for k in range(1, 12)]
RATIO_TICKS = [0.1, 0.2, 0.33, 0.5, 0.67, 1, 1.5, 2, 3, 5, 10]
INK, NOW, SUGGESTED = "#222222", "#d9822b", "#2f6fb0"


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
