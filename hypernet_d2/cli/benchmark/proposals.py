"""Times the scoring of windows, and the stock RPN.

Scores all windows of an image of 600x1000 pixels (a map of 126x150x250) box by box, as the paper
does, and with WindowScorer's pass over the whole grid. detectron2's RPN runs on a map of 512x38x63
of the same image. All contenders take turns, after a warm-up. Times are medians.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext
from importlib.util import find_spec
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import roi_align, roi_pool

from hypernet_d2.layers.window_scoring import WindowScorer
from hypernet_d2.layers.windows import WindowGrid

from .common import device_name, peak_extra_mb, synchronize

IMAGE_SIZE = (600, 1000)
FEATURE_STRIDE, CHANNELS = 4, 126
RPN_STRIDE, RPN_CHANNELS = 16, 512
SIZES, ASPECT_RATIOS = [8, 16, 32, 64, 128, 256, 512], [0.5, 1.0, 2.0]
PRE_NMS_TOPK, POST_NMS_TOPK, NMS_THRESH = 2000, 100, 0.7
# The fastest chunk size of the reference. Larger chunks do not fit the cache.
BOXES_PER_CHUNK = 256
# One pass over 120,000 boxes takes more than half a minute.
MAX_BOXES_TO_REPEAT = 50_000

VARIANTS = {
    "dense_pool": {"pooler_type": "ROIPool"},
    "dense_align": {"pooler_type": "ROIAlignV2"},
    "sp": {"pooler_type": "ROIPool", "conv_before_pooling": True},
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--windows", type=int, nargs="+", default=[10_000, 30_000, 120_000])
    parser.add_argument("--repeats", type=int, default=9, help="rounds of the fast contenders")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--amp", action="store_true", help="float16 autocast, on a GPU")
    parser.add_argument("--json", type=Path, help="file to write the rows to")


def check_arguments(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    if args.repeats < 1 or min(args.windows, default=0) < 1:
        parser.error("--repeats and --windows must be at least 1")
    if args.amp and torch.device(args.device).type != "cuda":
        parser.error("--amp needs --device cuda")


def run(args: argparse.Namespace) -> None:
    torch.manual_seed(0)
    device = torch.device(args.device)
    rows, counts = [], {}
    autocast = torch.autocast("cuda", torch.float16) if args.amp else nullcontext()
    print(f"{device_name(device)}, {torch.get_num_threads()} threads, PyTorch {torch.__version__}")
    with torch.no_grad(), autocast:
        for asked in args.windows:
            grid = grid_of(asked)
            counts[asked] = grid.num_windows(map_size(FEATURE_STRIDE))
            print(
                f"\n{counts[asked]} windows ({asked} asked for), {grid.num_shapes} shapes",
                flush=True,
            )
            rows += compare_scoring(grid, asked, args.repeats, device)
    if args.json:
        report = {"threads": torch.get_num_threads(), "rows": rows, "windows_scored": counts}
        args.json.write_text(json.dumps(report, indent=2) + "\n")


def map_size(stride: int) -> tuple[int, int]:
    return -(-IMAGE_SIZE[0] // stride), -(-IMAGE_SIZE[1] // stride)


def grid_of(windows: int) -> WindowGrid:
    """Returns the default grid, with strides scaled to give about this number of windows."""
    grids = [
        WindowGrid.from_sizes(SIZES, ASPECT_RATIOS, FEATURE_STRIDE, scale / 3, 16 * scale)
        for scale in torch.arange(0.1, 3, 0.01).tolist()
    ]
    size = map_size(FEATURE_STRIDE)
    return min(grids, key=lambda grid: abs(grid.num_windows(size) - windows))


def compare_scoring(grid: WindowGrid, asked: int, repeats: int, device: torch.device) -> list[dict]:
    """Times the contenders on one grid and returns their rows."""
    x = torch.randn(1, CHANNELS, *map_size(FEATURE_STRIDE), device=device)
    boxes = grid.boxes(map_size(FEATURE_STRIDE), device)
    fast: dict[str, Callable] = {}
    slow: dict[str, Callable] = {}
    scorers: dict[str, WindowScorer] = {}
    for name, options in VARIANTS.items():
        scorer = WindowScorer(CHANNELS, grid, **options).to(device).eval()
        _give_outputs_a_range_of_one(scorer, x)
        scorers[name] = scorer
        fast[name] = _bound(scorer, x)
        slow[name] = _bound(score_per_box, scorer, x, boxes)
        step = whole_step(scorer, x)
        if step is not None:
            fast[f"{name}, whole step"] = step
    rpn = stock_rpn(device)
    if rpn is None:
        print("no row rpn: detectron2 is not installed")
    else:
        fast["rpn"] = rpn

    slow_repeats = 1 if len(boxes) > MAX_BOXES_TO_REPEAT else min(repeats, 3)
    seconds, outputs = time_in_turns(fast, slow, repeats, slow_repeats, device)
    differences = {
        name: max(
            float((a - b).abs().max())
            for a, b in zip(outputs[name], outputs[f"per-box {name}"], strict=True)
        )
        for name in VARIANTS
    }
    memory = {name: peak_extra_mb(f, device) for name, f in fast.items() if "," not in name}
    # The peak does not depend on the number of chunks.
    few = boxes[: 4 * BOXES_PER_CHUNK]
    memory["per_box"] = peak_extra_mb(_bound(score_per_box, scorers["dense_pool"], x, few), device)

    rows = [_row("per_box", asked, seconds["per-box dense_pool"], 1.0, memory, 0.0)]
    for name in VARIANTS:
        ratio = seconds[f"per-box {name}"] / seconds[name]
        rows.append(_row(name, asked, seconds[name], ratio, memory, differences[name]))
    if rpn is not None:
        ratio = seconds["per-box dense_pool"] / seconds["rpn"]
        rows.append(_row("rpn", asked, seconds["rpn"], ratio, memory, None))
    print_table(rows, seconds)
    return rows


def score_per_box(scorer: WindowScorer, x: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
    """Pools every box with all channels, convolves and classifies it, as the paper does."""
    size, scale = scorer.pooler_resolution, 1 / scorer.grid.feature_stride
    feature = F.relu(scorer.conv(x)) if scorer.conv_before_pooling else x
    logits, deltas = [], []
    for chunk in boxes.split(BOXES_PER_CHUNK):
        if scorer.pooler_type == "ROIPool":
            pooled = roi_pool(feature, [chunk], size, scale)
        else:
            ratio = scorer.sampling_ratio
            pooled = roi_align(feature, [chunk], size, scale, ratio, aligned=True)
        if not scorer.conv_before_pooling:
            pooled = F.relu(scorer.conv(pooled))
        hidden = F.relu(scorer.fc(pooled.flatten(1)))
        logits.append(scorer.objectness(hidden).view(1, -1))
        deltas.append(scorer.deltas(hidden)[None])
    return torch.cat(logits, 1), torch.cat(deltas, 1)


def _selection() -> dict:
    """Returns the arguments that both proposal generators are built with."""
    from detectron2.modeling.box_regression import Box2BoxTransform

    return {
        "box2box_transform": Box2BoxTransform((1.0, 1.0, 1.0, 1.0)),
        "batch_size_per_image": 256,
        "positive_fraction": 0.5,
        "pre_nms_topk": (PRE_NMS_TOPK, PRE_NMS_TOPK),
        "post_nms_topk": (POST_NMS_TOPK, POST_NMS_TOPK),
        "nms_thresh": NMS_THRESH,
    }


def whole_step(scorer: WindowScorer, x: Tensor) -> Callable | None:
    """Returns a call of HyperNetProposals: scores, decodes, clips and suppresses boxes."""
    if find_spec("detectron2") is None:
        return None
    from detectron2.modeling.matcher import Matcher
    from detectron2.structures import ImageList

    from hypernet_d2.modeling.proposal_generator.hypernet_proposals import HyperNetProposals

    generator = HyperNetProposals(
        in_feature="hyper",
        scorer=scorer,
        matcher=Matcher([0.3, 0.7], [0, -1, 1]),
        **_selection(),
    ).eval()
    images = ImageList(torch.zeros(1, 3, *IMAGE_SIZE, device=x.device), [IMAGE_SIZE])
    return _bound(generator, images, {"hyper": x})


def stock_rpn(device: torch.device) -> Callable | None:
    """Returns a call of detectron2's RPN, with nine anchors per location."""
    if find_spec("detectron2") is None:
        return None
    from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
    from detectron2.modeling.matcher import Matcher
    from detectron2.modeling.proposal_generator.rpn import RPN, StandardRPNHead
    from detectron2.structures import ImageList

    rpn = RPN(
        in_features=["res4"],
        head=StandardRPNHead(in_channels=RPN_CHANNELS, num_anchors=9),
        anchor_generator=DefaultAnchorGenerator(
            sizes=[[128, 256, 512]], aspect_ratios=[ASPECT_RATIOS], strides=[RPN_STRIDE]
        ),
        anchor_matcher=Matcher([0.3, 0.7], [0, -1, 1]),
        **_selection(),
    )
    images = ImageList(torch.zeros(1, 3, *IMAGE_SIZE, device=device), [IMAGE_SIZE])
    x = torch.randn(1, RPN_CHANNELS, *map_size(RPN_STRIDE), device=device)
    return _bound(rpn.to(device).eval(), images, {"res4": x})


