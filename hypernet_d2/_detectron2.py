"""Imports detectron2, or raises the one ImportError that says why it cannot be used.

Modules that need detectron2 import this module first. The compiled part, ``detectron2._C``, is not
asked for: detectron2 itself replaces what depends on it.
"""

import warnings
from importlib.util import find_spec

from . import DETECTRON2_HELP

if find_spec("detectron2") is None:
    raise ImportError(f"hypernet_d2 needs detectron2, which is not installed. {DETECTRON2_HELP}")
try:
    with warnings.catch_warnings():  # of torch.jit.script, which detectron2 calls when imported
        warnings.simplefilter("ignore")
        import detectron2.data
        import detectron2.engine
        import detectron2.evaluation
        import detectron2.modeling  # noqa: F401
except Exception as error:  # a broken installation raises errors of every kind
    raise ImportError(
        "hypernet_d2 needs detectron2, which is installed but does not load: "
        f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}. {DETECTRON2_HELP}"
    ) from error
