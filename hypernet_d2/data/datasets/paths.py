"""Folders of the data sets, read from the environment each time a set is loaded."""

import os
from pathlib import Path


def datasets_root() -> Path:
    """``$DETECTRON2_DATASETS``, by default ``./datasets``, as in detectron2."""
    return Path(os.getenv("DETECTRON2_DATASETS", "datasets")).expanduser()


def cache_root() -> Path:
    """The user's cache folder, ``$XDG_CACHE_HOME/hypernet_d2``."""
    return Path(os.getenv("XDG_CACHE_HOME") or "~/.cache").expanduser() / "hypernet_d2"
