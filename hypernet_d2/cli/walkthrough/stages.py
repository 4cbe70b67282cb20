"""Pictures of the stages of HyperNet, in the order of the paper, with a text for each."""

from __future__ import annotations

from typing import NamedTuple

import matplotlib
import numpy as np
from detectron2.config import CfgNode
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from hypernet_d2.engine import Predictor
from hypernet_d2.engine.visualizer import BoxVisualizer, score_colors
from hypernet_d2.layers import WindowGrid, hypercolumn_picture

from ..contact_sheet import CELL_WIDTH
from ..web.upload import tile_channels
from .tracing import Trace

WIDTH = 10  # inches of a picture
BESIDE_BAR = 0.87  # fraction of the width that a color bar leaves
MAP_CHANNELS = 3  # channels drawn of each map of the trunk
REGIONS = 6  # proposals whose pooled regions are drawn


class Stage(NamedTuple):
    """A picture, the section of the paper that it belongs to, and the text below it."""

    name: str
    title: str
    section: str
    text: str
    figure: Figure


def show_overview(predictor: Predictor, seen: Trace, results: dict[str, np.ndarray]) -> Stage:
    height, width = seen.image.shape[:2]
    figure, axes = new_figure(2, 2, height / width)
    truth, *_ = results.items() if len(results) > 1 else [("the image", seen.image)]
    *_, detections = results.items()
    heat = np.max(list(objectness_maps(predictor, seen).values()), axis=0)
    draw_heat(axes[0, 1], heat, seen.image)
    axes[0, 1].set_title(f"objectness of {len(seen.objectness):,} windows")
    pictures = {(0, 0): truth, (1, 0): draw_proposals(seen), (1, 1): detections}
    for place, (title, picture) in pictures.items():
        axes[place].imshow(picture)
        axes[place].set_title(title)
    return Stage(
        "overview",
        "From windows to detections",
        "3, figure 2",
        "The windows of a regular grid are scored on the hyper feature; the best become proposals, "
        "which become detections.",
        figure,
    )


def show_image(predictor: Predictor, seen: Trace, size: tuple[int, int]) -> Stage:
    height, width = seen.image.shape[:2]
    figure, axes = new_figure(1, 1, height / width)
    axes[0, 0].imshow(seen.image)
    return Stage(
        "image",
        f"The image, resized to {width} x {height} pixels",
        "3, figure 2",
        f"The image of {size[1]} x {size[0]} pixels is resized to {width} x {height} (the paper: a "
        f"short side of 600), the mean is subtracted, and it is padded to {seen.padded_size[1]} x "
        f"{seen.padded_size[0]}, a multiple of the largest stride.",
        figure,
    )


def show_trunk(predictor: Predictor, seen: Trace) -> Stage:
    height, width = seen.image.shape[:2]
    figure, axes = new_figure(len(seen.maps), 1 + MAP_CHANNELS, height / width)
    for row, (name, x) in zip(axes, seen.maps.items(), strict=True):
        picked = x[0].flatten(1).std(dim=1).topk(min(MAP_CHANNELS, x.shape[1])).indices.tolist()
        pictures = {"mean": x[0].mean(dim=0), **{f"channel {i}": x[0, i] for i in picked}}
        for ax, (what, picture) in zip(row, pictures.items(), strict=False):
            ax.imshow(picture, cmap="gray", interpolation="nearest")
            ax.set_title(f"{name}, {what}")
    strides = predictor.model.backbone.hyper_feature.in_strides
    shapes = [f"{name} {shape(x[0])} at stride {strides[name]}" for name, x in seen.maps.items()]
    return Stage(
        "trunk",
        "Maps of the trunk: mean over the channels, and the channels of largest variance",
        "3.1",
        f"Shapes (channels, height, width): {', '.join(shapes)}. A low map locates edges "
        "precisely; a high map has the semantics.",
        figure,
    )


def show_hyper_feature(predictor: Predictor, seen: Trace) -> Stage:
    parts = dict(zip(seen.maps, seen.hyper.chunk(len(seen.maps)), strict=True))
    sheets = {name: tile_channels(part.numpy()) for name, part in parts.items()}
    aspect = max(sheet.shape[0] / sheet.shape[1] for sheet in sheets.values())
    figure, (axes,) = new_figure(1, len(sheets), aspect)
    for ax, (name, sheet) in zip(axes, sheets.items(), strict=True):
        ax.imshow(sheet)
        ax.set_title(f"from {name}: {len(parts[name])} channels")
    feature = predictor.model.backbone.hyper_feature
    branch = next(iter(feature.branches.values()))
    kernel = " x ".join(map(str, branch.conv.kernel_size))
    return Stage(
        "hyper_feature",
        f"The hyper feature: all {len(seen.hyper)} channels",
        "3.1",
        f"Each map is brought to stride {feature.stride} by max pooling or upsampling, a {kernel} "
        f"convolution gives {branch.conv.out_channels} channels, which are normalized, and all are "
        f"concatenated: {shape(seen.hyper)}. Each channel is drawn from 0 (black) to its maximum.",
        figure,
    )


