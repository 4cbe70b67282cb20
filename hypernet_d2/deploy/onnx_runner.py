"""Runs an ONNX file with onnxruntime."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from .metadata import KEY, ModelInfo
from .providers import find_providers

__all__ = ["OnnxRunner"]

logger = logging.getLogger(__name__)


class OnnxRunner:
    """Calls may come from several threads at a time.

    Attributes:
        info: the description of the model.
        providers: onnxruntime's names of the execution providers in use, the preferred one first.
    """

    def __init__(
        self, path: Path, threads: int | None = None, providers: Sequence[str] | None = None
    ):
        """
        Args:
            path: an existing file.
            threads: of onnxruntime, for one call; None for the number of cores.
            providers: see `find_providers`.

        Raises:
            ImportError: onnxruntime is not installed.
            ValueError: not an ONNX file, not one that tools/export_model.py wrote, or an unknown
                provider.
        """
        try:
            import onnxruntime
        except ImportError as error:
            raise ImportError(
                f"{path} is an ONNX file; onnxruntime, which runs it, is not installed: "
                'pip install onnxruntime, or "hypernet-d2[deploy]"'
            ) from error
        self._path = path
        wanted = find_providers(providers, onnxruntime.get_available_providers())
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4  # errors are raised, and its warnings do not help a user
        options.intra_op_num_threads = threads or 0
        try:
            self._session = onnxruntime.InferenceSession(str(path), options, providers=wanted)
        except Exception as error:  # onnxruntime's errors have no common base class but this
            raise ValueError(
                f"{path}: expected a model that tools/export_model.py wrote, as ONNX or "
                f"torch.export; onnxruntime reports: {str(error).splitlines()[0]}"
            ) from error
        self.providers = self._session.get_providers()
        for name in wanted:
            if name not in self.providers:
                logger.warning(
                    "%s: onnxruntime could not start %s, falling back to %s: its libraries or its "
                    "device are missing",
                    path,
                    name,
                    self.providers[0],
                )
        # Without it, onnxruntime also computes outputs that are not asked for.
        self._run_options = onnxruntime.RunOptions()
        self._run_options.only_execute_path_to_fetches = True
        text = self._session.get_modelmeta().custom_metadata_map.get(KEY)
        if text is None:
            raise ValueError(
                f"{path}: an ONNX file that tools/export_model.py did not write: it has no "
                f"metadata {KEY}"
            )
        self.info = ModelInfo.from_json(text, str(path))

    def __call__(self, feed: dict[str, np.ndarray], names: Sequence[str]) -> list[np.ndarray]:
        """The outputs ``names`` of the graph for the inputs ``feed``.

        Raises:
            ValueError: onnxruntime cannot run the graph.
        """
        try:
            return self._session.run(list(names), feed, self._run_options)
        except Exception as error:  # onnxruntime's errors have no common base class but this
            raise ValueError(f"{self._path}: this model cannot be run: {error}") from error
