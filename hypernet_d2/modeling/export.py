"""Writes an exportable detector down, as ONNX or as an archive of torch.export."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch.export import ExportedProgram

from ..deploy.metadata import INPUTS, KEY, OUTPUTS, ModelInfo
from ..deploy.torch_runner import check_archive
from .exportable import ExportableDetector

__all__ = ["capture", "write_onnx", "write_torch"]


def capture(detector: ExportableDetector, info: ModelInfo) -> ExportedProgram:
    """The graph for images of ``info.canvas``, without paths of the machine that captured it."""
    image = torch.zeros(*info.canvas, 3, dtype=torch.uint8)
    inputs = (image, torch.tensor(info.canvas), torch.tensor(info.max_proposals))
    with torch.no_grad():
        detector(*inputs)  # builds what the scorer keeps for this size of map
        program = torch.export.export(detector, inputs, strict=False)
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


def write_onnx(
    program: ExportedProgram, info: ModelInfo, stem: Path, *, half: bool = False
) -> Path:
    """Write STEM.onnx; its large constants rounded to 16 bits where `half` is true."""
    path = stem.with_suffix(".onnx")
    result = torch.onnx.export(
        program,
        dynamo=True,
        input_names=list(INPUTS),
        output_names=list(OUTPUTS),
        custom_translation_table=_translations(),
        verbose=False,
    )
    model = result.model
    # Left over: names of Python's modules, and lines of code with their paths.
    for item in (*model.graph.all_nodes(), *model.graph.initializers.values()):
        item.metadata_props.clear()
    model.graph.metadata_props.clear()
    model.metadata_props.clear()
    model.metadata_props[KEY] = info.to_json()
    if half:
        _store_as_half(model)
    result.save(path, external_data=False)
    return path


def _translations() -> dict[Callable, Callable]:
    """ONNX for the operators that the exporter lacks, or writes down in a way that runs slowly."""
    import onnx_ir
    from onnxscript import opset20 as op

    def sort(self, stable=True, dim=-1, descending=False):
        # TopK takes equal values in their order, as a stable sort does.
        size = op.Constant(value_ints=[int(self.shape[dim])])
        return op.TopK(self, size, axis=dim, largest=int(descending), sorted=1)

    def roi_pool(x, rois, spatial_scale, pooled_height, pooled_width):
        shape = (pooled_height, pooled_width)
        pooled = op.MaxRoiPool(x, rois, pooled_shape=shape, spatial_scale=spatial_scale)
        return pooled, pooled  # in torchvision the second tells where the maxima are; unused

    def unfold(self, dimension, size, step):
        rank = len(self.shape)
        dim = dimension % rank
        first = np.arange(0, self.shape[dim] - size + 1, step)
        index = op.Constant(value=onnx_ir.tensor(first[:, None] + np.arange(size)))
        # Gathered along the first dimension, whole rows are copied instead of single values.
        front = op.Transpose(self, perm=[dim, *(i for i in range(rank) if i != dim)])
        windows = op.Gather(front, index, axis=0)
        rest = [i + 2 for i in range(rank - 1)]
        return op.Transpose(windows, perm=[*rest[:dim], 0, *rest[dim:], 1])

    return {
        torch.ops.aten.sort.stable: sort,
        torch.ops.torchvision.roi_pool.default: roi_pool,
        torch.ops.aten.unfold.default: unfold,
    }


def _store_as_half(model) -> None:
    """Keep the large constants of an ONNX graph in 16 bits, and widen them when it is loaded."""
    import onnx_ir

    for name, value in list(model.graph.initializers.items()):
        if value.dtype != onnx_ir.DataType.FLOAT or value.const_value.size < 1024:
            continue
        stored = onnx_ir.Value(
            name=f"{name}_half",
            const_value=onnx_ir.tensor(value.const_value.numpy().astype(np.float16)),
        )
        cast = onnx_ir.node("Cast", [stored], attributes={"to": onnx_ir.DataType.FLOAT})
        cast.outputs[0].dtype, cast.outputs[0].shape = value.dtype, value.shape
        value.replace_all_uses_with(cast.outputs[0])
        del model.graph.initializers[name]
        model.graph.initializers[stored.name] = stored
        model.graph.insert_before(model.graph[0], cast)
