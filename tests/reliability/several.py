"""Distributed training in which one process is killed, or all receive SIGTERM.

    python -m tests.reliability.several --processes 2 4

Each process has one image per iteration, of another size than the others, often without objects.
In a run of Gloo processes the last one is killed with SIGKILL; the others must stop within a
minute. After resuming, only the launching process gets SIGTERM, first in training and then, after
another resume, in an evaluation; all processes must save a checkpoint and exit with status 143.
Resumed once more, the run must end with the losses of a run that was not interrupted.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from unittest import mock

import torch
from detectron2.utils import comm

from . import small_run

KILLED_AFTER, TOLD_AFTER, TOLD_EVALUATING_AFTER = 4, 6, 9  # iterations


def several(processes: int, folder: Path) -> dict:
    """Run the whole test and return the figures; AssertionError if it fails."""
    small_run.write_data(folder)
    small_run.register(folder)
    unbroken, broken = folder / f"unbroken{processes}", folder / f"broken{processes}"
    assert run(processes, unbroken)["exit code"] == 0
    killed = run(processes, broken, after=KILLED_AFTER, name="KILL")
    assert killed["exit code"] == 1
    assert killed["message"]
    assert killed["seconds"] < 60
    told = run(processes, broken, after=TOLD_AFTER, name="TERM")
    assert told["exit code"] == 143, told
    assert (broken / "last_checkpoint").read_text() >= f"model_{TOLD_AFTER:07}.pth"
    evaluating = run(processes, broken, after=TOLD_EVALUATING_AFTER, name="TERM", evaluating=True)
    assert evaluating["exit code"] == 143, evaluating
    at_once = f"model_{TOLD_EVALUATING_AFTER:07}.pth"
    assert (broken / at_once).exists() and (broken / "last_checkpoint").read_text() > at_once
    assert run(processes, broken)["exit code"] == 0
    rows, expected = small_run.losses(broken), small_run.losses(unbroken)
    difference = max(map(small_run.difference, rows, expected))
    assert len(rows) == len(expected) and difference <= 1e-5
    return {
        "processes": processes,
        "message when one is killed": killed["message"],
        "seconds until the others have stopped": killed["seconds"],
        "seconds until all have left after SIGTERM": told["seconds"],
        "seconds after SIGTERM in an evaluation of a second": evaluating["seconds"],
        "largest difference of a loss": difference,
    }


def run(
    processes: int, output: Path, after: int = -1, name: str = "", evaluating: bool = False
) -> dict:
    """Launch in a child; after an iteration SIGKILL the last, or SIGTERM the launcher.

    With ``evaluating`` an evaluation follows that iteration, and the signal comes within it.
    """
    output.mkdir(exist_ok=True)
    log, stamp = output / "stderr.txt", output / "signalled"
    stamp.unlink(missing_ok=True)
    child = small_run.in_a_child(_launch, processes, output, after, name, evaluating)
    child.join()
    seconds = round(time.time() - stamp.stat().st_mtime, 1) if name else None
    lines = [line for line in log.read_text().splitlines() if "terminated with" in line]
    message = lines[-1] if lines else ""
    return {"exit code": child.exitcode, "seconds": seconds, "message": message}


def _launch(processes: int, output: Path, after: int, name: str, evaluating: bool) -> None:
    from hypernet_d2.engine import Trainer, launch

    with open(output / "stderr.txt", "w") as file:
        os.dup2(file.fileno(), 2)
    sys.stderr = sys.__stderr__  # which pytest has replaced
    launcher = os.getpid()

    def train():
        options = ["SOLVER.IMS_PER_BATCH", processes]
        if evaluating:
            options += ["TEST.EVAL_PERIOD", after + 1]
        small_run.train(output, *options, at={} if evaluating else {after: signal_one})

    def test(*_):
        if evaluating:
            signal_one()
            time.sleep(1)
        return {}

    def signal_one():
        if comm.get_rank() == processes - 1:
            (output / "signalled").touch()
            small_run.send(name, os.getpid() if name == "KILL" else launcher)

    # As launch does, but forked, so that the processes need not import the modules again.
    fork = functools.partial(torch.multiprocessing.start_processes, start_method="fork")
    with (
        mock.patch.object(torch.multiprocessing, "start_processes", fork),
        mock.patch.object(Trainer, "test", test),
    ):
        launch(train, processes, dist_url="auto")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--processes", type=int, nargs="+", default=[2, 4])
    args = parser.parse_args()
    for processes in args.processes:
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps(several(processes, Path(folder)), indent=1))
