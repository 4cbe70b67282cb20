"""Drawing of labeled boxes and of sheets of pictures, with Pillow alone."""

from __future__ import annotations

import colorsys
import logging
import os
from collections.abc import Iterator, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

__all__ = ["draw_detections", "make_sheet", "place_label"]

logger = logging.getLogger(__name__)

_TITLE_SIZE, _MARGIN = 16, 4  # pixels, of a sheet
_NO_CHARACTER = "\U0010ffff"  # no font has it


def draw_detections(
    image: np.ndarray,
    boxes: np.ndarray,
    labels: Sequence[str],
    colors: Sequence[int | tuple[int, int, int]] | None = None,
    width: int | None = None,
) -> np.ndarray:
    """Draw labeled boxes, the first above the others.

    Args:
        image: (H, W, 3) uint8; RGB or BGR, as the result is.
        boxes: (n, 4), x1 y1 x2 y2 in pixels.
        labels: n texts, "" for none. Characters that no installed font has are replaced by "#"
            and the box's number in ``colors``, if it has one.
        colors: n numbers, such as those of the classes, where equal numbers give equal colors, or
            n colors in the order of the image's channels. None: one color for all.
        width: of the lines in pixels; by default 1 for every 250 pixels of the short side.

    Returns:
        (H, W, 3) uint8, a copy.
    """
    picture = Image.fromarray(np.ascontiguousarray(image))
    draw = ImageDraw.Draw(picture)
    short = min(image.shape[:2])
    font_size, width = max(10, short // 28), width or max(1, short // 250)
    numbers = [0] * len(boxes) if colors is None else list(colors)
    # The best ones come first and are drawn last, over the others.
    for box, number in reversed(list(zip(boxes.tolist(), numbers, strict=True))):
        draw.rectangle(box, outline=_color(number), width=width)
    taken: list[tuple[float, float, float, float]] = []
    for box, label, number in zip(boxes.tolist(), labels, numbers, strict=True):
        if label:
            name = "#" if isinstance(number, tuple) else f"#{number}"
            label, font = _printable(label, name, font_size)
            _, _, right, bottom = draw.textbbox((0, 0), label, font=font)
            x, y = place_label(box, (right + 2, bottom + 2), picture.size, taken)
            draw.rectangle(taken[-1], fill=_color(number))
            draw.text((x + 1, y), label, fill=(0, 0, 0), font=font)
    return np.asarray(picture)


def make_sheet(
    pictures: Sequence[np.ndarray], titles: Sequence[str], *, columns: int, heading: str = ""
) -> np.ndarray:
    """A contact sheet: pictures in rows on white, each under its title.

    Args:
        pictures: (H, W, 3) uint8, RGB, of any sizes; the widest sets the width of the columns.
        titles: one for each picture; a title that is wider than its column is made smaller.
        columns: pictures in a row.
        heading: a line above all pictures.

    Returns:
        (H, W, 3) uint8.

    Raises:
        ValueError: there is no picture, or not one title for each.
    """
    if not len(pictures) or len(pictures) != len(titles):
        raise ValueError(f"{len(pictures)} pictures and {len(titles)} titles; expected as many")
    rows = [range(i, min(i + columns, len(pictures))) for i in range(0, len(pictures), columns)]
    width = max(picture.shape[1] for picture in pictures) + 2 * _MARGIN
    strip = _TITLE_SIZE + 2 * _MARGIN
    heights = [strip + max(len(pictures[i]) for i in row) + _MARGIN for row in rows]
    top = strip if heading else 0
    sheet = Image.new("RGB", (width * min(columns, len(pictures)), top + sum(heights)), "white")
    if heading:
        sheet.paste(_title(heading, sheet.width), (0, 0))
    for row, height in zip(rows, heights, strict=True):
        for x, i in zip(range(0, sheet.width, width), row, strict=False):
            sheet.paste(_title(titles[i], width), (x, top))
            picture = Image.fromarray(np.ascontiguousarray(pictures[i]))
            sheet.paste(picture, (x + _MARGIN, top + strip))
        top += height
    return np.asarray(sheet)


def place_label(
    box: Sequence[float],
    label: tuple[float, float],
    picture: tuple[float, float],
    taken: list[tuple[float, float, float, float]],
) -> tuple[float, float]:
    """The place of a box's label: above the box, below it or at its top, within the picture.

    It is the first of these places that overlaps no earlier label, or the first of all where each
    overlaps one.

    Args:
        box: x0, y0, x1, y1.
        label, picture: width and height.
        taken: the places of the earlier labels, x0, y0, x1, y1; this one's is added.

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


def _color(number: int | tuple[int, int, int]) -> tuple[int, int, int]:
    if isinstance(number, tuple):
        return number
    # Steps of the golden ratio keep the hues of successive numbers apart, however many there are.
    red, green, blue = colorsys.hsv_to_rgb(number * 0.618034 % 1, 0.65, 1.0)
    return int(255 * red), int(255 * green), int(255 * blue)


def _title(text: str, width: int) -> Image.Image:
    """A strip of the given width with one line of text."""
    strip = Image.new("RGB", (width, _TITLE_SIZE + 2 * _MARGIN), "white")
    text, font = _printable(text, "#", _TITLE_SIZE)
    room = width - 2 * _MARGIN
    if font.getlength(text) > room:
        font = font.font_variant(size=max(6, int(_TITLE_SIZE * room / font.getlength(text))))
    ImageDraw.Draw(strip).text((_MARGIN, _MARGIN), text, fill="black", font=font)
    return strip


# Fonts


def _printable(text: str, substitute: str, size: int) -> tuple[str, ImageFont.FreeTypeFont]:
    """A text and a font, ``size`` pixels high, that has all of its characters.

    Where no installed font has them, the part of the text from the first character that Pillow's
    own font lacks to the last one is replaced by ``substitute``, and a warning says so once.
    """
    lacking = [i for i, character in enumerate(text) if not _in_default_font(character)]
    if not lacking:
        return text, _font(None, size)
    path = _font_with("".join(sorted({text[i] for i in lacking})))
    if path:
        return text, _font(path, size)
    return f"{text[: lacking[0]]}{substitute}{text[lacking[-1] + 1 :]}", _font(None, size)


@cache
def _font(path: str | None, size: int) -> ImageFont.FreeTypeFont:
    """Pillow's own font for None."""
    return ImageFont.truetype(path, size) if path else ImageFont.load_default(size)


@cache
def _in_default_font(character: str) -> bool:
    return _has(_font(None, 10), character)


@cache
def _font_with(characters: str) -> str | None:
    """The path of an installed font that has all of the characters, a plain one if possible."""
    for path in sorted(_installed_fonts(), key=_plainness):
        try:
            font = ImageFont.truetype(path, 10)  # not kept open, unlike those of _font
            if all(_has(font, character) for character in f"{characters}a0%"):
                return path
        except OSError:  # a damaged font, or one of bitmaps in other sizes
            continue
    logger.warning(
        "no installed font has the characters %r; class numbers are drawn in their place. Install "
        "a font that has them, such as Noto Sans CJK for Chinese",
        characters,
    )
    return None


def _has(font: ImageFont.FreeTypeFont, character: str) -> bool:
    if character.isspace():
        return True
    return bytes(font.getmask(character)) != bytes(font.getmask(_NO_CHARACTER))


def _installed_fonts() -> Iterator[str]:
    """Font files of the user, the system and matplotlib."""
    home = Path.home()
    shared = os.environ.get("XDG_DATA_DIRS") or "/usr/local/share:/usr/share"
    data = [os.environ.get("XDG_DATA_HOME") or home / ".local" / "share", *shared.split(":")]
    folders = [Path(folder) / "fonts" for folder in data]
    folders += [home / ".fonts", home / "Library/Fonts", "/Library/Fonts", "/System/Library/Fonts"]
    folders += [Path(os.environ.get("WINDIR", "C:/Windows")) / "Fonts"]
    matplotlib = find_spec("matplotlib")
    if matplotlib is not None and matplotlib.origin:
        folders.append(Path(matplotlib.origin).parent / "mpl-data" / "fonts" / "ttf")
    for folder in folders:
        for parent, _, names in os.walk(folder):
            for name in names:
                lower = name.lower()
                # A last-resort font has the same box for every character.
                if lower.endswith((".ttf", ".otf", ".ttc")) and "lastresort" not in lower:
                    yield os.path.join(parent, name)


def _plainness(path: str) -> tuple:
    """A sort key: upright sans-serif fonts of normal weight come first."""
    name = os.path.basename(path).lower()
    styled = any(word in name for word in ("bold", "italic", "oblique", "light", "mono", "thin"))
    return styled, "sans" not in name, name
