"""The soak tests of ``make soak`` in a short form."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.detectron2, pytest.mark.slow]
linux = pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="reads Linux's /proc")

ROOT = Path(__file__).resolve().parents[2]


def figures_of(module: str, *arguments: str) -> dict:
    """What a command prints. It forks, which a process whose autograd has threads must not."""
    command = [sys.executable, "-W", "ignore", "-m", f"tests.reliability.{module}", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout[done.stdout.index("{\n") :])


def test_kills_change_nothing():
    figures = figures_of("kills", "--kills", "4", "--seed", "1")
    assert figures["kills"] == figures["kills of the digits"] == 4
    assert figures["iterations done twice"] > 0


def test_of_two_processes_one_is_killed_or_all_are_told_to_leave():
    figures = figures_of("several", "--processes", "2")
    assert "SIGKILL" in figures["message when one is killed"]


@linux
def test_memory_and_open_files_stay_as_they_are(tmp_path):
    from . import load

    load.detect_many(100, tmp_path)


def test_eight_threads_get_the_answers_of_one(tmp_path):
    pytest.importorskip("onnxruntime")
    from . import load

    load.detect_in_threads(8, 3, tmp_path)
