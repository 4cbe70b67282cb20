"""Walks through HyperNet on one image, with a picture of each stage of the paper.

    python demo/walkthrough.py [--config-file CONFIG] [--image FILE] --output DIR [KEY VALUE ...]

Without a config it takes the model that `make demo` trained, and without an image the first of the
config's test set. DIR/index.md has the pictures with the section of the paper that each belongs to
and the shapes of what it shows.
"""

from __future__ import annotations

import argparse
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from hypernet_d2.data import load_dataset
from hypernet_d2.data.dataset_mapper import read_named
from hypernet_d2.engine import Predictor, add_data_argument, setup_cfg
from hypernet_d2.engine.visualizer import BoxVisualizer, score_colors
from hypernet_d2.layers import WindowGrid, hypercolumn_picture
from hypernet_d2.modeling import HyperBackbone, HyperNetProposals

from .contact_sheet import CELL_WIDTH, draw_detections, draw_ground_truth
from .views import output_of
from .web import tile_channels

DEMO_CONFIG = "configs/Digits-Detection/hypernet_R_18_demo.yaml"
DEMO_WEIGHTS = "output/demo/model_final.pth"
WIDTH, DPI = 10, 100  # inches of a picture, and dots an inch
BESIDE_BAR = 0.87  # part of the width that a color bar leaves
MAP_CHANNELS = 3  # channels shown of each map of the trunk
REGIONS = 6  # proposals whose pooled regions are shown


class Trace(NamedTuple):
    """What one image leaves in the model on its way. Padding is cut off the image and the maps."""

    image: np.ndarray  # (H, W, 3) uint8, RGB, as the network sees it
    padded: tuple[int, int]  # (H, W) of the network's input
    maps: dict[str, Tensor]  # {name: (1, C, h, w)}, those that the hyper feature is made of
    hyper: Tensor  # (C, h, w)
    map_size: tuple[int, int]  # (h, w) of the padded hyper feature
    objectness: Tensor  # (R,) in [0, 1], of all windows
    proposals: Tensor  # (K, 4), x0, y0, x1, y1 in pixels of the network's input, best first
    proposal_objectness: Tensor  # (K,) in [0, 1]
    regions: Tensor  # (K, C, p, p), pooled
    probabilities: Tensor  # (K, classes + 1), the last of the background


class Stage(NamedTuple):
    """A picture with what there is to say of it."""

    name: str
    title: str
    section: str
    text: str
    figure: Figure


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    add = parser.add_argument
    add("--config-file", help=f"config of a HyperNet (default: {DEMO_CONFIG}, and its weights)")
    add("--image", type=Path, help="default: the first of the config's DATASETS.TEST")
    add("--output", required=True, type=Path, help="folder for the pictures and index.md")
    add("--threshold", type=float, default=0.5, help="least score of a detection (default: 0.5)")
    add("--format", choices=("png", "jpg"), default="png", help="of the pictures (default: png)")
    add_data_argument(parser)
    add("opts", nargs=argparse.REMAINDER, help="KEY VALUE ..., as in train_net.py")
    args = parser.parse_args(argv)
    if not 0 <= args.threshold <= 1:
        parser.error(f"--threshold {args.threshold}: expected a number from 0 to 1")
    if args.image and not args.image.is_file():
        parser.error(f"--image {args.image}: no such file")
    if args.output.exists() and not args.output.is_dir():
        parser.error(f"--output {args.output}: is a file; expected a folder")
    if args.config_file is None:
        args.config_file = DEMO_CONFIG
        if "MODEL.WEIGHTS" not in args.opts:
            if not Path(DEMO_WEIGHTS).is_file():
                parser.error(
                    f"{DEMO_WEIGHTS} is missing: `make demo` trains it; or name another model: "
                    "--config-file CONFIG ... MODEL.WEIGHTS FILE"
                )
            args.opts += ["MODEL.WEIGHTS", DEMO_WEIGHTS]
    return args


