"""Writes a captured detector as an ONNX file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch.export import ExportedProgram

from hypernet_d2.deploy.metadata import INPUTS, KEY, ModelInfo

from .onnx_constants import shrink_constants
from .onnx_resizing import add_resizing

__all__ = ["write_onnx"]


def write_onnx(
    program: ExportedProgram, info: ModelInfo, stem: Path, *, half_weights: bool = False
) -> Path:
    """Write STEM.onnx.

    Args:
        program: from `capture`.
        info: where ``info.resizes`` is true, the file takes images as they are.
        stem: the path without its suffix.
        half_weights: store the weights as 16-bit floats, from which the file computes 32-bit ones.
    """
    path = stem.with_name(f"{stem.name}.onnx")
    result = torch.onnx.export(
        program,
        dynamo=True,
        input_names=list(INPUTS),
        output_names=list(info.outputs),
        custom_translation_table=_translations(),
        optimize=False,
        verbose=False,
    )
    model = result.model
    _simplify(model)
    # The exporter's metadata has names of Python modules, and source lines with their file names.
    for item in (*model.graph.all_nodes(), *model.graph.initializers.values()):
        item.metadata_props.clear()
    model.graph.metadata_props.clear()
    model.metadata_props.clear()
    model.metadata_props[KEY] = info.to_json()
    if info.resizes:
        add_resizing(model, info)
    shrink_constants(model, half_weights=half_weights)
    result.save(path, external_data=False)
    return path


def _translations() -> dict[Callable, Callable]:
    """ONNX for the operators that the exporter does not support, or translates to slow ones."""
    import onnx_ir
    from onnxscript import opset20 as op

    def sort(self, stable=True, dim=-1, descending=False):
        # TopK keeps the order of equal values, as a stable sort does.
        size = op.Constant(value_ints=[int(self.shape[dim])])
        return op.TopK(self, size, axis=dim, largest=int(descending), sorted=1)

    def roi_pool(x, rois, spatial_scale, pooled_height, pooled_width):
        shape = (pooled_height, pooled_width)
        pooled = op.MaxRoiPool(x, rois, pooled_shape=shape, spatial_scale=spatial_scale)
        return pooled, pooled  # torchvision's second output, the argmax, is not used

    def unfold(self, dimension, size, step):
        rank = len(self.shape)
        dim = dimension % rank
        first = np.arange(0, self.shape[dim] - size + 1, step)
        index = op.Constant(value=onnx_ir.tensor(first[:, None] + np.arange(size)))
        # Gather along the first dimension copies whole rows instead of single values.
        front = op.Transpose(self, perm=[dim, *(i for i in range(rank) if i != dim)])
        windows = op.Gather(front, index, axis=0)
        rest = [i + 2 for i in range(rank - 1)]
        return op.Transpose(windows, perm=[*rest[:dim], 0, *rest[dim:], 1])

    return {
        torch.ops.aten.sort.stable: sort,
        torch.ops.torchvision.roi_pool.default: roi_pool,
        torch.ops.aten.unfold.default: unfold,
    }


def _simplify(model) -> None:
    """The optimizations of the exporter without its pattern rewriting.

    The rewriting searches the whole graph for each node, which takes hours for the thousands of
    nodes of a large grid of windows. onnxruntime does the same when it loads the file.
    """
    from onnx_ir.passes import common
    from onnxscript.optimizer import fold_constants

    common.InlinePass()(model)
    fold_constants(model)
    for apply_pass in (
        common.RemoveUnusedNodesPass(),
        common.RemoveUnusedFunctionsPass(),
        common.RemoveUnusedOpsetsPass(),
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        common.LiftSubgraphInitializersToMainGraphPass(),
        common.CommonSubexpressionEliminationPass(),
        common.OutputFixPass(),
        common.NameFixPass(),
    ):
        apply_pass(model)
