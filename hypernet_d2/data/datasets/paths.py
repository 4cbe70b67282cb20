"""Where data sets are looked for. Read when data is loaded, so that a later change counts."""

import os
from pathlib import Path


def datasets_root() -> Path:
    """``$DETECTRON2_DATASETS``, or ``./datasets`` where it is not set, as in detectron2."""
    return Path(os.getenv("DETECTRON2_DATASETS", "datasets")).expanduser()


def cache_root() -> Path:
    """The user's folder for what can be made again, ``$XDG_CACHE_HOME/hypernet_d2``."""
    return Path(os.getenv("XDG_CACHE_HOME") or "~/.cache").expanduser() / "hypernet_d2"
