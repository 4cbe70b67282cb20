"""Drawing of labeled boxes and contact sheets."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hypernet_d2.utils import drawing
from hypernet_d2.utils.drawing import draw_detections, make_sheet, place_label
from tests.helpers import logged_by

SECRET = "\U000f1234"  # of a private area, where no ordinary font has a character


def test_a_label_overlaps_no_other_where_there_is_room():
    taken = []
    places = [place_label((20, 30, 60, 50), (30, 10), (100, 100), taken) for _ in range(4)]
    above, below, within = (20, 20), (20, 50), (20, 30)
    assert places == [above, below, within, above]  # there is no room for the fourth
    assert taken[:2] == [(20, 20, 50, 30), (20, 50, 50, 60)]
    assert place_label((95, 2, 99, 99), (30, 10), (100, 100), []) == (70, 2)


def test_boxes_and_labels_are_drawn_on_a_copy_and_the_first_above_the_others():
    image = np.full((60, 80, 3), 255, np.uint8)
    boxes = np.array([[20.0, 20, 60, 50], [20, 20, 60, 50], [70, 0, 79, 10]])
    drawn = draw_detections(image, boxes, ["first", "", ""], [0, 1, 2])
    assert drawn.shape == image.shape and (image == 255).all()
    only = draw_detections(image, boxes[:1], ["first"], [0])
    np.testing.assert_array_equal(drawn[:, :70], only[:, :70])
    assert drawn[0, 70].tolist() not in ([255, 255, 255], only[20, 20].tolist())
    same = draw_detections(image, boxes[[0, 2]], ["", ""])
    assert same[0, 70].tolist() == same[20, 20].tolist()


@pytest.fixture
def fonts(tmp_path, monkeypatch) -> Path:
    """The only folder of fonts, but for those that the system or matplotlib have elsewhere."""
    for name in ("HOME", "XDG_DATA_HOME", "XDG_DATA_DIRS"):
        monkeypatch.setenv(name, str(tmp_path))
    drawing._font_with.cache_clear()
    yield tmp_path / "fonts"
    drawing._font_with.cache_clear()


def write_font(path: Path, characters: str) -> None:
    """A font whose characters are all black squares, but for an empty one for unknown ones."""
    font_builder = pytest.importorskip("fontTools.fontBuilder")
    pens = pytest.importorskip("fontTools.pens.ttGlyphPen")
    pen = pens.TTGlyphPen(None)
    for number, point in enumerate([(0, 0), (0, 900), (900, 900), (900, 0)]):
        (pen.lineTo if number else pen.moveTo)(point)
    pen.closePath()
    glyphs = {".notdef": pens.TTGlyphPen(None).glyph(), "square": pen.glyph()}
    builder = font_builder.FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder(list(glyphs))
    builder.setupCharacterMap({ord(character): "square" for character in characters})
    builder.setupGlyf(glyphs)
    builder.setupHorizontalMetrics({".notdef": (500, 0), "square": (1000, 0)})
    builder.setupHorizontalHeader(ascent=900, descent=-100)
    builder.setupNameTable({"familyName": "Squares", "styleName": "Regular"})
    builder.setupPost()
    path.parent.mkdir(parents=True, exist_ok=True)
    builder.save(path)


def draw_name(name: str) -> np.ndarray:
    image = np.full((60, 200, 3), 255, np.uint8)
    return draw_detections(image, np.array([[5.0, 30, 100, 50]]), [name], [7])


def test_a_class_name_is_drawn_in_an_installed_font_that_has_its_characters(fonts):
    fonts.mkdir()
    (fonts / "AAA.ttf").write_bytes(b"damaged")
    write_font(fonts / "Half.ttf", SECRET)  # digits of the score are missing
    write_font(fonts / "folder" / "Squares.otf", f"{SECRET}a0%")
    with logged_by("hypernet_d2.utils.drawing", 30) as messages:
        drawn = draw_name(f"{SECRET}a0%")
    assert not messages
    assert (drawn == 0).all(axis=2).sum() > 4 * 64  # four squares


def test_without_such_a_font_the_class_number_is_drawn_and_a_warning_says_so_once(fonts):
    write_font(fonts / "LastResort-Regular.ttf", f"{SECRET}a0%")
    with logged_by("hypernet_d2.utils.drawing", 30) as messages:
        for _ in range(2):
            drawn = draw_name(f"{SECRET}b{SECRET} 90%")
    np.testing.assert_array_equal(drawn, draw_name("#7 90%"))
    (message,) = messages
    assert repr(SECRET) in message and "class numbers are drawn" in message


def test_a_sheet_has_each_picture_in_its_place_under_its_title():
    pictures = [np.full((20, 60, 3), 10, np.uint8), np.full((30, 40, 3), 20, np.uint8),
                np.full((20, 60, 3), 30, np.uint8)]  # fmt: skip
    titles = ["first", "a title that is much too long for a column of this width", ""]
    sheet = make_sheet(pictures, titles, columns=2).copy()
    assert sheet.dtype == np.uint8
    column, strip = sheet.shape[1] // 2, 24
    corners = {10: (strip, 4), 20: (strip, column + 4), 30: (strip + 30 + 4 + strip, 4)}
    for picture in pictures:
        (y, x), (h, w) = corners[picture[0, 0, 0]], picture.shape[:2]
        np.testing.assert_array_equal(sheet[y : y + h, x : x + w], picture)
        sheet[y : y + h, x : x + w] = 255
    assert (sheet[:strip, :column] < 128).any() and (sheet[:strip, column:] < 255).any()
    sheet[:strip] = 255
    assert (sheet == 255).all()  # titles stay in their strips


def test_a_sheet_may_have_a_heading_and_needs_a_title_for_each_picture():
    pictures = [np.full((20, 300, 3), 10, np.uint8)] * 2
    with_heading = make_sheet(pictures, ["a", "b"], columns=2, heading="heading")
    plain = make_sheet(pictures, ["a", "b"], columns=2)
    np.testing.assert_array_equal(with_heading[24:], plain)
    assert (with_heading[:24] < 128).any()
    with pytest.raises(ValueError, match="2 pictures and 1 titles"):
        make_sheet(pictures, ["a"], columns=2)
    with pytest.raises(ValueError, match="0 pictures"):
        make_sheet([], [], columns=2)
