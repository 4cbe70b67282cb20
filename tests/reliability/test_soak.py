"""The soak tests of ``make soak``, in their shortest form."""

from __future__ import annotations

import os
import random

import pytest

pytestmark = pytest.mark.detectron2
linux = pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="reads Linux's /proc")


def test_kills_change_nothing(tmp_path, monkeypatch):
    from . import kills

    monkeypatch.setattr(kills, "MOMENTS", ("any", "model_", "last_checkpoint"))
    figures = kills.kill_training(3, random.Random(1), tmp_path)
    assert figures["iterations done twice"] > 0
    kills.kill_digits(2, random.Random(1), tmp_path / "digits")


def test_of_two_processes_one_is_killed_or_all_are_told_to_leave(tmp_path):
    from . import several

    several.several(2, tmp_path)


@linux
def test_memory_and_open_files_stay_as_they_are(tmp_path):
    from . import load

    load.detect_many(100, tmp_path)


def test_eight_threads_get_the_answers_of_one(tmp_path):
    pytest.importorskip("onnxruntime")
    from . import load

    load.detect_in_threads(8, 3, tmp_path)