def show_windows(predictor: Predictor, seen: Trace) -> Stage:
    grid = predictor.model.proposal_generator.scorer.grid
    counts = [ny * nx for ny, nx in grid.counts(seen.map_size)]
    height, width = seen.image.shape[:2]
    figure = Figure(figsize=(WIDTH, 0.6 * WIDTH * height / width + 0.6), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1.6, 1))
    left.axis("off")
    left.imshow(seen.image)
    left.set_title("all shapes at one point, colored by size")
    sizes = shapes_by_size(predictor.cfg, grid)
    colors = score_colors(np.linspace(0.05, 0.95, len(sizes)))
    labels = []
    for color, indices in zip(colors, sizes.values(), strict=True):
        for index in indices:
            h, w = ((side - 1) * grid.feature_stride for side in grid.shapes[index])
            corner = ((width - w) / 2, (height - h) / 2)
            left.add_patch(Rectangle(corner, w, h, fill=False, edgecolor=color, linewidth=1.3))
            bar = right.barh(len(labels), counts[index], color=color)
            right.bar_label(bar, [f"{counts[index]:,}"], fontsize=7, padding=2)
            labels.append(f"{w} x {h}")
    right.set_yticks(range(len(labels)), labels, fontsize=7)
    right.invert_yaxis()
    right.margins(x=0.2, y=0.01)
    right.set(xlabel="windows in this image", ylabel="width x height (pixels)")
    return Stage(
        "windows",
        f"The grid: {sum(counts):,} windows of {len(counts)} shapes",
        "3.2",
        f"The windows of each of the {len(counts)} shapes lie on a regular grid, whose step grows "
        f"with their size: {sum(counts):,} in all (the paper: about 30,000 in an image of 1000 x "
        "600).",
        figure,
    )


