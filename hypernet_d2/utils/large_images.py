"""Large images that are read in parts, so that memory holds a part only.

A TIFF file in tiles or strips of 8 bits is read in parts by tifffile (the extra ``tiff``); most
compressions need imagecodecs as well. Any other file is decoded as a whole, since Pillow decodes no
part of an image.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from .images import read_image

__all__ = ["LargeImage", "in_memory", "open_large_image"]

_TIFF_SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # the last two are BigTIFF
_ORIENTATION = 274
_PHOTOMETRIC = {"MINISBLACK": 1, "RGB": 3}  # {kind of colors: number of channels used}


class LargeImage(NamedTuple):
    """
    Attributes:
        size: (height, width).
        read: (x1, y1, x2, y2) in pixels -> that part, (h, w, 3) uint8 BGR.
    """

    size: tuple[int, int]
    read: Callable[[np.ndarray], np.ndarray]


@contextlib.contextmanager
def open_large_image(path: str | os.PathLike) -> Iterator[LargeImage]:
    """An image file to read parts of, as `hypernet_d2.utils.images.read_image` reads the whole.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it cannot be read as an image, or is truncated; the file is named. For a part
            of a TIFF file that is damaged, this is raised when the part is read.
    """
    with contextlib.ExitStack() as stack:
        page = _open_tiff(path, stack)
        if page is not None:
            yield LargeImage(page.shape[:2], lambda part: _read_part(page, path, part))
            return
        yield in_memory(read_image(path))


def in_memory(image: np.ndarray) -> LargeImage:
    """The parts of an image (H, W, 3)."""
    return LargeImage(image.shape[:2], lambda part: image[part[1] : part[3], part[0] : part[2]])


def _open_tiff(path: str | os.PathLike, stack: contextlib.ExitStack):
    """The page of a TIFF file, if tifffile is installed and its parts can be read alone."""
    if not os.path.isfile(path):
        return None
    with open(path, "rb") as file:
        if file.read(4) not in _TIFF_SIGNATURES:
            return None
    try:
        import tifffile
    except ImportError:
        return None
    try:
        page = stack.enter_context(tifffile.TiffFile(path)).pages[0]
        if not _has_readable_parts(page):
            return None
    except Exception:  # read_image describes what is wrong
        return None
    ends = [a + b for a, b in zip(page.dataoffsets, page.databytecounts, strict=True)]
    length = os.path.getsize(path)
    missing = sum(end > length for end in ends)
    if missing:
        raise ValueError(
            f"{path}: the file is truncated: {missing} of the {len(ends)} parts of the image lie "
            f"beyond its end; it has {length} bytes, expected {max(ends)}"
        )
    try:
        _read_part(page, path, np.array([0, 0, 1, 1]))
    except ValueError:  # a compression for which a package is missing; or damage
        return None
    return page


def _has_readable_parts(page) -> bool:
    orientation = page.tags.get(_ORIENTATION)
    channels = _PHOTOMETRIC.get(getattr(page.photometric, "name", ""))
    return (
        page.dtype == np.uint8
        and page.imagedepth == 1
        and channels is not None
        and page.samplesperpixel >= channels
        and (page.samplesperpixel == 1 or page.planarconfig == 1)  # channels side by side
        and (orientation is None or orientation.value == 1)
        and len(page.dataoffsets) > 1
    )


def _read_part(page, path: str | os.PathLike, part: np.ndarray) -> np.ndarray:
    x1, y1, x2, y2 = (int(value) for value in part)
    channels = _PHOTOMETRIC[page.photometric.name]
    pixels = np.zeros((y2 - y1, x2 - x1, channels), np.uint8)
    if page.is_tiled:
        height, width = page.tilelength, page.tilewidth
    else:
        height, width = page.rowsperstrip, page.imagewidth
    columns = -(-page.imagewidth // width)
    file = page.parent.filehandle
    for row in range(y1 // height, -(-y2 // height)):
        for column in range(x1 // width, -(-x2 // width)):
            index = row * columns + column
            file.seek(page.dataoffsets[index])
            data = file.read(page.databytecounts[index])
            try:
                segment, position, _ = page.decode(data, index, jpegtables=page.jpegtables)
            except Exception as error:
                raise ValueError(
                    f"{path}: part {index + 1} of the {len(page.dataoffsets)} parts of this image "
                    f"cannot be read: {error}"
                ) from error
            if segment is None:  # not stored, which means 0
                continue
            top, left = position[2:4]
            segment = segment[0, : page.imagelength - top, : page.imagewidth - left, :channels]
            # The region of the segment that the part shows.
            a, b = max(y1, top), min(y2, top + segment.shape[0])
            c, d = max(x1, left), min(x2, left + segment.shape[1])
            shown = segment[a - top : b - top, c - left : d - left]
            pixels[a - y1 : b - y1, c - x1 : d - x1] = shown
    if channels == 1:
        return np.repeat(pixels, 3, axis=2)
    return pixels[:, :, ::-1]
