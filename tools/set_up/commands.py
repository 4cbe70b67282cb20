"""Running pip and other programs, and the state of the environment."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

# Prints the state of the environment as json, at the end and before what may crash.
PROBE = """
import importlib.util, json, sys
from importlib.metadata import version
state = {"torch": None, "torchvision": None, "detectron2": None, "compiled": False}
def one_line(error):
    return (str(error).splitlines() or [repr(error)])[0]
def report():
    print(json.dumps(state), flush=True)
report()
try:
    import torch
    state["torch"] = version("torch")  # pip's version, which may lack the "+cu130" of torch's own
    state["torch_is_old"] = tuple(int(part) for part in torch.__version__.split(".")[:2]) < (2, 4)
    import torchvision
    state["torchvision"] = version("torchvision")
except Exception as error:
    state["torch_error"] = one_line(error)
if importlib.util.find_spec("detectron2") is None:
    state["detectron2_error"] = "not installed"
else:
    state["detectron2_error"] = "crashes on import"
    report()
    try:
        import detectron2.engine, detectron2.evaluation
        state["detectron2"] = detectron2.__version__
    except Exception as error:
        state["detectron2_error"] = "does not load: " + one_line(error)
    else:
        try:
            from detectron2 import _C
            state["compiled"] = True
        except Exception:
            pass
report()
"""


class SetupError(Exception):
    """The set-up cannot continue; the message is one line."""


def say(text: str) -> None:
    print(f"==> {text}", flush=True)


@contextlib.contextmanager
def step(text: str) -> Iterator[None]:
    """Print what is done, and then how long it took."""
    say(text)
    started = time.monotonic()
    yield
    print(f"    {time.monotonic() - started:.0f} s", flush=True)


def run(*command: str | Path, seconds: float | None = None) -> subprocess.CompletedProcess:
    """Run a command without input, stderr in stdout; the status is 124 after ``seconds``."""
    child = subprocess.Popen(
        [str(word) for word in command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    try:
        output, _ = child.communicate(timeout=seconds)
        return subprocess.CompletedProcess(command, child.returncode, output)
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(command, 124, f"error: not done after {seconds:.0f} s")
    finally:
        if child.poll() is None:  # after the time limit or Ctrl-C
            if hasattr(os, "killpg"):
                os.killpg(child.pid, signal.SIGKILL)
            child.kill()
            child.wait()


def error_line(output: str) -> str:
    """The line of a program's output that tells best what went wrong."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    for word in ("no space left", "errno", "error:", "fatal:", "error"):
        found = [line for line in lines if word in line.lower()]
        if found:
            return re.sub(r"^(ERROR|error|fatal): *", "", found[-1])
    return lines[-1] if lines else "no message"


def pip(*arguments: str | Path, seconds: float | None = None) -> None:
    """Run pip.

    Raises:
        SetupError: pip failed; the message has pip's reason.
    """
    done = run(sys.executable, "-m", "pip", *arguments, seconds=seconds)
    if done.returncode:
        raise SetupError(f"pip {arguments[0]} failed: {error_line(done.stdout)}")


def pip_install(state: dict, *arguments: str | Path, seconds: float | None = None) -> None:
    """pip install, which must not replace the installed PyTorch."""
    with tempfile.TemporaryDirectory() as folder:
        constraints = Path(folder, "constraints.txt")
        constraints.write_text(f"torch=={state['torch']}\n")
        pip("install", "--constraint", constraints, *arguments, seconds=seconds)


def imports(module: str) -> str:
    """An empty string if a module can be imported, otherwise the reason in one line."""
    done = run(sys.executable, "-W", "ignore", "-c", f"import {module}")
    return error_line(done.stdout) if done.returncode else ""


def is_installed(module: str) -> bool:
    code = f"import importlib.util, sys; sys.exit(importlib.util.find_spec('{module}') is None)"
    return run(sys.executable, "-c", code).returncode == 0


def probe() -> dict:
    """The versions of PyTorch and detectron2, or why they cannot be used.

    In a process of its own: packages may have changed since this one has started.
    """
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PROBE],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    reports = [line for line in done.stdout.splitlines() if line.startswith('{"torch"')]
    if not reports:
        raise SetupError(f"{sys.executable} does not run")
    return json.loads(reports[-1])
