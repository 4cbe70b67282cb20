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
            path: an existing file.
            threads: of onnxruntime, for one call; None for the number of cores.

        Raises:
            ImportError: onnxruntime is not installed.
            ValueError: not an ONNX file, or not one that tools/export_model.py wrote.
        """
        try:
            import onnxruntime
        except ImportError as error:
            raise ImportError(
                f"{path} is an ONNX file; onnxruntime, which runs it, is not installed: "
                "pip install onnxruntime"
            ) from error
        self._path = path
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4  # errors are raised, and its warnings do not help a user
        options.intra_op_num_threads = threads or 0
        try:
            self._session = onnxruntime.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # onnxruntime's errors have no common base class but this
            raise ValueError(
                f"{path}: expected a model that tools/export_model.py wrote, as ONNX or "
                f"torch.export; onnxruntime reports: {str(error).splitlines()[0]}"
            ) from error
        text = self._session.get_modelmeta().custom_metadata_map.get(KEY)
        if text is None:
            raise ValueError(
                f"{path}: an ONNX file that tools/export_model.py did not write: it has no "
                f"metadata {KEY}"
            )
        self.info = ModelInfo.from_json(text, str(path))

    def __call__(
        self, image: np.ndarray, size: np.ndarray, num_proposals: np.ndarray, names: Sequence[str]
    ) -> list[np.ndarray]:
        """The outputs ``names`` of the graph.

        Raises:
            ValueError: onnxruntime cannot run the graph.
        """
        feed = {"image": image, "size": size, "num_proposals": num_proposals}
        try:
            return self._session.run(list(names), feed)
        except Exception as error:  # onnxruntime's errors have no common base class but this
            raise ValueError(f"{self._path}: this model cannot be run: {error}") from error
