"""HyperNet (Kong et al., CVPR 2016) as a detectron2 plugin.

``import hypernet_d2`` registers every backbone, proposal generator, head and dataset in
detectron2's registries and catalogs. Without detectron2, ``hypernet_d2.layers`` and
``hypernet_d2.deploy`` still import; everything else raises one ImportError that says how to get it.
"""

from importlib import import_module
from importlib.util import find_spec

__version__ = "0.1.0"

DETECTRON2_HELP = (
    "needs detectron2, which is not installed. It is on no package index; get it with: pip install "
    "--no-build-isolation 'git+https://github.com/facebookresearch/detectron2.git"
    "@02b5c4e295e990042a714712c21dc79b731e8833'"
)

if find_spec("detectron2") is not None:
    from . import data, modeling  # noqa: F401  (importing registers)
    from .config import add_hypernet_config

    __all__ = ["add_hypernet_config", "__version__"]
else:
    __all__ = ["__version__"]


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
