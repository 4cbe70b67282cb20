"""What the benchmarks of whole detectors share: contenders, clock, rows and table."""

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

from hypernet_d2.config import default_device
from hypernet_d2.engine import setup_cfg

from .common import device_name, peak_extra_mb, synchronize


@dataclass
class Contender:
    """A detector to be measured.

    Attributes:
        name: its row's.
        words: the config file and the options of its own.
        cfg: its config.
    """

    name: str
    words: list[str]
    cfg: CfgNode


def add_arguments(parser: argparse.ArgumentParser) -> None:
    contender = "[NAME=]CONFIG [KEY VALUE ...]"
    parser.add_argument("--config-file", required=True, metavar=f'"{contender}"', help="the first")
    parser.add_argument(
        "--against", action="append", default=[], metavar=f'"{contender}"', help="further ones"
    )
    parser.add_argument("--size", type=int, nargs=2, metavar=("H", "W"), help="of the images")
    parser.add_argument("--batch", type=int, help="images at a time")
    parser.add_argument("--threads", type=int, help="of a CPU; default: PyTorch's")
    parser.add_argument("--repeats", type=int, default=9, help="rounds (9)")
    parser.add_argument("--warm-up", type=int, default=2, help="rounds before them (2)")
    parser.add_argument("--json", type=Path, help="file to write all figures to")
    parser.add_argument(
        "opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="options of all contenders"
    )


def check_arguments(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Make ``args.contenders`` of the words, and set the number of threads."""
    numbers = {"--batch": args.batch, "--threads": args.threads, "--repeats": args.repeats}
    for name, number in [*numbers.items(), *(("--size", side) for side in args.size or ())]:
        if number is not None and number < 1:
            parser.error(f"{name} takes numbers of at least 1")
    if args.warm_up < 1:
        parser.error("--warm-up takes a number of at least 1")
    try:
        words = [args.config_file, *args.against]
        args.contenders = [_contender(shlex.split(text), args.opts) for text in words]
    except (ValueError, KeyError, FileNotFoundError) as error:
        parser.error(str(error))
    names = [contender.name for contender in args.contenders]
    if len(set(names)) < len(names):
        parser.error(f"two contenders have one name: {names}; give NAME=CONFIG")
    if len({contender.cfg.MODEL.DEVICE for contender in args.contenders}) > 1:
        parser.error("the contenders' MODEL.DEVICE are not the same")
    if args.threads:
        torch.set_num_threads(args.threads)


def _contender(words: list[str], shared: list[str]) -> Contender:
    if not words:
        raise ValueError("a contender without a config; expected [NAME=]CONFIG [KEY VALUE ...]")
    name, is_named, path = words[0].rpartition("=")
    opts = words[1:]
    if not Path(path).is_file():
        raise FileNotFoundError(f"no config file {path!r}")
    fixed = ["MODEL.DEVICE", default_device(), "VIS_PERIOD", "0"]
    cfg = setup_cfg(argparse.Namespace(config_file=path, opts=[*fixed, *shared, *opts]))
    if not is_named:
        pairs = zip(opts[::2], opts[1::2], strict=True)
        name = " ".join([Path(path).stem, *(f"{k.rpartition('.')[2]}={v}" for k, v in pairs)])
    return Contender(name, [path, *opts], cfg)


class Clock:
    """Marks in time; a GPU's are events in its stream, at which nothing has to wait."""

    def __init__(self, device: torch.device):
        self.device = device

    def mark(self) -> float | torch.cuda.Event:
        if self.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def seconds(self, start, end) -> float:
        """Seconds between two marks; on a GPU waits for its work."""
        if self.device.type != "cuda":
            return end - start
        synchronize(self.device)
        return start.elapsed_time(end) / 1000


def measure(
    calls: dict[str, Callable[[], dict[str, float]]], args: argparse.Namespace, device: torch.device
) -> dict[str, dict]:
    """Call the contenders in turns, each of which returns {part: seconds}.

    Returns:
        for each contender ``seconds``, {part: median and quartiles}, and ``peak_memory_mb``, what
        a call takes beyond what is held before it.
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
    """Print the table, and write the json file that was asked for."""
    device = torch.device(args.contenders[0].cfg.MODEL.DEVICE)
    setting = {
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "repeats": args.repeats,
        **setting,
    }
    print(", ".join(f"{key} {value}" for key, value in setting.items()) + "\n")
    print(markdown(rows))
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


def markdown(rows: list[dict]) -> str:
    """One line a contender; the ratio is that of its total to the first contender's.

    A row with a name alone has empty cells.
    """
    measured = [row for row in rows if "seconds" in row]
    parts = list(dict.fromkeys(part for row in measured for part in row["seconds"]))[1:]
    counts = [key for key in HEADERS if any(key in row for row in rows)]
    header = ["", "total (s)", "quartiles", "ratio", *(f"{part} (s)" for part in parts)]
    header += [HEADERS[key] for key in counts]
    first = measured[0]["seconds"]["total"]["median"]
    lines = [header, ["---"] * len(header)]
    for row in rows:
        if row not in measured:
            lines.append([row["name"], *[""] * (len(header) - 1)])
            continue
        seconds, total = row["seconds"], row["seconds"]["total"]
        lines.append(
            [
                row["name"],
                _seconds(total["median"]),
                f"{_seconds(total['q1'])} to {_seconds(total['q3'])}",
                f"{total['median'] / first:.2f}",
                *(_seconds(seconds[p]["median"]) if p in seconds else "" for p in parts),
                *(_count(row.get(key)) for key in counts),
            ]
        )
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _seconds(value: float) -> str:
    return f"{value:.3f}" if value >= 0.1 else f"{value:.4f}"


def _count(value: float | None) -> str:
    return "" if value is None else f"{value:.0f}" if value >= 100 else f"{value:.3g}"
