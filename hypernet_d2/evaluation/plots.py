"""Plots that compare models; they need matplotlib, the extra "plots"."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["new_figure", "plot_precision", "plot_recall"]

# The color-blind safe palette of Okabe and Ito, without yellow. Lines and hatches differ as well,
# for prints without color.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
LINES = ("-", "--", "-.", ":")
MAX_INCHES, MAX_LABELS = 30, 90
HATCHES = ("", "//", "..", "xx", "\\\\", "oo", "++")


def plot_recall(
    models: dict[str, Sequence[dict]], path: str | Path | IO[bytes], size: str = "all"
) -> None:
    """Recall against the number of proposals (top) and against IoU (bottom).

    Args:
        models: {name: contents of the json files of ProposalRecallEvaluator, one per seed}. Lines
            are means over the seeds, bands the standard deviation.
        path: image file, whose suffix gives the format; or an open file, for PNG.
        size: "all", "small", "medium" or "large" objects.

    Raises:
        ImportError: if matplotlib is not installed.
    """
    figure = new_figure(11, 6.6)
    axes = figure.subplots(2, 3, sharey=True)
    for ax, iou in zip(axes[0], ("0.5", "0.7"), strict=False):
        _plot_curves(ax, models, "recall_by_number", iou, size)
        ax.set(title=f"IoU {iou}", xscale="log", xlabel="proposals per image")
        ax.set_xticks([1, 3, 10, 30, 100, 300, 1000], [1, 3, 10, 30, 100, 300, 1000])
    for ax, number in zip(axes[1], ("50", "100", "200"), strict=True):
        _plot_curves(ax, models, "recall_by_iou", number, size)
        ax.set(title=f"{number} proposals", xlabel="IoU")
    for ax in axes[:, 0]:
        ax.set(ylabel="recall (%)", ylim=(0, 102))
    handles, labels = axes[0, 0].get_legend_handles_labels()
    axes[0, 2].axis("off")
    objects = "objects of all sizes" if size == "all" else f"{size} objects"
    title = f"{next(iter(models.values()))[0]['dataset']}, {objects}"
    axes[0, 2].legend(handles, labels, loc="center left", title=title, frameon=False)
    figure.savefig(path, dpi=120)


def _plot_curves(
    ax: Axes, models: dict[str, Sequence[dict]], curve: str, at: str, size: str
) -> None:
    for i, (name, summaries) in enumerate(models.items()):
        recall = np.array([summary[curve][at][size] for summary in summaries], dtype=float)
        x = summaries[0]["ious"] if curve == "recall_by_iou" else np.arange(recall.shape[1]) + 1
        color = COLORS[i % len(COLORS)]
        ax.plot(x, recall.mean(axis=0), LINES[i % len(LINES)], color=color, label=name)
        if len(recall) > 1:
            spread = recall.std(axis=0, ddof=1)
            low, high = recall.mean(axis=0) - spread, recall.mean(axis=0) + spread
            ax.fill_between(x, low, high, color=color, alpha=0.2, linewidth=0)
    ax.grid(alpha=0.3)


def plot_precision(
    models: dict[str, dict[str, Sequence[float | None]]], path: str | Path | IO[bytes], title: str
) -> None:
    """Bars of average precision.

    Args:
        models: {name: {metric: values in percent, one per seed}}. Bars are means over the seeds,
            whiskers the standard deviation; a metric with None has no bar.
        path: image file, whose suffix gives the format; or an open file, for PNG.
        title: title of the plot.

    Raises:
        ImportError: if matplotlib is not installed.
    """
    metrics = list(dict.fromkeys(metric for values in models.values() for metric in values))
    bars = len(metrics) * len(models)
    figure = new_figure(min(max(6, 0.32 * bars + 0.25 * len(metrics) + 1), MAX_INCHES), 4)
    ax = figure.subplots()
    width = 0.84 / len(models)
    for i, (name, values) in enumerate(models.items()):
        seeds = [np.array(values.get(metric) or [None], dtype=float) for metric in metrics]
        x = np.arange(len(metrics)) + (i - (len(models) - 1) / 2) * width
        heights = [s.mean() for s in seeds]
        spread = [s.std(ddof=1) if len(s) > 1 else 0 for s in seeds]
        whiskers = {"capsize": 2, "elinewidth": 1} if any(spread) else {}
        drawn = ax.bar(
            x, heights, 0.92 * width, yerr=spread if whiskers else None, label=name,
            color=COLORS[i % len(COLORS)], hatch=HATCHES[i % len(HATCHES)], edgecolor="white",
            linewidth=0, error_kw=whiskers,
        )  # fmt: skip
        if bars <= MAX_LABELS:
            ax.bar_label(drawn, ["" if np.isnan(h) else f"{h:.0f}" for h in heights], fontsize=7)
    ax.set_xticks(range(len(metrics)), metrics, rotation=90 if len(metrics) > 8 else 0)
    ax.margins(x=0.01)
    ax.set(title=title, ylabel="average precision (%)", ylim=(0, 105))
    ax.grid(axis="y", alpha=0.3)
    ax.set_axisbelow(True)
    ax.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    figure.savefig(path, dpi=120)


def new_figure(width: float, height: float) -> Figure:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            "plots need matplotlib, which is not installed: pip install matplotlib, or install "
            "hypernet_d2 with its extra 'plots'"
        ) from error
    return Figure(figsize=(width, height), layout="constrained")
