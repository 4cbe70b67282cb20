"""Device names, synchronization and peak memory, for all benchmarks."""

import ctypes
import gc
import sys
from collections.abc import Callable
from pathlib import Path

import torch


def peak_extra_mb(function: Callable, device: torch.device) -> float | None:
    """Returns the peak memory of a call, less the memory in use before it, in 10**6 bytes.

    On a CPU this is the resident set size, which is known on Linux; elsewhere it is None.
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        function()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / 1e6
    if not sys.platform.startswith("linux"):
        return None
    # Memory that the allocator keeps from earlier calls would hide the memory of this one.
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
    before = _resident_mb("VmRSS")
    function()
    return _resident_mb("VmHWM") - before


def _resident_mb(field: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise RuntimeError(f"/proc/self/status has no {field}")


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
