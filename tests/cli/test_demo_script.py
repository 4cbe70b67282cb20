"""demo/run.sh, with a Python that writes down what it would run."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def demo(tmp_path):
    """A function that runs demo/run.sh; detectron2 loads where ``loads`` is true."""
    for name in ("demo", "hypernet_d2"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    digits = tmp_path / "digits"
    digits.mkdir()
    for i in range(4):
        (digits / f"{i:06d}.png").touch()
    stub = tmp_path / "bin" / "python"
    stub.parent.mkdir()

    def run(loads: bool, **env: str) -> tuple[subprocess.CompletedProcess, str]:
        log = tmp_path / "log"
        log.write_text("")
        stub.write_text(
            f"""#!/bin/sh
case "$*" in
    *"import hypernet_d2._detectron2"*) exit {0 if loads else 1} ;;
    *generate_digits*) echo "{digits}"; exit 0 ;;
    *DETECTRON2_HELP*) exec "{sys.executable}" "$@" ;;
esac
echo "$*" >>"{log}"
"""
        )
        stub.chmod(0o755)
        path = os.pathsep.join([str(stub.parent), os.environ["PATH"]])
        done = subprocess.run(
            ["sh", "demo/run.sh"],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": "", "DETECTRON2": "", "PATH": path, **env},
            capture_output=True,
            text=True,
            timeout=60,
        )
        return done, log.read_text()

    return run


@pytest.mark.parametrize("hidden", [True, False], ids=["hidden", "missing"])
def test_demo_without_detectron2_uses_the_model_that_ships(demo, hidden):
    done, log = demo(hidden, DETECTRON2="none" if hidden else "")
    assert done.returncode == 0, done.stderr
    assert "hypernet_d2/deploy/models/digits.onnx" in log and "deploy.evaluate" in log
    assert "train_net.py" not in log
    first, *_, help_line, last = done.stdout.splitlines()
    assert "without detectron2" in first and "no training" in first
    assert "pip install" in help_line
    assert last == "output/demo/contact_sheet.png"


def test_demo_with_detectron2_shows_the_shipped_model_then_trains_exports_and_checks(demo):
    done, log = demo(True)
    assert done.returncode == 0, done.stderr
    look, train, export, sheet = re.split(r"\n(?=train_net|tools/|demo/)", log.strip())
    assert "digits.onnx" in look and "--sheet output/demo/first_look.png" in look
    assert train.startswith("train_net.py") and "--resume" in train
    assert export.startswith("tools/export_model.py") and "--check output/demo/check" in export
    assert sheet.startswith("demo/contact_sheet.py")


def test_demo_is_seeded():
    config = (ROOT / "configs/Digits-Detection/hypernet_R_18_demo.yaml").read_text()
    assert re.search(r"^SEED: \d+", config, re.MULTILINE)


@pytest.mark.parametrize("value, expected", [(None, "passive"), ("active", "active")])
def test_make_sets_the_wait_policy_unless_it_is_set(value, expected):
    env = {key: text for key, text in os.environ.items() if key != "OMP_WAIT_POLICY"}
    env |= {"OMP_WAIT_POLICY": value} if value else {}
    show = "ENV=@sh -c 'echo policy=$$OMP_WAIT_POLICY'"  # in place of the set-up
    done = subprocess.run(
        ["make", "lint", show], cwd=ROOT, env=env, capture_output=True, text=True, timeout=60
    )
    assert f"policy={expected}" in done.stdout, done.stderr