def show_objectness(predictor: Predictor, seen: Trace) -> Stage:
    maps = objectness_maps(predictor, seen)
    columns = 3 if len(maps) > 4 else 2
    aspect = BESIDE_BAR * seen.image.shape[0] / seen.image.shape[1]
    figure, axes = new_figure(-(-len(maps) // columns), columns, aspect)
    for ax, (size, heat) in zip(axes.flat, maps.items(), strict=False):
        drawn = draw_heat(ax, heat, seen.image)
        ax.set_title(f"windows of size {size:g}")
    figure.colorbar(drawn, ax=axes, shrink=0.8, label="objectness")
    scorer = predictor.model.proposal_generator.scorer
    bins, count = scorer.pooler_resolution, len(seen.objectness)
    return Stage(
        "objectness",
        "Objectness of the windows, at their centers",
        "3.2",
        f"Each window is pooled to {bins} x {bins}; a 3 x 3 convolution to "
        f"{scorer.conv.out_channels} channels and a layer of {scorer.fc.out_features} units give "
        f"the objectness, ({count},), and the box deltas, ({count}, 4). The size is the square "
        "root of the area, in pixels. Each cell shows the maximum over the aspect ratios; gray "
        "cells are the center of no window.",
        figure,
    )


def show_proposals(predictor: Predictor, seen: Trace) -> Stage:
    title, picture = draw_proposals(seen)
    figure, axes = new_figure(1, 1, BESIDE_BAR * picture.shape[0] / picture.shape[1])
    axes[0, 0].imshow(picture)
    limits = Normalize(seen.proposal_objectness.min(), seen.proposal_objectness.max())
    figure.colorbar(ScalarMappable(limits, "plasma"), ax=axes, shrink=0.8, label="objectness")
    threshold = predictor.model.proposal_generator.nms_thresh
    return Stage(
        "proposals",
        f"The best {title}",
        "3.2",
        "The deltas are applied to the best windows, non-maximum suppression at an IoU of "
        f"{threshold:g} removes near duplicates, and the best {len(seen.proposals)} are kept, "
        f"{shape(seen.proposals)}.",
        figure,
    )


def show_regions(predictor: Predictor, seen: Trace) -> Stage:
    classes = predictor.metadata.get("thing_classes")
    names = [*(classes or map(str, range(seen.probabilities.shape[1] - 1))), "background"]
    figure, axes = new_figure(2, REGIONS, 1.2)
    for rank, (top, below) in enumerate(axes.T[: len(seen.proposals)]):
        x0, y0, x1, y1 = seen.proposals[rank].tolist()
        top.imshow(seen.image[int(y0) : int(y1) + 1, int(x0) : int(x1) + 1])
        top.set_title(f"proposal {rank + 1}")
        best = int(seen.probabilities[rank].argmax())
        below.imshow(seen.regions[rank].mean(dim=0), cmap="gray", interpolation="nearest")
        below.set_title(f"{names[best]}: {seen.probabilities[rank, best]:.0%}")
    return Stage(
        "regions",
        f"The best {REGIONS} proposals, pooled and classified",
        "3.3",
        f"Each proposal is pooled to {shape(seen.regions[0])}; the lower row shows the mean over "
        "the channels. The box head gives the probabilities of the classes and of background, "
        f"{shape(seen.probabilities)}, and a box for each class.",
        figure,
    )


def show_detections(predictor: Predictor, seen: Trace, results: dict[str, np.ndarray]) -> Stage:
    figure, (axes,) = new_figure(1, len(results), seen.image.shape[0] / seen.image.shape[1])
    for ax, (title, picture) in zip(axes, results.items(), strict=True):
        ax.imshow(picture)
        ax.set_title(title)
    threshold = predictor.cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST
    return Stage(
        "detections",
        f"Detections with a score above {threshold:g}",
        "3.3",
        "Non-maximum suppression for each class at an IoU of "
        f"{predictor.cfg.MODEL.ROI_HEADS.NMS_THRESH_TEST:g}.",
        figure,
    )


def show_hypercolumns(predictor: Predictor, seen: Trace) -> Stage:
    height, width = seen.image.shape[:2]
    columns = hypercolumn_picture(seen.maps, (height, width))
    figure, (axes,) = new_figure(1, 2, height / width)
    pictures = {"image": seen.image, "its hypercolumns": columns}
    for ax, (title, picture) in zip(axes, pictures.items(), strict=True):
        ax.imshow(picture)
        ax.set_title(title)
    channels = sum(x.shape[1] for x in seen.maps.values())
    return Stage(
        "hypercolumns",
        "Hypercolumns: the features of each pixel",
        "3 of Hariharan et al., CVPR 2015",
        f"The interpolated activations of {', '.join(seen.maps)} at each pixel: ({height}, "
        f"{width}, {channels}). Their three principal components are drawn as red, green and blue: "
        "pixels of similar color have similar features.",
        figure,
    )


def shapes_by_size(cfg: CfgNode, grid: WindowGrid) -> dict[float, list[int]]:
    """{size of the config, in pixels: indices of the shapes that are nearest to it}."""
    sizes = sorted(cfg.MODEL.HYPERNET.PROPOSALS.SIZES)
    sides = [np.sqrt((h - 1) * (w - 1)) * grid.feature_stride for h, w in grid.shapes]
    nearest = [min(sizes, key=lambda size: abs(np.log(size / max(side, 1)))) for side in sides]
    found = {size: [i for i, near in enumerate(nearest) if near == size] for size in sizes}
    return {size: indices for size, indices in found.items() if indices}


def objectness_maps(predictor: Predictor, seen: Trace) -> dict[float, np.ndarray]:
    """{size: (h, w)}, the objectness of the window that is centered on a cell of the hyper feature.

    It is the maximum over the shapes of that size, and -1 if no window is centered on the cell.
    """
    grid = predictor.model.proposal_generator.scorer.grid
    counts = grid.counts(seen.map_size)
    parts = seen.objectness.split([ny * nx for ny, nx in counts])
    heats = []
    for part, extents, strides, count in zip(parts, grid.shapes, grid.strides, counts, strict=True):
        index, centered = [], []
        for cells, extent, stride, n in zip(
            seen.hyper.shape[1:], extents, strides, count, strict=True
        ):
            # In cells, the center of window k is at k * stride + (extent - 1) / 2.
            k = (np.arange(cells) + 0.5 - (extent - 1) / 2) / stride
            index.append(np.clip(np.rint(k), 0, n - 1).astype(int))
            centered.append(np.abs(k - index[-1]) <= 0.5)
        heat = part.view(count).numpy()[np.ix_(*index)]
        heats.append(np.where(centered[0][:, None] & centered[1], heat, -1))
    sizes = shapes_by_size(predictor.cfg, grid)
    return {size: np.max([heats[i] for i in indices], axis=0) for size, indices in sizes.items()}


def draw_heat(ax: Axes, heat: np.ndarray, image: np.ndarray) -> ScalarMappable:
    """Draw objectness over the gray image, and return the mappable for a color bar."""
    height, width = image.shape[:2]
    ax.imshow(image.mean(axis=2), cmap="gray", vmin=0, vmax=255)
    colors = matplotlib.colormaps["plasma"].with_extremes(under=(0, 0, 0, 0))
    return ax.imshow(
        heat,
        cmap=colors,
        vmin=0,
        vmax=1,
        alpha=0.7,
        extent=(-0.5, width - 0.5, height - 0.5, -0.5),
    )


def draw_proposals(seen: Trace) -> tuple[str, np.ndarray]:
    """Title and picture."""
    scores = seen.proposal_objectness.numpy()
    visualizer = BoxVisualizer(seen.image, scale=CELL_WIDTH / seen.image.shape[1])
    limits = (scores.min(initial=1.0), scores.max(initial=0.0))
    picture = visualizer.draw_proposals(seen.proposals.numpy(), scores, limits).get_image()
    return f"{len(scores)} proposals", picture


def new_figure(rows: int, columns: int, aspect: float) -> tuple[Figure, np.ndarray]:
    """A figure and its axes (rows, columns), for titled pictures with height / width ``aspect``."""
    height = rows * (WIDTH / columns * aspect + 0.3) + 0.3
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for ax in axes.flat:
        ax.axis("off")
    return figure, axes


def shape(x: Tensor) -> str:
    return str(tuple(x.shape))
