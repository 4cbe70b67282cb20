"""Stores the constants of an ONNX graph in fewer bytes."""

from __future__ import annotations

import numpy as np

from .onnx_tape import Tape

__all__ = ["shrink_constants"]

# Smaller constants stay as they are.
LEAST_BYTES = 4096
# The largest 16-bit float; weights beyond it stay 32-bit floats.
HALF_MAX = 65504


def shrink_constants(model, *, half_weights: bool = False) -> None:
    """Store the large constants of an ONNX graph in fewer bytes.

    The indices of the windows are integers of 64 bits, and their weights have many zeros.
    That is without loss; ``half_weights`` rounds all other floats to 16 bits. onnxruntime expands
    them when it loads the file.
    """
    from onnx_ir.passes.common import DeduplicateInitializersPass

    DeduplicateInitializersPass(size_limit=1 << 40)(model)
    for value in list(model.graph.initializers.values()):
        array = value.const_value.numpy()
        if array.nbytes < LEAST_BYTES:
            continue
        tape = Tape(model, value.name)
        narrow = _narrowest(array)
        if narrow.dtype != array.dtype:
            full = tape.cast(tape.constant(narrow), value.dtype)
        elif array.dtype == np.float32 and 2 * np.count_nonzero(array) < array.size:
            full = _scatter(tape, array)
        elif half_weights and array.dtype == np.float32 and np.abs(array).max() <= HALF_MAX:
            full = tape.cast(tape.constant(array.astype(np.float16)), value.dtype)
        else:
            continue
        full.dtype, full.shape = value.dtype, value.shape
        value.replace_all_uses_with(full)
        del model.graph.initializers[value.name]
        tape.insert()


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


def _scatter(tape: Tape, array: np.ndarray):
    """An array from its values other than zero, and their positions."""
    import onnx_ir

    (positions,) = np.nonzero(array.ravel())
    index = tape.cast(tape.constant(_narrowest(positions)), onnx_ir.DataType.INT64)
    zeros = tape.add("ConstantOfShape", tape.constant(np.array([array.size])))
    values = tape.constant(array.ravel()[positions])
    flat = tape.add("ScatterElements", zeros, index, values)
    return tape.add("Reshape", flat, tape.constant(np.array(array.shape)))
