"""Captures a detector with torch.export, and writes the archive of torch.export."""

from __future__ import annotations

from pathlib import Path

import torch
from torch.export import Dim, ExportedProgram

from hypernet_d2.deploy.metadata import KEY, ModelInfo
from hypernet_d2.deploy.torch_runner import check_archive

from .exportable import ExportableDetector, size_divisibility

__all__ = ["capture", "write_torch"]


def capture(detector: ExportableDetector) -> ExportedProgram:
    """Capture the graph for images of any padded size up to ``detector.canvas``.

    The program contains no file names of the machine that captured it.
    """
    image = torch.zeros(*detector.canvas, 3, dtype=torch.uint8)
    inputs = (image, torch.tensor(detector.canvas), torch.tensor(1))
    divisor = size_divisibility(detector.model)
    # PyTorch assumes that a dynamic size is not 1, although the graph holds for maps of one cell,
    # too. Without padding it derives from that a least size of the image.
    strides = (shape.stride for shape in detector.model.backbone.output_shape().values())
    least = 1 if divisor > 1 else max(strides) + 1
    sides = {
        dim: divisor * Dim(name, min=least, max=side // divisor)
        for dim, (name, side) in enumerate(zip(("rows", "columns"), detector.canvas, strict=True))
        if side > divisor * least
    }
    shapes = {"image": sides, "size": None, "num_proposals": None}
    with torch.no_grad():
        detector(*inputs)  # fills the caches of the grid, which must not hold fake tensors
        program = torch.export.export(detector, inputs, dynamic_shapes=shapes, strict=False)
    getattr(program, "_guards_code", []).clear()  # older versions have no such list
    for symbol, limits in program.range_constraints.items():
        if limits.lower == least:
            program.range_constraints[symbol] = type(limits)(1, limits.upper)
    for module in program.graph_module.modules():
        for node in getattr(module, "graph", torch.fx.Graph()).nodes:
            for origin in ("stack_trace", "nn_module_stack", "torch_fn", "source_fn_stack"):
                node.meta.pop(origin, None)
    program.example_inputs = None
    return program


def write_torch(program: ExportedProgram, info: ModelInfo, stem: Path) -> Path:
    """Write STEM.pt2, an archive of torch.export."""
    path = stem.with_suffix(".pt2")
    torch.export.save(program, path, extra_files={KEY: info.to_json()})
    check_archive(path.read_bytes(), path)
    return path
