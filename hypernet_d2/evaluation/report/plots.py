"""Plots of a report, as PNG files; they need matplotlib."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from hypernet_d2.evaluation.plots import COLORS, LINES, new_figure

from .analysis import Analysis
from .errors import KINDS
from .training import VALIDATION_LOSS, Training

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "plot_classes",
    "plot_confusion",
    "plot_curves",
    "plot_errors",
    "plot_sizes",
    "plot_sides",
    "plot_training",
]

MAX_CURVES = 10  # classes in a plot of curves
MAX_MATRIX = 30  # classes in a confusion matrix
_WIDTH = 9.6  # inches


def plot_training(models: dict[str, Training], data_set: str) -> bytes:
    """Losses of training and validation, and AP, against the iteration."""
    figure = new_figure(_WIDTH, 3.6)
    losses, precision = figure.subplots(1, 2)
    for i, (name, training) in enumerate(models.items()):
        prefix = f"{name}: " if len(models) > 1 else ""
        curves = {"total_loss": "training", VALIDATION_LOSS: "validation"}
        for j, (key, label) in enumerate(curves.items()):
            if key in training.curves:
                x, y = training.curves[key]
                color = COLORS[(i if len(models) > 1 else j) % len(COLORS)]
                if key == "total_loss":
                    losses.plot(x, y, color=color, alpha=0.25, linewidth=1)
                    y = _smooth(y)
                marker = "o" if len(x) < 40 else ""
                losses.plot(x, y, LINES[j], marker=marker, ms=3, color=color, label=prefix + label)
        if len(models) == 1:
            for j, key in enumerate(training.losses()):
                x, y = training.curves[key]
                color = COLORS[(2 + j) % len(COLORS)]
                losses.plot(x, _smooth(y), ":", color=color, label=key.replace("_", " "))
        if (points := training.precision(data_set)) is not None:
            precision.plot(*points, "o-", ms=4, color=COLORS[i % len(COLORS)], label=name)
    losses.set(title="losses", xlabel="iteration", ylim=(0, None))
    precision.set(title=f"AP of {data_set} (%)", xlabel="iteration", ylim=(0, None))
    if not precision.lines:
        precision.text(0.5, 0.5, "evaluated at the end only", ha="center", va="center",
                       transform=precision.transAxes)  # fmt: skip
    for ax in (losses, precision):
        ax.grid(alpha=0.3)
        if ax.lines and (ax is losses or len(models) > 1):
            ax.legend(fontsize=8, frameon=False)
    return _png(figure)


def _smooth(values: np.ndarray) -> np.ndarray:
    """The running median over a twentieth of the points."""
    reach = max(1, len(values) // 40)
    padded = np.pad(values, reach, mode="edge")
    return np.median(np.lib.stride_tricks.sliding_window_view(padded, 2 * reach + 1), axis=1)


def plot_sides(sides: dict[str, np.ndarray], bounds: Sequence[float]) -> bytes:
    """Histograms of the sizes of the objects of data sets, on a logarithmic scale.

    Args:
        sides: {data set: roots of the areas in pixels}.
        bounds: of size classes, drawn as lines.
    """
    figure = new_figure(_WIDTH, 2.8)
    ax = figure.subplots()
    every = np.maximum(np.concatenate(list(sides.values())), 1)
    bins = np.geomspace(every.min() / 1.02, every.max() * 1.02, 41)
    for i, (name, values) in enumerate(sides.items()):
        weights = np.full(len(values), 100 / max(1, len(values)))
        ax.hist(np.maximum(values, 1), bins, weights=weights, histtype="step", linewidth=1.6,
                color=COLORS[i], label=f"{name} ({len(values)} objects)")  # fmt: skip
    for bound in bounds:
        ax.axvline(bound, color="black", linestyle=":", linewidth=1)
    ax.set(xscale="log", xlabel="root of the object's area (pixels of the stored image)",
           ylabel="share of the objects (%)")  # fmt: skip
    ticks = [t for t in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000)
             if bins[0] <= t <= bins[-1]]  # fmt: skip
    ax.set_xticks(ticks, ticks)
    ax.minorticks_off()
    ax.grid(alpha=0.3)
    ax.legend(fontsize=8, frameon=False)
    return _png(figure)


def plot_classes(models: dict[str, Analysis], order: Sequence[int]) -> bytes:
    """Bars of AP and AP50 of classes, given by their numbers in ``order``."""
    first = next(iter(models.values()))
    names = [first.data.classes[label] for label in order]
    figure = new_figure(_WIDTH, 1.2 + 0.22 * len(order) * (1 + len(models)))
    bars = {}
    for name, analysis in models.items():
        precision = analysis.results["all"].precision[:, order]
        prefix = f"{name}: " if len(models) > 1 else ""
        bars[f"{prefix}AP"] = np.nanmean(precision, axis=0)
        if len(models) == 1:
            bars["AP50"] = precision[0]
    _bars(figure.subplots(), bars, names, horizontal=True)
    return _png(figure)


def plot_sizes(models: dict[str, Analysis], names: Sequence[str]) -> bytes:
    """Bars of AP and of the average recall of size classes."""
    first = next(iter(models.values()))
    figure = new_figure(_WIDTH, 3.2)
    labels = [first.describe_size(name).replace(" (", "\n(") for name in names]
    for ax, what in zip(figure.subplots(1, 2, sharey=True), ("ap", "ar"), strict=True):
        bars = {
            name: np.array([getattr(analysis.results[size], what) for size in names])
            for name, analysis in models.items()
        }
        _bars(ax, bars, labels, horizontal=False, legend=len(models) > 1)
        ax.set_title("AP (%)" if what == "ap" else "average recall (%)")
        ax.tick_params("x", labelsize=7 if len(names) > 3 else 8)
    return _png(figure)


def _bars(
    ax: Axes,
    bars: dict[str, np.ndarray],
    labels: Sequence[str],
    horizontal: bool,
    legend: bool = True,
) -> None:
    width = 0.84 / len(bars)
    for i, (name, values) in enumerate(bars.items()):
        place = np.arange(len(labels)) + (i - (len(bars) - 1) / 2) * width
        heights = np.nan_to_num(values)
        draw = ax.barh if horizontal else ax.bar
        drawn = draw(place, heights, 0.92 * width, color=COLORS[i % len(COLORS)], label=name)
        ax.bar_label(drawn, ["–" if np.isnan(v) else f"{v:.0f}" for v in values], fontsize=7,
                     padding=2)  # fmt: skip
    if horizontal:
        ax.set_yticks(range(len(labels)), labels)
        ax.set(xlim=(0, 105), xlabel="%")
        ax.invert_yaxis()
    else:
        ax.set_xticks(range(len(labels)), labels)
        ax.set(ylim=(0, 105))
    ax.grid(axis="x" if horizontal else "y", alpha=0.3)
    ax.set_axisbelow(True)
    if legend and len(bars) > 1:
        ax.legend(fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(1, 1))


def plot_curves(models: dict[str, Analysis], order: Sequence[int]) -> bytes:
    """Precision against recall, and F1 against the score, of classes at IoU 0.5."""
    figure = new_figure(_WIDTH, 3.9)
    precision, f1 = figure.subplots(1, 2)
    for m, (name, analysis) in enumerate(models.items()):
        for i, label in enumerate(order):
            curve = analysis.curves[label]
            if not curve.objects or not len(curve.scores):
                continue
            style = {"color": COLORS[i % len(COLORS)], "linestyle": LINES[(m or i // 7) % 4]}
            text = analysis.data.classes[label] + (f" ({name})" if len(models) > 1 else "")
            precision.plot(curve.recall, curve.precision, label=text, **style)
            f1.plot(curve.scores, curve.f1, **style)
            threshold = analysis.thresholds[label]
            if threshold is not None:
                f1.plot(threshold, curve.f1.max(), "o", ms=5, color=style["color"])
    precision.set(xlabel="recall", ylabel="precision", xlim=(0, 1.01), ylim=(0, 1.02),
                  title="precision and recall, IoU 0.5")  # fmt: skip
    f1.set(xlabel="threshold of the score", ylabel="F1", xlim=(0, 1), ylim=(0, 1.02),
           title="F1, with the best threshold")  # fmt: skip
    for ax in (precision, f1):
        ax.grid(alpha=0.3)
    if precision.lines:
        figure.legend(loc="outside lower center", ncols=5, fontsize=8, frameon=False)
    return _png(figure)


def plot_confusion(analysis: Analysis) -> bytes:
    """The confusion matrix: counts, colored by their share of the row."""
    matrix, names = analysis.confusion, analysis.data.classes
    size = len(matrix)
    figure = new_figure(min(_WIDTH, 3.4 + 0.75 * size), min(9.0, 2.0 + 0.55 * size))
    ax = figure.subplots()
    shares = matrix / np.maximum(1, matrix.sum(axis=1, keepdims=True))
    shares[-1] = 0  # detections without an object: not a share that is right or wrong
    ax.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    ax.set_xticks(range(size), [*names, "not found"], rotation=90 if size > 5 else 0)
    ax.set_yticks(range(size), [*names, "no object"])
    ax.set(xlabel="detected as", ylabel="object")
    for row, column in zip(*np.nonzero(matrix), strict=True):
        ax.text(column, row, str(matrix[row, column]), ha="center", va="center",
                fontsize=9 if size <= 12 else 6,
                color="white" if shares[row, column] > 0.5 else "black")  # fmt: skip
    return _png(figure)


def plot_errors(models: dict[str, Analysis]) -> bytes:
    """AP50 lost by each kind of error, and the number of errors by the size of the object."""
    figure = new_figure(_WIDTH, 3.3)
    lost, counts = figure.subplots(1, 2)
    bars = {name: np.array([a.lost[k] for k in KINDS]) for name, a in models.items()}
    _bars(lost, bars, KINDS, horizontal=True, legend=False)
    largest = max(1.0, *(float(np.nanmax(values)) for values in bars.values()))
    lost.set(xlim=(0, 1.15 * largest), xlabel="points of AP50", title="lost AP50 (dAP)")
    if len(models) > 1:
        by_model = {
            name: np.array([a.errors.count(k) for k in KINDS], dtype=float)
            for name, a in models.items()
        }
        _bars(counts, by_model, KINDS, horizontal=True)
        top = max(1.0, *(float(values.max()) for values in by_model.values()))
        counts.set(xlim=(0, 1.15 * top), xlabel="errors", title="errors above the thresholds")
        return _png(figure)
    analysis = next(iter(models.values()))
    left = np.zeros(len(KINDS))
    for i, (name, (low, high)) in enumerate(analysis.sizes.items()):
        areas = [analysis.error_areas(kind) for kind in KINDS]
        # A bound lies between two objects; a detection on none may lie exactly on it.
        width = np.array([((a >= low) & (a < high)).sum() for a in areas])
        counts.barh(KINDS, width, left=left, color=COLORS[i % len(COLORS)],
                    label=analysis.describe_size(name))  # fmt: skip
        left = left + width
    counts.invert_yaxis()
    counts.set(xlabel="errors", title="errors above the thresholds, by size")
    counts.grid(axis="x", alpha=0.3)
    counts.set_axisbelow(True)
    counts.legend(fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    return _png(figure)


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()
