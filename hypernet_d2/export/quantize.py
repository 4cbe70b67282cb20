"""Static quantization of an ONNX file to integers of 8 bits, by onnxruntime."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from hypernet_d2.deploy.metadata import KEY, ModelInfo

from .onnx_constants import shrink_constants

__all__ = ["quantize_int8"]

# The layers that take most of the time. Others stay in floats.
OPERATORS = ["Conv"]


def quantize_int8(source: Path, target: Path, images: Iterable[np.ndarray]) -> None:
    """Write a copy of an exported model whose convolutions compute with 8-bit integers.

    Weights are quantized by channel, activations by the ranges that occur in the images. The boxes,
    the scores and all that follows the last convolution stay 32-bit floats.

    Args:
        source: a file of `write_onnx`.
        target: the file to write.
        images: some ten to a hundred images like those to be detected in, (H, W, 3) uint8 BGR.

    Raises:
        ImportError: onnx is not installed.
        ValueError: there is no image.
    """
    import onnx
    import onnx_ir
    import onnxruntime
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    with tempfile.TemporaryDirectory() as folder:
        # onnxruntime's basic optimizations merge normalizations into the convolutions, which could
        # not be done once they are quantized.
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = str(Path(folder) / "merged.onnx")
        onnxruntime.InferenceSession(str(source), options, providers=["CPUExecutionProvider"])
        quantize_static(
            options.optimized_model_filepath,
            str(Path(folder) / "quantized.onnx"),
            _Reader(source, images),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=OPERATORS,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
        model = onnx_ir.from_proto(onnx.load(Path(folder) / "quantized.onnx"))
    text = onnx.load(source, load_external_data=False).metadata_props
    model.metadata_props.clear()
    model.metadata_props[KEY] = next(item.value for item in text if item.key == KEY)
    shrink_constants(model)
    onnx_ir.save(model, target)


class _Reader:
    """Calibration inputs as onnxruntime's ``CalibrationDataReader`` gives them."""

    def __init__(self, source: Path, images: Iterable[np.ndarray]):
        from hypernet_d2.deploy import Detector

        detector = Detector(source, threads=1)
        self._info: ModelInfo = detector.info
        self._feeds = (detector.inputs(image) for image in images)
        self._count = 0

    def get_next(self) -> dict[str, np.ndarray] | None:
        feed = next(self._feeds, None)
        self._count += feed is not None
        if not self._count:
            raise ValueError("no calibration image")
        return feed

    # onnxruntime calls these where a reader has them.
    def __iter__(self) -> _Reader:
        return self

    def __next__(self) -> dict[str, np.ndarray]:
        feed = self.get_next()
        if feed is None:
            raise StopIteration
        return feed
