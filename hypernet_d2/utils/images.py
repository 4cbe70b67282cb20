"""Reading and resizing of images, with Pillow alone.

Everything that reads pictures, in training, evaluation, demo and deployment, goes through
`as_shown`, so that a model sees the same pixels everywhere.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

__all__ = [
    "IMAGE_FORMATS",
    "IMAGE_SUFFIXES",
    "as_shown",
    "bgr_array",
    "fit_size",
    "image_size",
    "list_images",
    "read_image",
    "resize",
]

logger = logging.getLogger(__name__)

# Pillow's names of the formats of these files. It knows many more, which few people use and which
# attackers look for faults in.
IMAGE_FORMATS = ("BMP", "JPEG", "PNG", "TIFF", "WEBP")
IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")

_ORIENTATION = 274  # the tag of Exif and of XMP
_TRANSPOSITIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_METADATA = {"exif", "xmp", "XML:com.adobe.xmp"}  # keys of Image.info
_TIFF_SIZE = (256, 257)  # width, height
_TIFF_BITS, _TIFF_PHOTOMETRIC, _WHITE_IS_ZERO = 258, 262, 0
# A 12-bit image in 16 bits has no value above this when it is scaled to 8 bits.
_DARK = 15.95
_warned = False  # whether an image below it was reported


def read_image(path: str | os.PathLike) -> np.ndarray:
    """Read an image file as `as_shown` describes.

    Returns:
        (H, W, 3) uint8, BGR.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it cannot be read as an image; the file is named.
    """
    with _open_named(path) as image:
        return bgr_array(image)


def bgr_array(image: Image.Image) -> np.ndarray:
    """(H, W, 3) uint8, BGR, of an open image; see `as_shown`. An alpha channel is dropped."""
    shown = as_shown(image)
    if shown.mode != "RGB":  # otherwise convert() would copy a picture that may be large
        shown = shown.convert("RGB")
    return np.asarray(shown)[:, :, ::-1]


def as_shown(image: Image.Image) -> Image.Image:
    """Apply the rotation that an image's Exif or XMP data asks for, and reduce it to 8 bits.

    Unsigned integers of more than 8 bits are scaled by the range of their type (a 16-bit value is
    divided by 257), floating-point values from the range 0 to 1. Images of 8 bits keep their
    values and their mode.

    Raises:
        ValueError: a signed or 32-bit integer image, or floating-point values outside 0 to 1;
            a PostScript file, which is a program that Pillow would run.
        OSError and others, of Pillow: the image is damaged.
    """
    _refuse_programs(image)
    name = getattr(getattr(image, "fp", None), "name", "an image")
    image.load()
    # Read after loading, since Pillow rotates a TIFF image while it loads.
    transposition = _TRANSPOSITIONS.get(_orientation(image))
    if image.mode.startswith(("I", "F")):
        image = _scale_to_8_bits(image, name)
    return image if transposition is None else image.transpose(transposition)


def image_size(path: str | os.PathLike) -> tuple[int, int]:
    """Width and height in pixels of an image file as it is read, from the file's header.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: its header cannot be read; the file is named.
    """
    with _open_named(path) as image:
        _refuse_programs(image)
        width, height = image.size
        if image.format == "TIFF":  # Pillow may have exchanged width and height already
            width, height = (image.tag_v2[tag] for tag in _TIFF_SIZE)
        elif image.format == "PNG" and not _METADATA & image.info.keys():
            return width, height  # Pillow would decode all pixels to look for Exif data
        exchanged = _orientation(image) in (5, 6, 7, 8)
    return (height, width) if exchanged else (width, height)


def list_images(folder: str | os.PathLike) -> list[Path]:
    """The files in a folder whose suffix, in any case, is in `IMAGE_SUFFIXES`, sorted by name."""
    files = (path for path in Path(folder).iterdir() if path.is_file())
    return sorted(path for path in files if path.suffix.lower() in IMAGE_SUFFIXES)


def fit_size(
    size: tuple[int, int], min_size: int, max_size: int, canvas: tuple[int, int] | None = None
) -> tuple[int, int]:
    """Height and width to which detectron2's ``ResizeShortestEdge`` resizes an image.

    Args:
        size: (height, width) of the image.
        min_size: of the short side; 0 keeps the image's size.
        max_size: of the long side.
        canvas: largest (height, width) of the network's input. An image that would exceed it is
            scaled down until it fits, which detectron2 does not do. None for no limit.

    Returns:
        (height, width), both at least 1.
    """
    sides = [float(side) for side in size]
    if min_size:
        short = min(size)
        # The short side is set, not multiplied, so that rounding of the factor cannot change it.
        sides = [min_size if side == short else min_size / short * side for side in size]
        if max(sides) > max_size:
            factor = max_size / max(sides)
            sides = [side * factor for side in sides]
    height, width = (max(1, int(side + 0.5)) for side in sides)
    if canvas is not None and (height > canvas[0] or width > canvas[1]):
        factor = min(limit / side for limit, side in zip(canvas, sides, strict=True))
        height, width = (max(1, int(side * factor + 0.5)) for side in sides)
    return height, width


def resize(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize (H, W, 3) uint8 to (height, width) ``size`` as detectron2 does at test time."""
    if image.shape[:2] == size:
        return image
    resized = Image.fromarray(np.ascontiguousarray(image)).resize(
        size[::-1], Image.Resampling.BILINEAR
    )
    return np.asarray(resized)


