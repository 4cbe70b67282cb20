"""Writes the files of a run: checkpoints, results and proposals."""

from __future__ import annotations

import os
from typing import Any

from detectron2.utils.file_io import PathManager

from hypernet_d2.utils.files import atomic_write

__all__ = ["OUTPUT_FILES", "AtomicPathManager"]


class AtomicPathManager:
    """detectron2's PathManager, but local files are replaced only once they are complete.

    A path with a registered prefix, such as ``s3://``, is handled by its ``PathHandler`` alone.
    """

    def open(self, path: str | os.PathLike, mode: str = "r", **kwargs: Any):
        """As ``PathManager.open``; a local file that is written is that of `atomic_write`."""
        path = os.fspath(path)
        if mode in ("w", "wb") and "://" not in path:
            return atomic_write(path, mode)
        return PathManager.open(path, mode, **kwargs)

    def __getattr__(self, name: str):
        return getattr(PathManager, name)


OUTPUT_FILES = AtomicPathManager()
