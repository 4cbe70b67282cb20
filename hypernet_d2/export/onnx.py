"""Writes a captured detector as an ONNX file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch.export import ExportedProgram

from hypernet_d2.deploy.metadata import INPUTS, KEY, OUTPUTS, ModelInfo

__all__ = ["write_onnx"]


def write_onnx(program: ExportedProgram, info: ModelInfo, stem: Path) -> Path:
    """Write STEM.onnx."""
    path = stem.with_suffix(".onnx")
    result = torch.onnx.export(
        program,
        dynamo=True,
        input_names=list(INPUTS),
        output_names=list(OUTPUTS),
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
    _shrink(model)
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


def _shrink(model) -> None:
    """Store the large constants of an ONNX graph in fewer bytes, without loss.

    The indices of the windows are integers of 64 bits, and their weights have many zeros.
    onnxruntime expands them when it loads the file.
    """
    from onnx_ir.passes.common import DeduplicateInitializersPass

    DeduplicateInitializersPass(size_limit=1 << 40)(model)
    for value in list(model.graph.initializers.values()):
        array = value.const_value.numpy()
        if array.nbytes < 4096:
            continue
        narrow = _narrowest(array)
        if narrow.dtype != array.dtype:
            tape = _Tape(model, value.name)
            full = tape.cast(tape.constant(narrow), value.dtype)
        elif array.dtype == np.float32 and 2 * np.count_nonzero(array) < array.size:
            tape = _Tape(model, value.name)
            full = tape.scatter(array)
        else:
            continue
        full.dtype, full.shape = value.dtype, value.shape
        value.replace_all_uses_with(full)
        del model.graph.initializers[value.name]
        for node in reversed(tape.nodes):
            model.graph.insert_before(model.graph[0], node)


def _narrowest(array: np.ndarray) -> np.ndarray:
    """Convert integers to the smallest type that holds them; other arrays are not changed."""
    if array.dtype not in (np.int64, np.float32) or (array != np.trunc(array)).any():
        return array
    for dtype in (np.uint8, np.int16, np.uint16, np.int32):
        limits = np.iinfo(dtype)
        if limits.min <= array.min() and array.max() <= limits.max:
            if np.dtype(dtype).itemsize < array.itemsize:
                return array.astype(dtype)
    return array


class _Tape:
    """Collects new nodes of a graph, in order."""

    def __init__(self, model, name: str):
        self.model, self.name, self.nodes = model, name, []

    def constant(self, array: np.ndarray):
        import onnx_ir

        name = f"{self.name}.{len(self.model.graph.initializers)}"
        tensor = onnx_ir.tensor(array, name=name)
        value = onnx_ir.Value(
            name=name, const_value=tensor, shape=tensor.shape, type=onnx_ir.TensorType(tensor.dtype)
        )
        self.model.graph.initializers[name] = value
        return value

    def add(self, operator: str, *inputs, **attributes):
        import onnx_ir

        node = onnx_ir.node(operator, list(inputs), attributes)
        self.nodes.append(node)
        return node.outputs[0]

    def cast(self, value, dtype):
        return self.add("Cast", value, to=dtype)

    def scatter(self, array: np.ndarray):
        """An array from its values other than zero, and their positions."""
        import onnx_ir

        (positions,) = np.nonzero(array.ravel())
        index = self.cast(self.constant(_narrowest(positions)), onnx_ir.DataType.INT64)
        zeros = self.add("ConstantOfShape", self.constant(np.array([array.size])))
        values = self.constant(array.ravel()[positions])
        flat = self.add("ScatterElements", zeros, index, values)
        return self.add("Reshape", flat, self.constant(np.array(array.shape)))