def time_in_turns(
    fast: dict[str, Callable],
    slow: dict[str, Callable],
    repeats: int,
    slow_repeats: int,
    device: torch.device,
) -> tuple[dict[str, float], dict[str, tuple]]:
    """Returns the median seconds and the outputs of each contender.

    Each contender runs once per round, after a warm-up; the slow ones only in the first rounds.
    """
    for function in fast.values():
        function()
    times: dict[str, list[float]] = {}
    outputs = {}
    for turn in range(repeats):
        contenders = dict(fast)
        if turn < slow_repeats:
            contenders |= {f"per-box {name}": function for name, function in slow.items()}
        for name, function in contenders.items():
            synchronize(device)
            start = time.perf_counter()
            outputs[name] = function()
            synchronize(device)
            times.setdefault(name, []).append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}, outputs


def _give_outputs_a_range_of_one(scorer: WindowScorer, x: Tensor) -> None:
    """Scales the outputs to a range of 1, so that absolute differences are relative to it."""
    for layer, output in zip((scorer.objectness, scorer.deltas), scorer(x), strict=True):
        layer.weight.div_((output.max() - output.min()).float())


def _bound(function: Callable, *args) -> Callable:
    return lambda: function(*args)


def _row(
    name: str,
    windows: int,
    seconds: float,
    ratio: float,
    memory: dict[str, float | None],
    difference: float | None,
) -> dict:
    return {
        "name": name,
        "windows": windows,
        "seconds": seconds,
        "ratio_to_per_box": ratio,
        "peak_extra_mb": memory[name],
        "max_abs_diff": difference,
    }


def print_table(rows: list[dict], seconds: dict[str, float]) -> None:
    """Prints the rows, the reference time of each pooler, and the time of the whole step."""
    print("| | seconds | same, per box | ratio | peak extra MB | max. difference | whole step |")
    print("|---|---|---|---|---|---|---|")
    for row in rows:
        name = row["name"]
        reference = seconds.get(f"per-box {name}")
        step = seconds.get(f"{name}, whole step", seconds["rpn"] if name == "rpn" else None)
        cells = [
            f"{row['seconds']:.4f}",
            "" if reference is None else f"{reference:.2f}",
            f"{row['ratio_to_per_box']:.1f}",
            "" if row["peak_extra_mb"] is None else f"{row['peak_extra_mb']:.0f}",
            "" if row["max_abs_diff"] is None else f"{row['max_abs_diff']:.1e}",
            "" if step is None else f"{step:.4f}",
        ]
        print(f"| {name} | " + " | ".join(cells) + " |")
    if "rpn" in seconds:
        for name in VARIANTS:
            times = seconds[f"{name}, whole step"] / seconds["rpn"]
            print(f"whole step, {name}: {times:.1f} times the stock RPN's")
