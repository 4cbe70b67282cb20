"""PyTorch, the project itself and its dependencies."""

from __future__ import annotations

import shutil
import sys
import sysconfig
import urllib.request
import zlib
from os import environ
from pathlib import Path

from commands import ROOT, SetupError, imports, is_installed, pip, pip_install, probe, say, step

TORCH, TORCHVISION = "2.14.1", "0.29.2"  # installed if there is no PyTorch
CPU_INDEX = environ.get("PYTORCH_CPU_INDEX", "https://download.pytorch.org/whl/cpu")
REACH_SECONDS = 5  # to find out whether that index can be reached
EXTRAS = "dev"


def install_packages() -> dict:
    """Install PyTorch if it is missing, and the project; return the state of the environment.

    Raises:
        SetupError: a package cannot be installed, or does not load.
    """
    state = probe()
    stamp = Path(sys.prefix, ".hypernet_d2_setup")
    if stamp.is_file() and stamp.read_text(encoding="utf-8") == fingerprint(state):
        say("packages: nothing changed since the last set-up")
        return state
    stamp.unlink(missing_ok=True)
    remove_incomplete()
    if state["torch"] is None or state["torch_is_old"]:
        with step(f"torch: installing torch {TORCH} and torchvision {TORCHVISION} (takes minutes)"):
            install_torch()
        state = probe()
        if state["torch"] is None or state["torch_is_old"]:
            reason = state.get("torch_error", "it is older than 2.4")
            raise SetupError(f"torch is installed, but cannot be used: {reason}")
    else:
        say(f"torch: {state['torch']} is installed and stays")
    with step(f"packages: installing hypernet_d2[{EXTRAS}] from this checkout, editable"):
        if imports("setuptools.command.bdist_wheel"):  # setuptools is missing, or older than 70.1
            pip_install(state, "setuptools>=77")
        pip_install(state, "--no-build-isolation", "--editable", f".[{EXTRAS}]")
        if not is_installed("cv2"):
            pip_install(state, "opencv-python-headless")
    for module, hint in (
        ("cv2", "without libGL, replace opencv-python by opencv-python-headless"),
        ("torchvision", f"does it fit torch {state['torch']}? Install the two together"),
    ):
        reason = imports(module)
        if reason:
            raise SetupError(f"{module} does not load: {reason} ({hint})")
    state = probe()
    stamp.write_text(fingerprint(state), encoding="utf-8")
    return state


def fingerprint(state: dict) -> str:
    """Changes whenever packages may have to be installed again."""
    files = [ROOT / "setup.py", *sorted((ROOT / "tools/set_up").glob("*.py"))]
    sums = [str(zlib.crc32(file.read_bytes())) for file in files]
    versions = f"{sys.version}\n{state['torch']} {state['torchvision']}"
    return "\n".join([str(ROOT), *sums, versions])


def remove_incomplete() -> None:
    """Make pip install those packages again whose installation was interrupted.

    pip writes the file INSTALLER of a package after the files of the package.
    """
    for info in Path(sysconfig.get_path("purelib")).glob("*.dist-info"):
        if not (info / "INSTALLER").exists():
            name = info.name.removesuffix(".dist-info")
            say(f"packages: {name} is incomplete and will be installed again")
            shutil.rmtree(info)


def install_torch() -> None:
    index = cpu_index()
    try:
        pip("install", *index, f"torch=={TORCH}", f"torchvision=={TORCHVISION}")
    except SetupError as error:
        if "no matching distribution" not in str(error).lower():
            raise
        say("torch: not that version for this Python or platform; installing the newest")
        pip("install", *index, "torch>=2.4", "torchvision>=0.19")


def cpu_index() -> list[str]:
    """pip's options for a PyTorch without CUDA libraries, on Linux without an NVIDIA GPU."""
    has_gpu = Path("/proc/driver/nvidia").exists() or shutil.which("nvidia-smi")
    if sys.platform != "linux" or has_gpu:
        return []
    try:
        with urllib.request.urlopen(f"{CPU_INDEX}/torch/", timeout=REACH_SECONDS):
            pass
    except OSError:
        say(
            f"torch: {CPU_INDEX} cannot be reached: pip's index has the build with CUDA libraries "
            "(several GB); a CPU build that is installed beforehand is kept"
        )
        return []
    say(f"torch: no NVIDIA GPU, so the CPU build from {CPU_INDEX}")
    return ["--extra-index-url", CPU_INDEX]
