"""Reading, resizing and drawing on images, with Pillow alone."""

from __future__ import annotations

import colorsys
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

__all__ = ["draw_detections", "fit_size", "place_label", "read_image", "refuse_programs", "resize"]

# PostScript, and with a preview before it: Pillow has Ghostscript, an interpreter, draw these.
_PROGRAMS = (b"%!PS", b"\xc5\xd0\xd3\xc6")


def read_image(path: str | os.PathLike) -> np.ndarray:
    """Read an image as it is shown, that is after the rotation that its Exif data asks for.

    Returns:
        (H, W, 3) uint8, BGR.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it cannot be read as an image; the file is named.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such image")
    try:
        refuse_programs(path)
        with Image.open(path) as image:
            rgb = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    except Exception as error:  # Pillow's are of every kind for damaged files
        raise ValueError(f"{path}: cannot be read as an image: {error}") from error
    return rgb[:, :, ::-1]


def refuse_programs(path: str | os.PathLike) -> None:
    """Raise a ValueError for a file that is a program, which Pillow would have run to draw it."""
    with open(path, "rb") as file:
        if file.read(4) in _PROGRAMS:
            raise ValueError("it is PostScript, a program; expected an image")


def fit_size(
    size: tuple[int, int], min_size: int, max_size: int, canvas: tuple[int, int]
) -> tuple[int, int]:
    """Height and width to which detectron2's ``ResizeShortestEdge`` brings an image.

    Args:
        size, canvas: (height, width) of the image and of what the network takes; an image that
            would be larger than the canvas is made smaller until it fits.
        min_size: of the short side, 0 for an image that keeps its size.
        max_size: of the long side.

    Returns:
        (height, width), both at least 1.
    """
    sides = [float(side) for side in size]
    if min_size:
        short = min(size)
        # The short side becomes whole by itself, whatever the factor is rounded to.
        sides = [min_size if side == short else min_size / short * side for side in size]
        if max(sides) > max_size:
            factor = max_size / max(sides)
            sides = [side * factor for side in sides]
    factor = min(limit / side for limit, side in zip(canvas, sides, strict=True))
    if factor < 1:
        sides = [side * factor for side in sides]
    height, width = (max(1, int(side + 0.5)) for side in sides)
    return height, width


def resize(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(H, W, 3) uint8 to height and width `size`, as detectron2 resizes at test time."""
    if image.shape[:2] == size:
        return image
    resized = Image.fromarray(np.ascontiguousarray(image)).resize(
        size[::-1], Image.Resampling.BILINEAR
    )
    return np.asarray(resized)


def draw_detections(
    image: np.ndarray,
    boxes: np.ndarray,
    labels: Sequence[str],
    colours: Sequence[int] | None = None,
) -> np.ndarray:
    """Draw labelled boxes, the first above the others.

    Args:
        image: (H, W, 3) uint8; RGB or BGR, as the result is.
        boxes: (n, 4), x1 y1 x2 y2 in pixels.
        labels: n texts, "" for none.
        colours: n numbers; equal numbers give equal colours. None: one colour for all.

    Returns:
        (H, W, 3) uint8, a copy.
    """
    picture = Image.fromarray(np.ascontiguousarray(image))
    draw = ImageDraw.Draw(picture)
    short = min(image.shape[:2])
    font = ImageFont.load_default(max(10, short // 28))
    width = max(1, short // 250)
    colours = [
        _colour(int(number)) for number in ([0] * len(boxes) if colours is None else colours)
    ]
    # The best ones come first, and are drawn last, over the others.
    for box, colour in reversed(list(zip(boxes.tolist(), colours, strict=True))):
        draw.rectangle(box, outline=colour, width=width)
    taken: list[tuple[float, float, float, float]] = []
    for box, label, colour in zip(boxes.tolist(), labels, colours, strict=True):
        if label:
            _, _, right, bottom = draw.textbbox((0, 0), label, font=font)
            x, y = place_label(box, (right + 2, bottom + 2), picture.size, taken)
            draw.rectangle(taken[-1], fill=colour)
            draw.text((x + 1, y), label, fill=(0, 0, 0), font=font)
    return np.asarray(picture)


def place_label(
    box: Sequence[float],
    label: tuple[float, float],
    picture: tuple[float, float],
    taken: list[tuple[float, float, float, float]],
) -> tuple[float, float]:
    """Where a box's label goes: above the box, below it or at its top, within the picture.

    It is the first of these places that hides no label before it, and the first at all where each
    hides one.

    Args:
        box: x0, y0, x1, y1.
        label, picture: width and height.
        taken: the places of the labels before, x0, y0, x1, y1; this one's is added.

    Returns:
        x and y of the label's top left corner.
    """
    (x0, y0, _, y1), (width, height) = box, label
    x = max(0, min(x0, picture[0] - width))
    within = [y for y in (y0 - height, y1) if 0 <= y <= picture[1] - height]
    places = [(x, y, x + width, y + height) for y in [*within, max(y0, 0)]]
    free = (place for place in places if not any(_overlap(place, other) for other in taken))
    taken.append(next(free, places[0]))
    return taken[-1][:2]


def _overlap(a: Sequence[float], b: Sequence[float]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _colour(number: int) -> tuple[int, int, int]:
    # The golden ratio keeps neighbours apart, however many there are.
    red, green, blue = colorsys.hsv_to_rgb(number * 0.618034 % 1, 0.65, 1.0)
    return int(255 * red), int(255 * green), int(255 * blue)
