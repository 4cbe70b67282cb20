#!/usr/bin/env python3
"""Damages files at random, and checks how the package handles them.

    python tests/reliability/fuzz.py --count 2000 --seed 0

A case is a small data set, image or checkpoint of which one file is damaged: truncated, with
flipped bytes, values of other types, huge numbers, entity bombs, paths that leave the data set, and
so on. It is read in one of the ways in which such files enter the package, and must end in a
correct result, or in a ValueError, OSError or FloatingPointError that names a file of the case.
Everything else is a fault: another error, a message without a name, a process that dies, a case
that takes too long, a file opened outside of the case, a program started, a connection made. The
exit status is 1 if there is a fault.

Cases depend on the seed and their number only: ``--only 17`` runs one, and shows its outcome.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import logging
import multiprocessing
import os
import random
import sys
import tempfile
import time
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tests.reliability.damages import DAMAGES, Damage, image_bytes  # noqa: E402
from tests.reliability.ways import PREPARE, SHARES, WAYS, warm_up  # noqa: E402

SECONDS = 60.0  # that a case may take: most take hundredths, but machines are busy at times
MEMORY = 4 * 2**30  # bytes that a case may allocate
FAULTS = ("unnamed", "hang", "died", "outside")
OUTCOMES = ("right", "named", *FAULTS)


class Result(NamedTuple):
    outcome: str
    message: str


class Case(NamedTuple):
    """``way`` is a key of `WAYS`; ``kind`` is the format of the damaged file."""

    way: str
    kind: str
    damage: str


# What a case must not do


class Watch:
    """Records files opened outside of a folder, programs started and connections made."""

    def __init__(self):
        self.folder, self.seen = "", []
        # Modules that are imported late, fonts, and files of the system.
        own = (sys.prefix, sys.base_prefix, ROOT, *sys.path, "/proc", "/dev", "/sys", "/usr/share")
        self.allowed = tuple(os.path.realpath(path) + os.sep for path in own)
        sys.addaudithook(self._note)

    @contextlib.contextmanager
    def over(self, folder: Path) -> Iterator[None]:
        self.seen = []
        self.folder = os.path.realpath(folder) + os.sep
        try:
            yield
        finally:
            self.folder = ""

    def _note(self, event: str, args: tuple) -> None:
        if not self.folder:
            return
        if event in ("open", "os.listdir", "os.scandir"):
            if isinstance(args[0], (str, bytes, os.PathLike)):
                path = os.path.realpath(os.fsdecode(args[0])) + os.sep
                if not path.startswith((self.folder, *self.allowed)):
                    self.seen.append(f"{event} {path[:-1]}")
        elif event in ("subprocess.Popen", "os.system", "os.exec", "socket.connect"):
            self.seen.append(f"{event} {str(args)[:200]}")


def draw(seed: int, number: int) -> tuple[random.Random, Case, Damage]:
    rng = random.Random(f"{seed}/{number}")
    way = SHARES[number % len(SHARES)]
    kind = rng.choice(WAYS[way])
    damage = rng.choice(DAMAGES[kind])
    return rng, Case(way, kind, damage.__name__), damage


def run_case(seed: int, number: int, folder: Path, watch: Watch) -> tuple[Case, Result]:
    """Make a case in an empty folder and read it."""
    rng, case, damage = draw(seed, number)
    root, secret = folder / "set", folder / "secret.jpg"  # beside the set, not part of it
    secret.write_bytes(image_bytes("jpeg"))
    root.mkdir()
    take = PREPARE[case.way](case.kind, root, lambda data: damage(rng, data, secret))
    result = Result("right", "")
    try:
        with open(os.devnull, "w") as null, contextlib.redirect_stdout(null), watch.over(root):
            take()
    except (ValueError, OSError, FloatingPointError) as error:
        names = {path.name for path in root.rglob("*.*")} | {str(root)}
        named = any(name in str(error) for name in names)
        result = Result("named" if named else "unnamed", f"{type(error).__name__}: {error}")
    except BaseException as error:
        result = Result("unnamed", f"{type(error).__name__}: {error}")
    if watch.seen:
        result = Result("outside", "; ".join(watch.seen))
    return case, result


# Each case runs in a child process, which may die or hang


class Worker:
    """A process that runs cases one by one, and is replaced when it dies or hangs."""

    def __init__(self, seed: int, seconds: float = SECONDS):
        self.seed, self.seconds = seed, seconds
        self.child = None

    def run(self, number: int) -> tuple[Case, Result]:
        if self.child is None:
            # Forked, so that modules need not be imported again.
            context = multiprocessing.get_context("fork")
            self.connection, end = context.Pipe()
            self.child = context.Process(target=_work, args=(end, self.seed), daemon=True)
            self.child.start()
            end.close()
        self.connection.send(number)
        try:
            if self.connection.poll(self.seconds):
                return self.connection.recv()
            outcome = Result("hang", f"not over after {self.seconds} s")
        except EOFError:
            self.child.join()
            outcome = Result("died", f"exit status {self.child.exitcode}")
        self.stop()
        return draw(self.seed, number)[1], outcome

    def stop(self) -> None:
        if self.child is not None:
            self.child.kill()
            self.child.join()
            self.connection.close()
            self.child = None


def _work(connection, seed: int) -> None:
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    # More memory is an error, and does not bring down the machine.
    if sys.platform == "linux":
        import resource

        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    watch = Watch()
    while True:
        number = connection.recv()
        with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
            connection.send(run_case(seed, number, Path(folder), watch))


def fuzz(numbers: Iterable[int], seed: int) -> Iterator[tuple[int, Case, Result]]:
    """The outcome of each case."""
    warm_up()
    worker = Worker(seed)
    try:
        for number in numbers:
            yield number, *worker.run(number)
    finally:
        worker.stop()


def table(results: list[tuple[int, Case, Result]]) -> str:
    """Markdown: outcomes by way and format."""
    counts: dict[tuple[str, str], collections.Counter] = {}
    for _, case, result in results:
        for key in ((case.way, case.kind), ("all", "")):
            counts.setdefault(key, collections.Counter())[result.outcome] += 1
    lines = [
        "| way in | damaged | cases | right | named | " + " | ".join(FAULTS) + " |",
        "|---|---|---|---|---|" + "---|" * len(FAULTS),
    ]
    for (way, kind), count in sorted(counts.items(), key=lambda item: (item[0][0] == "all", item)):
        numbers = " | ".join(str(count[outcome]) for outcome in OUTCOMES)
        lines.append(f"| {way} | {kind} | {count.total()} | {numbers} |")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=2000, help="number of cases (default: 2000)")
    parser.add_argument("--seed", type=int, default=0, help="default: 0")
    parser.add_argument("--only", type=int, help="number of the one case to run")
    parser.add_argument("--messages", action="store_true", help="print every outcome")
    args = parser.parse_args(argv)
    warnings.simplefilter("ignore")
    numbers = range(args.count) if args.only is None else [args.only]
    start, results = time.perf_counter(), []
    for number, case, result in fuzz(numbers, args.seed):
        results.append((number, case, result))
        if result.outcome in FAULTS or args.messages or args.only is not None:
            text = result.message if len(result.message) < 300 else f"{result.message[:300]}..."
            print(f"{number} {' '.join(case)}: {result.outcome}: {text}", flush=True)
    faults = sum(result.outcome in FAULTS for _, _, result in results)
    print(f"\n{table(results)}\n")
    print(f"{faults} faults in {len(results)} cases, {time.perf_counter() - start:.0f} s")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
