"""Contenders, clock and table of the benchmarks of whole detectors."""

import argparse
import json
import shlex
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from detectron2.config import CfgNode
from tabulate import tabulate

from hypernet_d2.config import default_device
from hypernet_d2.data.datasets.own_data import OwnData
from hypernet_d2.engine import add_data_argument, register_data, setup_cfg

from ..arguments import find_config
from .common import device_name, peak_extra_mb, synchronize


@dataclass
class Contender:
    """A detector to be measured.

    Attributes:
        name: of its row.
        words: config file and options of this contender.
        cfg: the config with all options.
    """

    name: str
    words: list[str]
    cfg: CfgNode


def add_arguments(parser: argparse.ArgumentParser) -> None:
    contender = '"[NAME=]CONFIG [KEY VALUE ...]"'
    parser.add_argument(
        "--config-file", "--config", required=True, metavar=contender, help="the first contender"
    )
    parser.add_argument(
        "--against", action="append", default=[], metavar=contender, help="another one; repeatable"
    )
    parser.add_argument("--size", type=int, nargs=2, metavar=("H", "W"), help="of the images")
    parser.add_argument("--batch", type=int, help="images per batch")
    parser.add_argument("--threads", type=int, help="CPU threads (default: PyTorch's)")
    parser.add_argument("--repeats", type=int, default=9, help="rounds (default: 9)")
    parser.add_argument("--warm-up", type=int, default=2, help="rounds before them (default: 2)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="file for all measurements")
    add_data_argument(parser)
    parser.add_argument(
        "opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="options of all contenders"
    )


def check_arguments(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Read the configs into ``args.contenders``, and set the number of threads."""
    numbers = {"--batch": args.batch, "--threads": args.threads, "--repeats": args.repeats}
    numbers["--warm-up"] = args.warm_up
    for name, number in [*numbers.items(), *(("--size", side) for side in args.size or ())]:
        if number is not None and number < 1:
            parser.error(f"{name}: expected 1 or more")
    data = register_data(args.data)
    words = [args.config_file, *args.against]
    args.contenders = [_contender(shlex.split(text), args.opts, data) for text in words]
    names = [contender.name for contender in args.contenders]
    if len(set(names)) < len(names):
        raise ValueError(f"contenders need distinct names; got {names} (NAME=CONFIG names one)")
    if len({contender.cfg.MODEL.DEVICE for contender in args.contenders}) > 1:
        raise ValueError("MODEL.DEVICE of the contenders differs; expected the same")
    if args.threads:
        torch.set_num_threads(args.threads)


def _contender(words: list[str], shared: list[str], data: OwnData) -> Contender:
    if not words:
        raise ValueError("a contender is empty; expected [NAME=]CONFIG [KEY VALUE ...]")
    name, is_named, config = words[0].rpartition("=")
    opts = words[1:]
    path = find_config(config)
    fixed = ["MODEL.DEVICE", default_device(), "VIS_PERIOD", "0"]
    opts_of_all = [*fixed, *shared, *opts]
    cfg = setup_cfg(argparse.Namespace(config_file=path, opts=opts_of_all, data=data))
    if not is_named:
        pairs = zip(opts[::2], opts[1::2], strict=True)
        name = " ".join([Path(path).stem, *(f"{k.rpartition('.')[2]}={v}" for k, v in pairs)])
    return Contender(name, [path, *opts], cfg)


class Clock:
    """Points in time; on a GPU they are events, so that marking one does not synchronize."""

    def __init__(self, device: torch.device):
        self.device = device

    def mark(self) -> float | torch.cuda.Event:
        if self.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def seconds(self, start, end) -> float:
        """Seconds between two marks; synchronizes a GPU."""
        if self.device.type != "cuda":
            return end - start
        synchronize(self.device)
        return start.elapsed_time(end) / 1000


def measure(
    calls: dict[str, Callable[[], dict[str, float]]], args: argparse.Namespace, device: torch.device
) -> dict[str, dict]:
    """Call the contenders in turns; a call returns {part: seconds}.

    Returns:
        For each contender ``seconds``, {part: median and quartiles}, and ``peak_memory_mb``, the
        memory that a call allocates beyond what was allocated before it.
    """
    for _ in range(args.warm_up):
        for call in calls.values():
            call()
    rounds = [{name: call() for name, call in calls.items()} for _ in range(args.repeats)]
    figures = {}
    for name, call in calls.items():
        seconds = {}
        for part in rounds[0][name]:
            quartiles = np.percentile([one[name][part] for one in rounds], [50, 25, 75])
            seconds[part] = dict(zip(("median", "q1", "q3"), quartiles.tolist(), strict=True))
        figures[name] = {"seconds": seconds, "peak_memory_mb": peak_extra_mb(call, device)}
    return figures


def report(benchmark: str, rows: list[dict], setting: dict, args: argparse.Namespace) -> None:
    """Print the table, and write ``args.json`` if given."""
    device = torch.device(args.contenders[0].cfg.MODEL.DEVICE)
    setting = {
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "repeats": args.repeats,
        **setting,
    }
    print(", ".join(f"{key} {value}" for key, value in setting.items()) + "\n")
    print(markdown_table(rows))
    if args.json:
        content = {"benchmark": benchmark, **setting, "rows": rows}
        args.json.write_text(json.dumps(content, indent=2) + "\n")


HEADERS = {
    "peak_memory_mb": "peak memory (MB)",
    "proposals": "proposals",
    "proposals_filled_in": "of these filled in",
    "detections": "detections",
    "parameters_m": "parameters (M)",
    "flops_g": "FLOPs (G)",
}


def markdown_table(rows: list[dict]) -> str:
    """The table of `table_cells` in Markdown."""
    header, cells = table_cells(rows)
    return tabulate(cells, header, tablefmt="github", disable_numparse=True)


def table_cells(rows: list[dict]) -> tuple[list[str], list[list[str]]]:
    """Header and cells, one row per contender; "ratio" is its total divided by that of the first.

    A row with only a name has empty cells.
    """
    measured = [row for row in rows if "seconds" in row]
    parts = list(dict.fromkeys(part for row in measured for part in row["seconds"]))[1:]
    counts = [key for key in HEADERS if any(key in row for row in rows)]
    first = measured[0]["seconds"]["total"]["median"]
    lines = []
    for row in rows:
        line = {"": row["name"]}
        if "seconds" in row:
            seconds, total = row["seconds"], row["seconds"]["total"]
            line["total (s)"] = _seconds(total["median"])
            line["quartiles"] = f"{_seconds(total['q1'])} to {_seconds(total['q3'])}"
            line["ratio"] = f"{total['median'] / first:.2f}"
            for part in parts:
                line[f"{part} (s)"] = _seconds(seconds[part]["median"]) if part in seconds else ""
            for key in counts:
                line[HEADERS[key]] = _count(row.get(key))
        lines.append(line)
    header = list(dict.fromkeys(key for line in lines for key in line))
    return header, [[line.get(key, "") for key in header] for line in lines]


def _seconds(value: float) -> str:
    return f"{value:.3f}" if value >= 0.1 else f"{value:.4f}"


def _count(value: float | None) -> str:
    return "" if value is None else f"{value:.0f}" if value >= 100 else f"{value:.3g}"
