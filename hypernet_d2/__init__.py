"""HyperNet (Kong et al., CVPR 2016) as a detectron2 plugin.

``import hypernet_d2`` registers every backbone, proposal generator, head and dataset in
detectron2's registries and catalogs. Without a detectron2 that loads, ``hypernet_d2.layers``,
``hypernet_d2.utils`` and ``hypernet_d2.deploy`` still import; everything else raises one
ImportError that gives the reason and the command that installs detectron2.
"""

import sys
from importlib import import_module

__version__ = "0.1.0"

DETECTRON2_HELP = (
    f"detectron2 is on no package index; install it with: {sys.executable or 'python'} -m pip "
    "install --no-build-isolation 'git+https://github.com/facebookresearch/detectron2.git"
    "@02b5c4e295e990042a714712c21dc79b731e8833'"
)

try:
    from . import _detectron2  # noqa: F401
except ImportError:  # raised again by the first import that needs detectron2
    __all__ = ["__version__"]
else:
    from . import data, modeling  # noqa: F401  (importing registers)
    from .config import add_hypernet_config

    __all__ = ["add_hypernet_config", "__version__"]


def __getattr__(name: str):
    if name in (
        "checkpoint",
        "config",
        "data",
        "deploy",
        "engine",
        "evaluation",
        "export",
        "layers",
        "model_zoo",
        "modeling",
        "utils",
    ):
        return import_module(f"{__name__}.{name}")
    if name == "add_hypernet_config":
        return import_module(f"{__name__}.config").add_hypernet_config
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