def load(args: argparse.Namespace) -> Predictor:
    """
    Raises:
        ValueError: the config is not of a HyperNet.
    """
    cfg = setup_cfg(args)
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = args.threshold
    predictor = Predictor(cfg)
    model = predictor.model
    for key, part, kind in (
        ("MODEL.BACKBONE.NAME", model.backbone, HyperBackbone),
        ("MODEL.PROPOSAL_GENERATOR.NAME", model.proposal_generator, HyperNetProposals),
    ):
        if not isinstance(part, kind):
            raise ValueError(
                f"{args.config_file}: {key} builds a {type(part).__name__}; expected a "
                f"{kind.__name__}, as this walk is through HyperNet"
            )
    return predictor


def find_image(args: argparse.Namespace, cfg: CfgNode) -> tuple[Path, dict | None]:
    """The image, and its record in the test set, None where it is not of the set."""
    name = cfg.DATASETS.TEST[0]
    records = load_dataset(name) if args.image is None or name in DatasetCatalog else []
    if args.image is None:
        return Path(records[0]["file_name"]), records[0]
    same = (r for r in records if Path(r["file_name"]).resolve() == args.image.resolve())
    return args.image, next(same, None)


@torch.no_grad()
def trace(predictor: Predictor, image: np.ndarray) -> Trace:
    """Runs the model on an image (H, W, 3), BGR, and keeps what passes by."""
    model = predictor.model
    generator, heads = model.proposal_generator, model.roi_heads
    modules = {
        "trunk": model.backbone.trunk,
        "backbone": model.backbone,
        "scorer": generator.scorer,
        "proposals": generator,
        "pooler": heads.box_pooler,
        "predictor": heads.box_predictor,
    }
    with ExitStack() as stack:
        seen = {key: stack.enter_context(output_of(part)) for key, part in modules.items()}
        predictor(image)
    out = {key: value["output"] for key, value in seen.items()}
    (proposals,), _ = out["proposals"]
    h, w = proposals.image_size
    strides = model.backbone.hyper_feature.in_strides
    hyper = out["backbone"][generator.in_feature]
    probabilities, _ = out["predictor"]
    return Trace(
        image=predictor.aug.get_transform(image).apply_image(image)[:, :, ::-1],
        padded=tuple(seen["backbone"]["inputs"][0].shape[-2:]),
        maps={name: cut(out["trunk"][name], h, w, stride) for name, stride in strides.items()},
        hyper=cut(hyper, h, w, model.backbone.hyper_feature.stride)[0],
        map_size=tuple(hyper.shape[-2:]),
        objectness=out["scorer"][0][0].sigmoid().cpu(),
        proposals=proposals.proposal_boxes.tensor.cpu(),
        proposal_objectness=proposals.objectness_logits.sigmoid().cpu(),
        regions=out["pooler"].cpu(),
        probabilities=probabilities.softmax(dim=1).cpu(),
    )


