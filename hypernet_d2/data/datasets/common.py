"""What the readers of data sets share: catalogs, class names, clipping, logged counts."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils import comm
from detectron2.utils.logger import log_first_n

__all__ = ["check_classes", "clip_box", "read_text", "register_set", "warn_once"]


def register_set(name: str, load: Callable[..., list[dict]], metadata: dict) -> None:
    """Register a set; registering the same set under the same name again does nothing.

    Args:
        name: in the catalogs.
        load: returns the records.
        metadata: with ``dirname``, ``split`` and ``thing_classes``.

    Raises:
        ValueError: a set with other metadata has the name.
    """
    if name in DatasetCatalog:
        known = MetadataCatalog.get(name)
        if any(known.get(key) != value for key, value in metadata.items()):
            raise ValueError(
                f"data set {name!r} is registered already, with root {known.get('dirname')!r}, "
                f"split {known.get('split')!r} and classes {known.get('thing_classes')}; "
                "expected another name, or the same root, split and classes"
            )
        return
    MetadataCatalog.get(name).set(**metadata)
    DatasetCatalog.register(name, load)


def check_classes(classes: Sequence[str]) -> tuple[str, ...]:
    """
    Raises:
        ValueError: the classes are not a list of distinct names.
    """
    names = (classes,) if isinstance(classes, str) else tuple(classes)
    if isinstance(classes, str) or not names or len(set(names)) != len(names):
        raise ValueError(f"classes are {classes!r}, expected a list of distinct names")
    return names


def clip_box(
    box: Sequence[float], width: int, height: int, one_based: bool = False
) -> tuple[list[float] | None, str | None]:
    """A continuous box cut at the image's border, None if nothing is left, and its problem."""
    x0, y0, x1, y1 = box
    pixel = 1 if one_based else 0  # the first and the last pixel are the same one: no area
    if x1 <= x0 + pixel or y1 <= y0 + pixel:
        return None, "without area removed"
    clipped = [max(x0, 0.0), max(y0, 0.0), min(x1, width), min(y1, height)]
    if clipped[2] <= clipped[0] or clipped[3] <= clipped[1]:
        return None, "outside the image removed"
    cut = max(abs(a - b) for a, b in zip(box, clipped, strict=True))
    return clipped, "partly outside the image clipped" if cut > 1 else None


def read_text(file: Path) -> str:
    """
    Raises:
        ValueError: naming the file, if it is not text in UTF-8.
    """
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: expected text in UTF-8, but {error}") from error
    if "\0" in text:
        raise ValueError(f"{file}: expected text in UTF-8, but it has NUL bytes")
    return text


def warn_once(message: str) -> None:
    """Log a warning in the main process, unless the same one was logged before."""
    if comm.is_main_process():
        log_first_n(logging.WARNING, message, name=__name__, key="message")
