"""Adds nodes to a graph of onnx_ir."""

from __future__ import annotations

import numpy as np

__all__ = ["Tape"]


class Tape:
    """Collects new nodes of a graph, in order; `insert` adds them.

    Attributes:
        name: prefix of the names of new constants.
    """

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

    def insert(self) -> None:
        """Add the nodes at the start of the graph."""
        if self.nodes:
            self.model.graph.insert_before(self.model.graph[0], self.nodes)