def cut(x: Tensor, h: int, w: int, stride: int) -> Tensor:
    """The part of a map (N, C, ...) that an image of h x w pixels covers, on the CPU."""
    return x[..., : -(-h // stride), : -(-w // stride)].float().cpu()


# The stages, in the paper's order


def show_overview(predictor: Predictor, seen: Trace, found: dict[str, np.ndarray]) -> Stage:
    height, width = seen.image.shape[:2]
    figure, axes = new_figure(2, 2, height / width)
    truth, *_ = found.items() if len(found) > 1 else [("the image", seen.image)]
    *_, detections = found.items()
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
        "The windows of a regular grid are scored on the hyper feature, the best become proposals, "
        "and those become detections.",
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
        f"{size[1]} x {size[0]} pixels, resized to {width} x {height} (the paper: a short side of "
        f"600), less the mean, and padded to {seen.padded[1]} x {seen.padded[0]}, whole cells of "
        "the coarsest map.",
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
        "Maps of the trunk: their mean, and the channels that vary most",
        "3.1",
        f"(channels, height, width): {', '.join(shapes)}. The low map knows where an edge is, the "
        "high one what is there.",
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
        f"Each map is brought to stride {feature.stride} (pooled down or enlarged), convolved by "
        f"{kernel} to {branch.conv.out_channels} channels, normalised, and all are concatenated: "
        f"{shape(seen.hyper)}. Each channel is shown from 0 (black) to its own maximum.",
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
    left.set_title("all shapes around one point, a color a size")
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
        f"Windows of {len(counts)} shapes on regular grids, whose steps grow with the windows: "
        f"{sum(counts):,} in all (the paper: about 30,000 in an image of 1000 x 600).",
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
        "Objectness of the windows, at their centres",
        "3.2",
        f"Every window is pooled to {bins} x {bins}, convolved by 3 x 3 to "
        f"{scorer.conv.out_channels} channels, and a layer of {scorer.fc.out_features} gives its "
        f"objectness, ({count},), and the offsets of its box, ({count}, 4). The size is the square "
        "root of the area, in pixels. A place has the best of the aspect ratios; where it is grey, "
        "no window has its centre.",
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
        "The best windows are moved by their offsets; of two that overlap by an IoU above "
        f"{threshold:g} the worse one goes, and the best {len(seen.proposals)} stay, "
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
        f"Each proposal is pooled to {shape(seen.regions[0])}, of which the lower row shows the "
        "mean; two layers give the probability of each class and of background, "
        f"{shape(seen.probabilities)}, and a box for each class.",
        figure,
    )


def show_detections(predictor: Predictor, seen: Trace, found: dict[str, np.ndarray]) -> Stage:
    figure, (axes,) = new_figure(1, len(found), seen.image.shape[0] / seen.image.shape[1])
    for ax, (title, picture) in zip(axes, found.items(), strict=True):
        ax.imshow(picture)
        ax.set_title(title)
    threshold = predictor.cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST
    return Stage(
        "detections",
        f"Detections with a score above {threshold:g}",
        "3.3",
        "Of boxes of one class that overlap by an IoU above "
        f"{predictor.cfg.MODEL.ROI_HEADS.NMS_THRESH_TEST:g} the best stays.",
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
        "Hypercolumns: what the trunk knows of each pixel",
        "3 of Hariharan et al., CVPR 2015",
        f"The activations of {', '.join(seen.maps)} above a pixel, interpolated: {channels} "
        f"numbers, ({height}, {width}, {channels}) in all. Their three principal components are "
        "red, green and blue, so pixels of like color are alike to the trunk.",
        figure,
    )


# What they draw


def shapes_by_size(cfg: CfgNode, grid: WindowGrid) -> dict[float, list[int]]:
    """{size of the config, in pixels: the indices of the shapes nearest to it}."""
    sizes = sorted(cfg.MODEL.HYPERNET.PROPOSALS.SIZES)
    sides = [np.sqrt((h - 1) * (w - 1)) * grid.feature_stride for h, w in grid.shapes]
    nearest = [min(sizes, key=lambda size: abs(np.log(size / max(side, 1)))) for side in sides]
    found = {size: [i for i, near in enumerate(nearest) if near == size] for size in sizes}
    return {size: indices for size, indices in found.items() if indices}


def objectness_maps(predictor: Predictor, seen: Trace) -> dict[float, np.ndarray]:
    """{size: (h, w), the cells of the hyper feature}: the objectness of the window whose centre is
    nearest, the best of the shapes of that size; -1 where no window has its centre."""
    grid = predictor.model.proposal_generator.scorer.grid
    counts = grid.counts(seen.map_size)
    parts = seen.objectness.split([ny * nx for ny, nx in counts])
    heats = []
    for part, extents, strides, count in zip(parts, grid.shapes, grid.strides, counts, strict=True):
        index, there = [], []
        for cells, extent, stride, n in zip(
            seen.hyper.shape[1:], extents, strides, count, strict=True
        ):
            # In cells, the centre of window k lies at k * stride + (extent - 1) / 2.
            k = (np.arange(cells) + 0.5 - (extent - 1) / 2) / stride
            index.append(np.clip(np.rint(k), 0, n - 1).astype(int))
            there.append(np.abs(k - index[-1]) <= 0.5)
        heat = part.view(count).numpy()[np.ix_(*index)]
        heats.append(np.where(there[0][:, None] & there[1], heat, -1))
    sizes = shapes_by_size(predictor.cfg, grid)
    return {size: np.max([heats[i] for i in indices], axis=0) for size, indices in sizes.items()}


def draw_heat(ax: Axes, heat: np.ndarray, image: np.ndarray) -> ScalarMappable:
    """Objectness over the image in grey; returns what a color bar needs."""
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
    """What it is, and the picture."""
    scores = seen.proposal_objectness.numpy()
    visualizer = BoxVisualizer(seen.image, scale=CELL_WIDTH / seen.image.shape[1])
    limits = (scores.min(initial=1.0), scores.max(initial=0.0))
    picture = visualizer.draw_proposals(seen.proposals.numpy(), scores, limits).get_image()
    return f"{len(scores)} proposals", picture


def draw_found(
    predictor: Predictor, image: np.ndarray, record: dict | None
) -> dict[str, np.ndarray]:
    """{what it is: the picture}: the ground truth, where there is a record, and the detections."""
    drawn, count = draw_detections(image, predictor)
    found = {f"detections: {count}": drawn}
    if record is None:
        return found
    # The class numbers of the set may be others than the model's.
    metadata = MetadataCatalog.get(predictor.cfg.DATASETS.TEST[0])
    truth = draw_ground_truth(image, metadata, record)
    return {f"ground truth: {len(record['annotations'])}": truth, **found}


def new_figure(rows: int, columns: int, aspect: float) -> tuple[Figure, np.ndarray]:
    """A figure and its axes (rows, columns), for pictures of that height by width with a title."""
    height = rows * (WIDTH / columns * aspect + 0.3) + 0.3
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for ax in axes.flat:
        ax.axis("off")
    return figure, axes


def shape(x: Tensor) -> str:
    return str(tuple(x.shape))


def walk(predictor: Predictor, image: np.ndarray, record: dict | None) -> list[Stage]:
    """All stages of an image (H, W, 3), BGR, with its record in the data set, if it has one."""
    seen = trace(predictor, image)
    found = draw_found(predictor, image[:, :, ::-1], record)
    return [
        show_overview(predictor, seen, found),
        show_image(predictor, seen, image.shape[:2]),
        show_trunk(predictor, seen),
        show_hyper_feature(predictor, seen),
        show_windows(predictor, seen),
        show_objectness(predictor, seen),
        show_proposals(predictor, seen),
        show_regions(predictor, seen),
        show_detections(predictor, seen, found),
        show_hypercolumns(predictor, seen),
    ]


def write(stages: list[Stage], title: str, folder: Path, suffix: str) -> Path:
    """The pictures and index.md, whose path is returned."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [f"# {title}", ""]
    for number, stage in enumerate(stages):
        file = f"{number}_{stage.name}.{suffix}"
        heading = f"{number}. {stage.title}" if number else stage.title
        stage.figure.suptitle(heading, fontsize=12)
        stage.figure.savefig(folder / file, dpi=DPI, bbox_inches="tight", pad_inches=0.08)
        lines += [f"## {heading}", "", f"![{stage.title}]({file})", ""]
        lines += [f"Section {stage.section}. {stage.text}", ""]
    index = folder / "index.md"
    index.write_text("\n".join(lines), encoding="utf-8")
    return index


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    predictor = load(args)
    path, record = find_image(args, predictor.cfg)
    stages = walk(predictor, read_named(path), record)
    title = f"{Path(args.config_file).stem} on {path.name}, stage by stage"
    print(write(stages, title, args.output, args.format))
    return 0
