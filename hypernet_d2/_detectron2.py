"""Importing this raises the one ImportError that says how to get detectron2, where it is missing.

Modules that need detectron2 import it before anything else.
"""

from importlib.util import find_spec

from . import DETECTRON2_HELP

if find_spec("detectron2") is None:
    raise ImportError(f"hypernet_d2 {DETECTRON2_HELP}")
