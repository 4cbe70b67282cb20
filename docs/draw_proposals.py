"""Draws docs/proposals.png: how all windows of a grid are scored without pooling each window."""

from collections.abc import Collection
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402
from matplotlib.axes import Axes  # noqa: E402
from matplotlib.patches import Rectangle  # noqa: E402

INK, BLUE, ORANGE, GRAY = "#222222", "#2f6fb0", "#d9822b", "#b8b8b8"


def main() -> None:
    figure, axes = plt.subplots(1, 3, figsize=(13, 4.6), width_ratios=[1.0, 1.25, 1.0])
    draw_maps(axes[0])
    draw_windows(axes[1])
    draw_selection(axes[2])
    figure.tight_layout()
    figure.savefig(Path(__file__).with_name("proposals.png"), dpi=110)


def draw_maps(ax: Axes) -> None:
    ax.set_title("1. Maps that all windows share", fontsize=12, color=INK)
    stack(ax, 0.3, 6.6, 6, "feature F\n126 channels", GRAY)
    arrow(ax, (2.2, 6.4), (2.2, 5.5), "sliding maximum, kh x kw cells")
    stack(ax, 0.3, 3.3, 6, "M[kh, kw]\n126 channels", BLUE)
    arrow(ax, (2.2, 3.1), (2.2, 2.2), "1x1 convolution for each of 9 taps")
    stack(ax, 0.3, 0.4, 3, "T[kh, kw]\n9 x 4 channels", ORANGE)
    finish(ax, (-0.1, 7.4), (-0.1, 9.2))


def draw_windows(ax: Axes) -> None:
    ax.set_title("2. Windows of one shape", fontsize=12, color=INK)
    rows, columns, h, w, stride = 12, 18, 5, 5, 3
    for y in range(rows + 1):
        ax.plot([0, columns], [y, y], color=GRAY, lw=0.5)
    for x in range(columns + 1):
        ax.plot([x, x], [0, rows], color=GRAY, lw=0.5)
    for y in range(0, 10, stride):
        for x in range(0, 16, stride):
            ax.plot(x + 0.5, y + 0.5, ".", color=INK, ms=3)
    for y, x, color in ((3, 3, BLUE), (3, 6, ORANGE), (9, 15, INK)):
        ax.add_patch(Rectangle((x, y), w, h, fill=False, ec=color, lw=2))
        for k in (1, 2):  # the bins' edges: the same places in every window
            ax.plot([x + 5 * k / 3] * 2, [y, y + h], color=color, lw=0.8, ls=":")
            ax.plot([x, x + w], [y + 5 * k / 3] * 2, color=color, lw=0.8, ls=":")
    ax.add_patch(Rectangle((0, 0), columns, rows, fill=False, ec=INK, lw=1.2))
    ax.text(8.2, 14.35, "beyond the border:\nempty bins are 0", ha="right", va="top", fontsize=9)
    ax.annotate("", (14.9, 12.9), (8.4, 13.7), arrowprops={"arrowstyle": "->", "color": INK})
    note = "Windows start at whole cells, so bin (i, j)\nhas the same extents in all of them."
    ax.text(9, -0.35, note, ha="center", va="bottom", fontsize=9)
    finish(ax, (-0.3, 20.4), (14.6, -2.1))


def draw_selection(ax: Axes) -> None:
    ax.set_title("3. Features are sums of entries of T", fontsize=12, color=INK)
    ax.text(1.75, 8.05, "sum over u: three lines\nfor each row of bins", **CENTRED)
    cells(ax, 0.0, 4.7, 6, 7, rows=(1, 2, 4))
    arrow(ax, (3.7, 6.2), (4.6, 6.2), "")
    ax.text(4.15, 6.35, "+", fontsize=13, ha="center", va="bottom")
    ax.text(
        6.5,
        6.75,
        "all windows of a row share it;\nsum over v: three columns\nfor each bin",
        **CENTRED,
    )
    cells(ax, 4.8, 5.95, 1, 7, columns=(0, 2, 3))
    arrow(ax, (6.55, 5.7), (6.55, 4.2), "+")
    cells(ax, 5.3, 1.5, 5, 5, rows=range(5))
    ax.text(6.55, 1.3, "P x P features,\n4 channels", ha="center", va="top", fontsize=9)
    arrow(ax, (5.1, 2.75), (3.7, 2.75), "")
    ax.text(3.5, 2.75, "fc 256,\nscore, box", va="center", ha="right", fontsize=9)
    finish(ax, (-0.2, 9.2), (-0.3, 9.4))


CENTRED = {"ha": "center", "va": "bottom", "fontsize": 9}


def stack(ax: Axes, x: float, y: float, layers: int, label: str, color: str) -> None:
    for layer in reversed(range(layers)):
        shift = 0.13 * layer
        ax.add_patch(Rectangle((x + shift, y + shift), 3.6, 1.6, fc="white", ec=color, lw=1.2))
    ax.text(x + 5.0, y + 1.0, label, fontsize=10, va="center", ha="left", color=INK)


def cells(
    ax: Axes,
    x: float,
    y: float,
    height: int,
    width: int,
    rows: Collection[int] = (),
    columns: Collection[int] = (),
) -> None:
    size = 0.5
    for i in range(height):
        for j in range(width):
            face = "#cfe0f1" if i in rows or j in columns else "white"
            corner = (x + j * size, y + (height - 1 - i) * size)
            ax.add_patch(Rectangle(corner, size, size, fc=face, ec=GRAY, lw=0.6))


def arrow(ax: Axes, start: tuple, end: tuple, label: str) -> None:
    ax.annotate("", end, start, arrowprops={"arrowstyle": "->", "color": INK})
    ax.text(start[0] + 0.15, (start[1] + end[1]) / 2, label, fontsize=9, va="center")


def finish(ax: Axes, x: tuple, y: tuple) -> None:
    ax.set_xlim(*x)
    ax.set_ylim(*y)
    ax.axis("off")


if __name__ == "__main__":
    main()
