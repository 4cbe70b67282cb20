"""Runs an ONNX file with onnxruntime."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from .metadata import KEY, ModelInfo

__all__ = ["OnnxRunner"]


class OnnxRunner:
    """Calls may come from several threads at a time."""

    def __init__(self, path: Path, threads: int | None):
        """
        Args:
            path: of a file that exists.
            threads: of onnxruntime, for one call; None for as many as there are cores.

        Raises:
            ImportError: onnxruntime is not installed.
            ValueError: not an ONNX file, or not one of tools/export_model.py.
        """
        try:
            import onnxruntime
        except ImportError as error:
            raise ImportError(
                f"{path} is an ONNX file, which onnxruntime runs, and that is not installed: "
                "pip install onnxruntime"
            ) from error
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4  # its remarks tell a user nothing, and errors are raised
        options.intra_op_num_threads = threads or 0
        try:
            self._session = onnxruntime.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # onnxruntime's errors have no common base but this
            raise ValueError(
                f"{path}: expected a model of tools/export_model.py, in ONNX or torch.export's "
                f"format; onnxruntime says: {str(error).splitlines()[0]}"
            ) from error
        text = self._session.get_modelmeta().custom_metadata_map.get(KEY)
        if text is None:
            raise ValueError(
                f"{path}: an ONNX file, but not of tools/export_model.py: it has no metadata {KEY}"
            )
        self.info = ModelInfo.from_json(text, str(path))

    def __call__(
        self, image: np.ndarray, size: np.ndarray, num_proposals: np.ndarray, names: Sequence[str]
    ) -> list[np.ndarray]:
        """The outputs `names` of the graph."""
        feed = {"image": image, "size": size, "num_proposals": num_proposals}
        return self._session.run(list(names), feed)
