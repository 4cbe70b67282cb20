"""Data sets, the dataset mapper, the loader, and the checks of what is loaded.

Importing this package registers ``bccd_*`` and ``digits_*`` where detectron2 can be used.
`generate_digits` works without detectron2.
"""

from .datasets.digits import generate_digits

__all__ = [
    "NamedErrorDatasetMapper",
    "PartDatasetMapper",
    "check_registered",
    "generate_digits",
    "load_dataset",
    "load_part_labels",
    "load_voc_style",
    "load_yolo_style",
    "register_own_data",
    "register_voc_style",
    "register_yolo_style",
]

try:
    from hypernet_d2 import _detectron2  # noqa: F401
except ImportError:  # raised again by __getattr__
    pass
else:
    from .dataset_mapper import NamedErrorDatasetMapper
    from .datasets import builtin  # noqa: F401  (importing registers)
    from .datasets.own_data import register_own_data
    from .datasets.voc_style import load_voc_style, register_voc_style
    from .datasets.yolo_style import load_yolo_style, register_yolo_style
    from .load import check_registered, load_dataset
    from .parts import PartDatasetMapper, load_part_labels


def __getattr__(name: str):
    if name in __all__:
        from hypernet_d2 import _detectron2  # noqa: F401  (raises what says why it is missing)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
