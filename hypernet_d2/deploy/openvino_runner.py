"""Runs an ONNX file with OpenVINO."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from .metadata import KEY, ModelInfo

__all__ = ["OpenVinoRunner"]


class OpenVinoRunner:
    """Calls may come from several threads at a time; each has an inference request of its own."""

    def __init__(self, path: Path, threads: int | None = None, device: str = "CPU"):
        """
        Args:
            path: an existing file.
            threads: for one call; None for OpenVINO's choice.
            device: OpenVINO's name of the device.

        Raises:
            ImportError: OpenVINO is not installed.
            ValueError: not an ONNX file that tools/export_model.py wrote, or one that OpenVINO
                cannot run.
        """
        try:
            import openvino
        except ImportError as error:
            raise ImportError(
                'OpenVINO is not installed: pip install "hypernet-d2[openvino]"'
            ) from error
        self._path = path
        # 16-bit floats, which OpenVINO prefers where the processor has them, change the detections.
        settings = {"INFERENCE_PRECISION_HINT": "f32"}
        if threads:
            settings["INFERENCE_NUM_THREADS"] = threads
        try:
            model = openvino.Core().read_model(path)
            text = model.get_rt_info(["framework", KEY]).astype(str)
            self._compiled = openvino.Core().compile_model(model, device, settings)
        except Exception as error:  # OpenVINO's errors have no common base class but this
            raise ValueError(
                f"{path}: expected an ONNX file that tools/export_model.py wrote; OpenVINO "
                f"reports: {' '.join(str(error).split())[-300:]}"
            ) from error
        self._names = [output.get_any_name() for output in self._compiled.outputs]
        self._local = threading.local()
        self.info = ModelInfo.from_json(text, str(path))

    def __call__(self, feed: dict[str, np.ndarray], names: Sequence[str]) -> list[np.ndarray]:
        """The outputs ``names`` of the graph for the inputs ``feed``.

        Raises:
            ValueError: OpenVINO cannot run the graph.
        """
        if not hasattr(self._local, "request"):
            self._local.request = self._compiled.create_infer_request()
        try:
            outputs = self._local.request.infer(feed)
        except Exception as error:  # OpenVINO's errors have no common base class but this
            raise ValueError(f"{self._path}: this model cannot be run: {error}") from error
        return [np.array(outputs[name]) for name in names]
