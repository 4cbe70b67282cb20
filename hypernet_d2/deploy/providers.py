"""onnxruntime's execution providers by short names."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence

__all__ = ["PROVIDERS", "RUNTIMES", "add_runtime_arguments", "find_providers"]

logger = logging.getLogger(__name__)

# Short name: (onnxruntime's name, package of onnxruntime that has it).
PROVIDERS = {
    "cpu": ("CPUExecutionProvider", "onnxruntime"),
    "cuda": ("CUDAExecutionProvider", "onnxruntime-gpu"),
    "tensorrt": ("TensorrtExecutionProvider", "onnxruntime-gpu"),
    "coreml": ("CoreMLExecutionProvider", "onnxruntime, for macOS"),
    "openvino": ("OpenVINOExecutionProvider", "onnxruntime-openvino"),
    "directml": ("DmlExecutionProvider", "onnxruntime-directml"),
    "migraphx": ("MIGraphXExecutionProvider", "onnxruntime-migraphx"),
    "xnnpack": ("XnnpackExecutionProvider", "a build of onnxruntime with XNNPACK"),
}
# What runs an ONNX file, and what runs an archive of torch.export; the first of each by default.
RUNTIMES = {"onnx": ("onnxruntime", "openvino"), "torch_export": ("torch", "torch.compile")}


def find_providers(names: Sequence[str] | None, available: Sequence[str]) -> list[str]:
    """onnxruntime's names of providers, in order of preference; the CPU is always the last.

    A provider that the installed onnxruntime does not have is left out with a warning.

    Args:
        names: short names as in `PROVIDERS`, or onnxruntime's own, in any case; None for the CPU.
        available: the providers of the installed onnxruntime.

    Raises:
        ValueError: an unknown name.
    """
    if isinstance(names, str):
        names = [names]
    full_names = {full.lower(): short for short, (full, _) in PROVIDERS.items()}
    found = []
    for name in names or ():
        short = full_names.get(str(name).lower(), str(name).lower())
        if short not in PROVIDERS:
            raise ValueError(f"unknown provider {name!r}; expected one of {', '.join(PROVIDERS)}")
        full, package = PROVIDERS[short]
        if full in available:
            found.append(full)
        else:
            logger.warning(
                "provider %s: this onnxruntime does not have it (it has %s), falling back to the "
                "next one: pip install %s",
                short,
                ", ".join(available),
                package,
            )
    return list(dict.fromkeys([*found, PROVIDERS["cpu"][0]]))


def add_runtime_arguments(parser: argparse.ArgumentParser) -> None:
    """Add ``--provider`` and ``--runtime``, as of `Detector`."""
    parser.add_argument(
        "--provider",
        action="append",
        metavar="NAME",
        help=f"execution provider of onnxruntime: {', '.join(PROVIDERS)}; may be repeated, the "
        "preferred one first (default: cpu)",
    )
    parser.add_argument(
        "--runtime",
        choices=[name for names in RUNTIMES.values() for name in names],
        help="what runs the file (default: onnxruntime for ONNX, torch for torch.export)",
    )
