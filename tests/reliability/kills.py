"""SIGKILL at random moments: the run is resumed each time, and ends as an uninterrupted one.

    python -m tests.reliability.kills --kills 30

One run is killed repeatedly: at a random moment, while a checkpoint is written (at a random byte),
after it was written and before ``last_checkpoint`` names it, and while ``last_checkpoint`` is
written. At the end the losses of all iterations, including the repeated ones, must equal those of a
run that was not killed. Then processes that generate the digits are killed, and two generate them
at the same time.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import signal
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path

from . import small_run

PERIOD = 3  # iterations from checkpoint to checkpoint
MOMENTS = ("any", "model_", "any", "last_checkpoint", "any", "in last_checkpoint")
SCENES = 4


def kill_training(kills: int, rng: random.Random, folder: Path) -> dict:
    """Kill, resume and compare; return the figures."""
    small_run.write_data(folder)
    small_run.register(folder)
    opts = ("SOLVER.MAX_ITER", PERIOD * kills + 10, "SOLVER.CHECKPOINT_PERIOD", PERIOD)
    unbroken, killed = folder / "unbroken", folder / "killed"
    join(small_run.in_a_child(small_run.train, unbroken, *opts), 0)
    saved = []
    for _, moment in zip(range(kills), itertools.cycle(MOMENTS), strict=False):
        before = recorded(killed)
        child = small_run.in_a_child(train_and_die, killed, opts, moment, rng.random())
        if moment == "any":
            wait = rng.randint(1, 3 * PERIOD)
            while recorded(killed) < before + wait and child.is_alive():
                time.sleep(0.005)
            time.sleep(rng.random() * 0.3)
            child.kill()
        join(child, -signal.SIGKILL)
        saved.append(last_saved(killed))
    join(small_run.in_a_child(small_run.train, killed, *opts), 0)
    assert saved == sorted(saved), "a kill has taken a checkpoint"
    rows, expected = small_run.losses(killed), small_run.losses(unbroken)
    assert len(rows) == len(expected) == opts[1]
    difference = max(map(small_run.difference, rows, expected))
    assert difference <= 1e-5
    return {
        "kills": kills,
        "iterations": len(rows),
        "iterations done twice": recorded(killed) - len(rows),
        "largest difference of a loss": difference,
        "last checkpoint after each kill": saved,
    }


def train_and_die(output: Path, opts: tuple, moment: str, fraction: float) -> None:
    """Resume; unless the moment is "any", die while the first checkpoint is written."""
    size = max((path.stat().st_size for path in output.glob("model_*.pth")), default=2**20)
    places = {
        "any": nullcontext,
        "model_": lambda: small_run.dies_while_writing("model_", int(fraction * size)),
        "last_checkpoint": lambda: small_run.dies_while_writing("last_checkpoint", 0),
        "in last_checkpoint": lambda: small_run.dies_while_writing("last_checkpoint", 5),
    }
    with places[moment]():
        small_run.train(output, *opts)


def recorded(output: Path) -> int:
    """Number of iterations done, repeated ones included."""
    path = output / "losses.jsonl"
    return path.read_text().count("\n") if path.is_file() else 0


def last_saved(output: Path) -> str:
    path = output / "last_checkpoint"
    return path.read_text() if path.is_file() else ""


def kill_digits(kills: int, rng: random.Random, root: Path) -> dict:
    """Kill processes that generate scenes, then run two at the same time; return the figures."""
    from hypernet_d2.data import generate_digits

    started = time.monotonic()
    expected = contents(generate_digits(root / "unbroken", "val", num_images=SCENES))
    whole = time.monotonic() - started
    generate = (generate_digits, root / "killed", "val", 0, SCENES)
    for _ in range(kills):
        child = small_run.in_a_child(*generate)
        time.sleep(rng.random() * whole)
        child.kill()
        child.join()
        for folder in (root / "killed").glob("[!.]*"):
            assert contents(folder) == expected, "a killed process has left half a data set"
    for child in [small_run.in_a_child(*generate) for _ in range(2)]:
        join(child, 0)
    (folder,) = (root / "killed").glob("[!.]*")
    assert contents(folder) == expected
    return {"kills of the digits": kills}


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def join(child, exitcode: int) -> None:
    child.join()
    assert child.exitcode == exitcode, f"exit code {child.exitcode}, expected {exitcode}"


def main(kills: int, seed: int) -> dict:
    """Run both in a temporary folder."""
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        training = kill_training(kills, rng, Path(folder))
        return {**training, **kill_digits(kills, rng, Path(folder, "digits"))}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=30, help="number of kills of each kind")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    args = parser.parse_args()
    print(json.dumps(main(args.kills, args.seed), indent=1))
