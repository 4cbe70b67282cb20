"""Resizing of images within an ONNX graph."""

from __future__ import annotations

import numpy as np

from hypernet_d2.deploy.metadata import ModelInfo

from .onnx_tape import Tape

__all__ = ["add_resizing"]


def add_resizing(model, info: ModelInfo) -> None:
    """Let a graph take images as they are, and give boxes in their pixels.

    The input "image" (h, w, 3) uint8 then has any height and width, and the input "size" is gone.
    The image is resized and padded as `hypernet_d2.deploy.Detector` does. ONNX's Resize with
    antialiasing differs from Pillow by 1 in some of the values, since it rounds otherwise: in 0 to
    0.6 percent of them where it was measured (onnxruntime 1.32).

    Args:
        model: of onnx_ir, as `write_onnx` makes it; is changed.
        info: sizes, canvas and size divisibility of the model.
    """
    import onnx_ir

    graph, tape = model.graph, Tape(model, "resizing")
    inputs = {value.name: value for value in graph.inputs}
    image = onnx_ir.Value(
        name="image", type=inputs["image"].type, shape=onnx_ir.Shape(["height", "width", 3])
    )
    inputs["image"].name = "padded_image"
    shape = tape.add("Shape", image, start=0, end=2)
    size = _fit_size(tape, shape, info)
    padded = _resize_and_pad(tape, image, size, info.size_divisibility)
    inputs["image"].replace_all_uses_with(padded)
    inputs["size"].replace_all_uses_with(size)
    graph.inputs[:] = [image, inputs["num_proposals"]]
    tape.insert()

    tape = Tape(model, "scaling")
    ratio = tape.add("Div", _double(tape, shape), _double(tape, size))
    ratio = tape.cast(_x_y_x_y(tape, ratio), onnx_ir.DataType.FLOAT)
    limit = tape.cast(_x_y_x_y(tape, shape), onnx_ir.DataType.FLOAT)
    for index, value in enumerate(list(graph.outputs)):
        if value.name not in ("boxes", "proposals", "windows"):
            continue
        scaled = tape.add("Mul", value, ratio)
        if value.name != "windows":  # which may extend beyond the image
            scaled = tape.add("Max", tape.add("Min", scaled, limit), _constant(tape, 0, np.float32))
        name, value.name = value.name, f"resized_{value.name}"
        scaled.name, scaled.type, scaled.shape = name, value.type, value.shape
        graph.outputs[index] = scaled
    graph.extend(tape.nodes)


def _constant(tape: Tape, value, dtype=np.float64):
    return tape.constant(np.array(value, dtype))


def _double(tape: Tape, value):
    import onnx_ir

    return tape.cast(value, onnx_ir.DataType.DOUBLE)


def _fit_size(tape: Tape, shape, info: ModelInfo):
    """`hypernet_d2.utils.images.fit_size` of a (2,) int64 height and width."""
    import onnx_ir

    sides, one = _double(tape, shape), _constant(tape, 1)
    if info.min_size:
        short = tape.add("ReduceMin", sides, keepdims=0)
        factor = tape.add("Div", _constant(tape, info.min_size), short)
        is_short = tape.add("Equal", sides, short)
        scaled = tape.add("Mul", factor, sides)
        sides = tape.add("Where", is_short, _constant(tape, info.min_size), scaled)
        long, most = tape.add("ReduceMax", sides, keepdims=0), _constant(tape, info.max_size)
        factor = tape.add(
            "Where", tape.add("Greater", long, most), tape.add("Div", most, long), one
        )
        sides = tape.add("Mul", sides, factor)

    def rounded(sides):
        shifted = tape.add("Add", sides, _constant(tape, 0.5))
        whole = tape.cast(shifted, onnx_ir.DataType.INT64)
        return tape.add("Max", whole, _constant(tape, 1, np.int64))

    canvas = _constant(tape, info.canvas)
    excess = tape.add("Greater", _double(tape, rounded(sides)), canvas)
    exceeds = tape.add("ReduceMax", tape.cast(excess, onnx_ir.DataType.INT64), keepdims=0)
    exceeds = tape.cast(exceeds, onnx_ir.DataType.BOOL)
    factor = tape.add("ReduceMin", tape.add("Div", canvas, sides), keepdims=0)
    return rounded(tape.add("Mul", sides, tape.add("Where", exceeds, factor, one)))


def _resize_and_pad(tape: Tape, image, size, divisor: int):
    """Resize (h, w, 3) uint8 to ``size``, and pad it to multiples of ``divisor``."""
    first, batch = _constant(tape, [0], np.int64), _constant(tape, [1, 3], np.int64)
    x = tape.add("Unsqueeze", tape.add("Transpose", image, perm=[2, 0, 1]), first)
    x = tape.add(
        "Resize",
        x,
        None,
        None,
        tape.add("Concat", batch, size, axis=0),
        mode="linear",
        antialias=1,
        coordinate_transformation_mode="half_pixel",
        exclude_outside=1,
    )
    x = tape.add("Transpose", tape.add("Squeeze", x, first), perm=[1, 2, 0])
    missing = tape.add("Mod", tape.add("Neg", size), _constant(tape, divisor, np.int64))
    before, after = _constant(tape, [0, 0, 0], np.int64), _constant(tape, [0], np.int64)
    return tape.add("Pad", x, tape.add("Concat", before, missing, after, axis=0))


def _x_y_x_y(tape: Tape, size):
    """Height and width -> width, height, width, height."""
    return tape.add("Gather", size, _constant(tape, [1, 0, 1, 0], np.int64))
