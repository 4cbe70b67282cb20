#!/usr/bin/env python3
"""Runs tests with several versions of PyTorch and detectron2, and prints a Markdown table.

    make matrix                                                   # all of them; hours
    make matrix ARGS="--torch 2.4.1" PYTHON=python3.13
    python3 tools/matrix.py --torch 2.4.1 --detectron2 v0.6       # one combination
    python3 tools/matrix.py --repository ~/detectron2 --tests tests/modeling

For each PyTorch an environment is created below ``output/matrix`` (up to 6 GB, removed afterwards)
with the Python that runs this file. detectron2 is used as plain Python, or compiled with
``--build``; v0.6 needs its compiled part. The table is also written to ``output/matrix/table.md``,
with a log of each combination beside it.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import re
import shutil
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PUBLIC = "https://github.com/facebookresearch/detectron2"
# pip chooses the torchvision that belongs to each.
TORCH = "2.4.1 2.5.1 2.6.0 2.7.1 2.8.0 2.9.1 2.10.0 2.11.0 2.12.1 2.13.0 2.14.1 2.15.0".split()
TESTS = "tests/layers tests/modeling tests/engine tests/evaluation tests/deploy tests/export"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0],
        epilog="example: python3 tools/matrix.py --torch 2.4.1 --detectron2 v0.6",
    )
    parser.add_argument("--torch", nargs="+", default=TORCH, metavar="VERSION",
                        help=f"default: {' '.join(TORCH)}")  # fmt: skip
    parser.add_argument("--detectron2", nargs="+", default=[pinned_commit(), "v0.6"], metavar="REF",
                        help="commits or tags (default: the pinned commit and v0.6)")  # fmt: skip
    parser.add_argument("--repository", default=PUBLIC, help="of detectron2: an address or a path")
    parser.add_argument("--tests", default=TESTS, help=f"arguments for pytest ({TESTS})")
    parser.add_argument("--build", action="store_true", help="compile detectron2")
    parser.add_argument("--keep", action="store_true", help="keep the environments")
    args = parser.parse_args()
    output = ROOT / "output" / "matrix"
    output.mkdir(parents=True, exist_ok=True)
    checkouts = {ref: checkout(args.repository, ref, output) for ref in args.detectron2}
    rows = []
    for torch in args.torch:
        environment = output / f"torch-{torch}"
        python = environment / "bin" / "python"
        for ref, folder in checkouts.items():
            log = output / f"torch-{torch}-detectron2-{ref[:8]}.log"
            result = install(environment, python, torch, log) or test(
                environment, folder, args.build, args.tests, log
            )
            rows.append((torch, ref[:8], result))
            print(f"torch {torch}, detectron2 {ref[:8]}: {result} ({log})", flush=True)
        if not args.keep:
            shutil.rmtree(environment, ignore_errors=True)
    text = table(rows)
    (output / "table.md").write_text(text, encoding="utf-8")
    print(text)
    return 0 if all("passed" in row[-1] and "failed" not in row[-1] for row in rows) else 1


def pinned_commit() -> str:
    source = (ROOT / "hypernet_d2" / "__init__.py").read_text(encoding="utf-8")
    return re.search(r"@([0-9a-f]{40})", source)[1]


def checkout(repository: str, ref: str, output: Path) -> Path:
    """A folder with detectron2 at a commit or tag."""
    folder = output / f"detectron2-{ref[:8]}"
    if not (folder / "setup.py").is_file():
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run(["git", "clone", "--quiet", repository, folder], check=True)
        subprocess.run(["git", "-C", folder, "checkout", "--quiet", ref], check=True)
    return folder


def install(environment: Path, python: Path, torch: str, log: Path) -> str:
    """Create the environment with PyTorch in it; an empty string, or why it failed."""
    if python.is_file():
        return ""
    venv.create(environment, with_pip=True, clear=True)
    command = [python, "-m", "pip", "install", "--quiet", f"torch=={torch}", "torchvision"]
    done = subprocess.run(command, capture_output=True, text=True)
    log.write_text(done.stdout + done.stderr, encoding="utf-8")
    if done.returncode:
        shutil.rmtree(environment)
        return "not installable: " + last_line(done.stderr)
    return ""


def test(environment: Path, detectron2: Path, build: bool, tests: str, log: Path) -> str:
    """The last line of pytest, or of what failed before it."""
    env = {
        **os.environ,
        "VIRTUAL_ENV": str(environment),
        "DETECTRON2": str(detectron2),
        "DETECTRON2_BUILD": "1" if build else "",
        "HYPERNET_D2_REQUIRE_DETECTRON2": "1",
    }
    command = ["sh", ROOT / "tools" / "setup_env.sh", "python", "-m", "pytest", *tests.split()]
    with open(log, "a", encoding="utf-8") as file:
        subprocess.run(command, env=env, stdout=file, stderr=subprocess.STDOUT)
    return last_line(log.read_text(encoding="utf-8", errors="replace"))


def last_line(text: str) -> str:
    lines = [line.strip(" =") for line in text.splitlines() if line.strip(" =")]
    return lines[-1].replace("|", "\\|") if lines else "no output"


def table(rows: list[tuple[str, str, str]]) -> str:
    head = f"Python {platform.python_version()}, {platform.system()} {platform.machine()}, "
    lines = [head + f"{datetime.date.today()}:", ""]
    lines += ["| PyTorch | detectron2 | tests |", "|---|---|---|"]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