@contextlib.contextmanager
def _open_named(path: str | os.PathLike) -> Iterator[Image.Image]:
    """An open image; errors within the block name the file."""
    if not os.path.isfile(path):
        raise FileNotFoundError(f"{path}: no such image")
    try:
        with Image.open(path) as image:
            yield image
    except Image.DecompressionBombError as error:
        raise ValueError(
            f"{path}: {error}; read a picture that you trust in Python, after setting "
            "PIL.Image.MAX_IMAGE_PIXELS = None"
        ) from error
    except Exception as error:  # damaged files make Pillow raise errors of every kind
        raise ValueError(f"{path}: cannot be read as an image: {error}") from error


def _refuse_programs(image: Image.Image) -> None:
    if image.format == "EPS":  # Pillow would draw it with Ghostscript, an interpreter
        raise ValueError("it is PostScript, a program; expected an image")


def _orientation(image: Image.Image) -> int | None:
    try:
        return image.getexif().get(_ORIENTATION)
    except Exception:  # damaged Exif data does not make the pixels unusable
        return None


def _scale_to_8_bits(image: Image.Image, name: str) -> Image.Image:
    """Convert a loaded image of mode "F", "I" or "I;16..." to mode "L"."""
    tags = getattr(image, "tag_v2", {})  # of a TIFF file
    values = np.asarray(image)
    low, high = values.min(), values.max()
    if image.mode == "F":
        if not (low >= 0 and high <= 1):  # also where they are not finite
            raise ValueError(f"it has values from {low:g} to {high:g}; expected floats from 0 to 1")
        scale = 255.0
    elif image.mode == "I" and image.format not in ("PNG", "PPM"):  # which have 16 bits
        raise ValueError("it has signed or 32-bit integers; expected unsigned ones of 8 or 16 bits")
    else:
        bits = tags.get(_TIFF_BITS, (16,))[0]
        scale = 255.0 / (2**bits - 1)
    if 0 < high * scale < _DARK:
        _warn_once_of_dark_image(name, high)
    scaled = np.rint(values * np.float32(scale))
    if tags.get(_TIFF_PHOTOMETRIC) == _WHITE_IS_ZERO:
        scaled = 255 - scaled
    return Image.fromarray(scaled.astype(np.uint8))


def _warn_once_of_dark_image(name: str, high: float) -> None:
    global _warned
    if not _warned:
        _warned = True
        logger.warning(
            "%s has more than 8 bits, but its largest value is only %g: it is read as nearly "
            "black. If the camera gives fewer bits than the file holds, rescale the files. Other "
            "such images are not reported",
            name,
            high,
        )
