"""A short run of the fuzzer, and that it detects each kind of fault."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from . import fuzz

pytestmark = pytest.mark.detectron2

CASES = 150


@pytest.fixture(scope="module", autouse=True)
def warm():
    """Import once what otherwise each child process imports."""
    pytest.importorskip("onnxruntime")
    fuzz.warm_up()


@pytest.mark.slow
def test_damaged_files_end_in_a_right_result_or_a_named_error():
    results = list(fuzz.fuzz(range(CASES), seed=1))
    assert [r for r in results if r[2].outcome in fuzz.FAULTS] == []
    assert {case.way for _, case, _ in results} == set(fuzz.WAYS)
    assert sum(result.outcome == "named" for _, _, result in results) > CASES / 2
    assert f"| all |  | {CASES} |" in fuzz.table(results)


def test_a_case_depends_on_its_number_and_the_seed_only():
    first, again = fuzz.draw(3, 17), fuzz.draw(3, 17)
    assert first[1] == again[1] and first[0].random() == again[0].random()
    assert len({fuzz.draw(3, number)[1] for number in range(100)}) > 20


@pytest.mark.parametrize("way", fuzz.WAYS)
@pytest.mark.parametrize("number", range(2))
def test_without_damage_the_result_is_right(monkeypatch, way, number):
    kinds = sorted(set(fuzz.WAYS[way]))
    case = fuzz.Case(way, kinds[number % len(kinds)], "none")
    monkeypatch.setattr(fuzz, "draw", lambda *_: (None, case, lambda rng, data, secret: data))
    worker = fuzz.Worker(0)
    try:
        assert worker.run(0) == (case, fuzz.Result("right", ""))
    finally:
        worker.stop()


def fail(error: BaseException):
    raise error


@pytest.mark.parametrize(
    ("take", "outcome", "message"),
    [
        (lambda root: fail(KeyError("bbox")), "unnamed", "KeyError: 'bbox'"),
        (lambda root: fail(ValueError("something")), "unnamed", "something"),
        (lambda root: fail(ValueError("b.xml: something")), "named", "b.xml: something"),
        (lambda root: time.sleep(60), "hang", "not over after 2"),
        (lambda root: os._exit(3), "died", "exit status 3"),
        (lambda root: os.kill(os.getpid(), signal.SIGKILL), "died", "exit status -9"),
        (lambda root: (root.parent / "secret.jpg").read_bytes(), "outside", "secret.jpg"),
        (lambda root: os.listdir(root.parent), "outside", "os.listdir"),
        (lambda root: subprocess.run([sys.executable, "-V"]), "outside", "subprocess.Popen"),
    ],
)
def test_faults_are_detected(monkeypatch, take, outcome, message):
    def prepare(kind, root, damage):
        (root / "b.xml").write_text("")
        return lambda: take(root)

    monkeypatch.setattr(fuzz, "PREPARE", dict.fromkeys(fuzz.WAYS, prepare))
    worker = fuzz.Worker(0, seconds=2.0 if outcome == "hang" else fuzz.SECONDS)
    try:
        _, result = worker.run(0)
        assert result.outcome == outcome and message in result.message
        nothing = dict.fromkeys(fuzz.WAYS, lambda kind, root, damage: lambda: None)
        monkeypatch.setattr(fuzz, "PREPARE", nothing)
        worker.seconds = fuzz.SECONDS
        worker.stop()
        assert worker.run(1)[1].outcome == "right"  # in a new child process
    finally:
        worker.stop()
