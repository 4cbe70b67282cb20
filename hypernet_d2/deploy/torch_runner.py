"""Runs an archive of torch.export with PyTorch and torchvision.

PyTorch reads such archives with ``pickle``, ``eval`` and operators looked up by name, so that a
crafted file can run code when it is loaded. `check_archive` accepts only what an exported detector
consists of: tensors as raw bytes, and a graph of PyTorch's and torchvision's own operators on
shapes that are plain numbers.
"""

from __future__ import annotations

import io
import json
import os
import re
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from .metadata import INPUTS, KEY, ModelInfo

__all__ = ["TorchRunner", "check_archive"]

_OPERATOR = re.compile(
    r"torch\.ops\.aten\.(?!(from_file|save|load)\b)\w+\.\w+"
    r"|torch\.ops\.torchvision\.(nms|roi_align|roi_pool)\.default"
    r"|torch\.ops\.higher_order\.wrap_with_autocast"
    r"|_operator\.(getitem|add|sub|mul|floordiv|eq|ne|le|lt|ge|gt|neg|pos)"
)
# Shapes as SymPy writes them, and the words that operators take: no dots, hence no attributes.
_PLAIN = {
    "expr_str": re.compile(
        r"(Symbol|Integer|FloorDiv|Add|Mul|Pow|Max|Min|Equality|Unequality|(Strict)?(Greater|Less)Than"
        r"|integer|positive|nonnegative|True|False|'[us]\d+'|-?\d+|[(),= ])*"
    ),
    "as_string": re.compile(r"[\w '<>=]*"),
    "target": _OPERATOR,
    "as_operator": _OPERATOR,
}
_MEMBER = re.compile(
    r"models/model\.json"
    r"|data/(weights|constants)/(model_\w+_config\.json|weight_\d+|tensor_\d+)"
    r"|data/sample_inputs/model\.pt"
    r"|extra/" + re.escape(KEY) + r"|archive_format|archive_version|byteorder|\.data/\w+"
)
# In a process that is forked after PyTorch has started its threads, an operation on several threads
# never ends.
_PROCESS = os.getpid()


class TorchRunner:
    """Calls may come from several threads at a time."""

    def __init__(self, path: Path, compiled: bool = False):
        """
        Args:
            path: a zip archive.
            compiled: whether ``torch.compile`` translates the graph, which takes a minute or more
                at the first image and needs a C++ compiler.

        Raises:
            ImportError: PyTorch or torchvision is not installed.
            ValueError: not an archive that tools/export_model.py wrote, one that could run code,
                or one that this PyTorch cannot read.
        """
        # Read once, so that the bytes that are loaded are those that were checked.
        content = path.read_bytes()
        text = check_archive(content, path)
        try:
            import torch
            import torchvision  # noqa: F401  (registers the operators nms, roi_align and roi_pool)
        except ImportError as error:
            raise ImportError(
                f"{path} is an archive of torch.export; PyTorch and torchvision, which run it, are "
                "not both installed: pip install torch torchvision"
            ) from error
        self.info = ModelInfo.from_json(text, str(path))
        self._torch, self._path = torch, path
        try:
            self._program = torch.export.load(io.BytesIO(content)).module()
        except Exception as error:  # archives of other versions raise errors of many kinds
            raise ValueError(
                f"{path}: PyTorch {torch.__version__} cannot read this archive ({error}); export "
                "with this version, or to ONNX, which depends on no version of PyTorch"
            ) from error

        if compiled:
            self._program = torch.compile(self._program, dynamic=True)

    def __call__(self, feed: dict[str, np.ndarray], names: Sequence[str]) -> list[np.ndarray]:
        """The outputs ``names`` of the graph for the inputs ``feed``.

        Raises:
            RuntimeError: the process is a forked one and PyTorch has several threads.
            ValueError: PyTorch cannot run the graph.
        """
        if os.getpid() != _PROCESS and self._torch.get_num_threads() > 1:
            raise RuntimeError(
                f"{self._path}: PyTorch with several threads hangs in a forked process. Start "
                "processes with multiprocessing's method 'spawn', create the Detector in the "
                "workers only (gunicorn without --preload), call torch.set_num_threads(1) in each, "
                "or export to ONNX"
            )
        # A number has no dimension, and from_numpy takes arrays only.
        inputs = [self._torch.from_numpy(np.asarray(feed[name])) for name in INPUTS]
        try:
            with self._torch.no_grad():
                outputs = dict(zip(self.info.outputs, self._program(*inputs), strict=True))
        except Exception as error:
            raise ValueError(f"{self._path}: this model cannot be run: {error}") from error
        return [outputs[name].numpy() for name in names]


def check_archive(content: bytes, path: Path) -> str:
    """Refuse an archive that tools/export_model.py did not write or that could run code.

    Returns:
        The metadata, as json.

    Raises:
        ValueError: naming the file and the member or entry that is not allowed.
    """
    try:
        archive = zipfile.ZipFile(io.BytesIO(content))
        members = {name.partition("/")[2]: name for name in archive.namelist()}
        if "data.pkl" in members:
            raise ValueError("is a checkpoint; tools/export_model.py exports it")
        for member in members:
            if not _MEMBER.fullmatch(member):
                raise ValueError(f"holds {member!r}, which no exported model has")
        if f"extra/{KEY}" not in members:
            raise ValueError(f"has no metadata {KEY}: tools/export_model.py did not write it")
        text = archive.read(members[f"extra/{KEY}"]).decode()
        if archive.read(members["data/sample_inputs/model.pt"]):
            raise ValueError("holds sample inputs, which PyTorch would unpickle")
        for part in ("weights", "constants"):
            config = json.loads(archive.read(members[f"data/{part}/model_{part}_config.json"]))
            for name, payload in config["config"].items():
                if payload["use_pickle"] or not payload["tensor_meta"]:
                    raise ValueError(f"holds {name!r} as a pickle")
        model = json.loads(archive.read(members["models/model.json"]))
        if model["guards_code"]:
            raise ValueError("holds guards, which PyTorch would compile")
        for key, value in _entries(model):
            if key in _PLAIN and not _PLAIN[key].fullmatch(value):
                raise ValueError(f"has {value!r} as {key!r}, which no detector needs")
    except (ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path}: refused, as it {error}") from error
    return text


def _entries(tree: object) -> Iterator[tuple[str, str]]:
    """(key, value) for every text that is a value of a dictionary in a json tree."""
    stack = [tree]
    while stack:
        node = stack.pop()
        if isinstance(node, dict):
            yield from ((key, value) for key, value in node.items() if isinstance(value, str))
            stack.extend(node.values())
        elif isinstance(node, list):
            stack.extend(node)
