"""YOLO-style sets: what is read, and what each kind of bad input says."""

import logging
from pathlib import Path

import pytest
from PIL import Image

from tests.helpers import logged_by

pytestmark = pytest.mark.detectron2

CLASSES = ("cell", "dust")
WIDTH, HEIGHT = 40, 20
WHOLE = "0 .5 .5 1 1"


def add(root: Path, name: str, labels: str | bytes | None = WHOLE, labels_in="labels", **save):
    """An image ``name`` and its text file; the latter in ``labels_in``."""
    image = root / "images" / name
    image.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (WIDTH, HEIGHT)).save(image, **save)
    if labels is not None:
        file = root / labels_in / Path(name).with_suffix(".txt")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(labels if isinstance(labels, bytes) else labels.encode())


def load(root: Path, split=".", **kwargs) -> list[dict]:
    from hypernet_d2.data import load_yolo_style

    return load_yolo_style(root, split, CLASSES, **kwargs)


def objects(root: Path) -> list[tuple]:
    return [(a["category_id"], a["bbox"]) for r in load(root) for a in r["annotations"]]


@pytest.fixture
def logged():
    with (
        logged_by("hypernet_d2.data.checks", logging.WARNING) as boxes,
        logged_by("hypernet_d2.data.datasets.common", logging.WARNING) as others,
    ):
        yield lambda: boxes + others


@pytest.fixture
def set_name():
    from detectron2.data import DatasetCatalog, MetadataCatalog

    name = "yolo_style_of_a_test"
    yield name
    DatasetCatalog.pop(name, None)
    MetadataCatalog.pop(name, None)


def test_a_record_has_the_standard_form(tmp_path, logged):
    from detectron2.structures import BoxMode

    add(tmp_path, "a b (1).JPG", "1 0.5 0.5 0.25 0.5\n")
    assert load(tmp_path) == [
        {
            "file_name": str(tmp_path / "images/a b (1).JPG"),
            "image_id": "a b (1)",
            "height": HEIGHT,
            "width": WIDTH,
            "annotations": [
                {
                    "bbox": [15, 5, 25, 15],
                    "bbox_mode": BoxMode.XYXY_ABS,
                    "category_id": 1,
                    "iscrowd": 0,
                }
            ],
        }
    ]
    assert logged() == []


@pytest.mark.parametrize("labels_in", ["labels", "images/labels", "images"])
def test_places_of_text_files(tmp_path, labels_in):
    add(tmp_path, "a.jpg", labels_in=labels_in)
    assert objects(tmp_path) == [(0, [0, 0, WIDTH, HEIGHT])]


def test_text_files_in_two_places_are_ambiguous(tmp_path):
    add(tmp_path, "a.jpg", labels_in="labels")
    add(tmp_path, "a.jpg", labels_in="images")
    with pytest.raises(ValueError, match="labels and .*images have text files of its images"):
        load(tmp_path)


@pytest.mark.parametrize("split", ["train", "images/train", "list.txt", ["images/train"]])
def test_forms_of_a_split(tmp_path, split):
    add(tmp_path, "train/a.jpg")
    add(tmp_path, "val/b.jpg")
    (tmp_path / "list.txt").write_text("\ufeff./images/train/a.jpg\r\n\r\n", encoding="utf-8")
    assert [record["image_id"] for record in load(tmp_path, split)] == ["a"]


def test_images_beside_each_other_by_split_and_kind(tmp_path):
    add(tmp_path / "train", "a.jpg")
    add(tmp_path / "valid", "b.jpg")
    assert [record["image_id"] for record in load(tmp_path, "train")] == ["a"]


def test_repeated_names_get_distinct_ids(tmp_path):
    add(tmp_path, "x/a.jpg")
    add(tmp_path, "y/a.jpg")
    assert len({record["image_id"] for record in load(tmp_path)}) == 2


def test_byte_order_mark_and_windows_ends(tmp_path):
    add(tmp_path, "a.jpg", b"\xef\xbb\xbf0 .5 .5 1 1\r\n\r\n1 .25 .5 .5 1\r\n")
    assert objects(tmp_path) == [(0, [0, 0, 40, 20]), (1, [0, 0, 20, 20])]


def test_polygon_becomes_box_and_segmentation(tmp_path):
    add(tmp_path, "a.jpg", "0 0.1 0.5 0.5 0.25 1.0005 1")
    (one,) = load(tmp_path)[0]["annotations"]
    assert one["bbox"] == pytest.approx([4, 5, 40, 20])
    assert one["segmentation"] == [pytest.approx([4, 10, 20, 5, 40, 20])]


def test_rounding_beyond_the_border_is_clipped_silently(tmp_path, logged):
    add(tmp_path, "a.jpg", "0 0.5 0.5 1.0009 1.0009\n0 -0.0005 0.5 0.5 1")
    assert objects(tmp_path)[0] == (0, [0, 0, 40, 20])
    assert objects(tmp_path)[1] == (0, pytest.approx([0, 0, 9.98, 20]))
    assert [m for m in logged() if "outside" not in m] == []


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("2 .5 .5 .1 .1", r"class '2', expected a number from 0 to 1 for \['cell', 'dust'\]"),
        ("-1 .5 .5 .1 .1", "class '-1'"),
        ("0.5 .5 .5 .1 .1", "class '0.5'"),
        ("cell .5 .5 .1 .1", "'cell' is no number"),
        ("0 nan .5 .1 .1", "'nan' is no number"),
        ("0 .5 .5 .1 inf", "'inf' is no number"),
        ("0 0,5 0,5 0,1 0,1", "'0,5' is no number"),
        ("0 .5 .5 .1", r"4 value\(s\), expected 5"),
        ("0 .5 .5 .1 .1 .9", r"6 value\(s\), expected 5"),
        ("0 .5 .5 1.002 .1", "coordinate '1.002', expected a number from 0 to 1"),
        ("0 .5 -.002 .1 .1", "coordinate '-.002'"),
        ("0 20 10 5 5", "coordinate '20'.*pixels divided by"),
    ],
)
def test_bad_lines_are_named(tmp_path, line, message):
    add(tmp_path, "a.jpg", f"{WHOLE}\n{line}\n")
    with pytest.raises(ValueError, match=rf"a\.txt: line 2: {message}"):
        load(tmp_path)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le"])
def test_another_encoding_is_named(tmp_path, encoding):
    add(tmp_path, "a.jpg", WHOLE.encode(encoding))
    with pytest.raises(ValueError, match=r"a\.txt: expected text in UTF-8"):
        load(tmp_path)


def test_missing_and_empty_text_files_are_images_without_objects(tmp_path, logged):
    for name in ("b.jpg", "c.jpg"):
        add(tmp_path, name, None)
    add(tmp_path, "a.jpg")
    add(tmp_path, "empty.jpg", "")
    load(tmp_path)
    assert [len(record["annotations"]) for record in load(tmp_path)] == [1, 0, 0, 0]
    (message,) = logged()
    assert "2 of 4 image(s) have no text file" in message and message.endswith("b.jpg, c.jpg")


def test_no_text_file_at_all_is_an_error(tmp_path):
    add(tmp_path, "a.jpg", None)
    with pytest.raises(FileNotFoundError, match=r"no text file .*1 images; looked in .*labels"):
        load(tmp_path)


def test_text_files_without_an_image_are_named_once(tmp_path, logged):
    add(tmp_path, "a.jpg")
    for name in ("b", "c", "classes"):
        (tmp_path / f"labels/{name}.txt").write_text(WHOLE)
    load(tmp_path), load(tmp_path)
    (message,) = logged()
    assert "2 text file(s) without an image" in message
    assert "b.txt" in message and "c.txt" in message and "classes" not in message


def test_repeated_lines_and_odd_boxes_are_counted(tmp_path, logged):
    lines = f"{WHOLE}\n{WHOLE}\n0 .5 .5 0 .1\n0 .9 .5 .5 1\n"
    add(tmp_path, "a.jpg", lines)
    assert [box for _, box in objects(tmp_path)] == [[0, 0, 40, 20], pytest.approx([26, 0, 40, 20])]
    assert sorted(m.partition(": ")[2] for m in logged()) == [
        "1 box(es) in a line that repeats another left out: a.txt",
        "1 box(es) partly outside the image clipped: a.txt",
        "1 box(es) without area removed: a.txt",
    ]
    (record,) = load(tmp_path, keep_odd_boxes=True)
    assert len(record["annotations"]) == 4


def test_two_images_of_one_text_file(tmp_path):
    add(tmp_path, "a.jpg")
    add(tmp_path, "a.png")
    with pytest.raises(ValueError, match=r"a\.jpg and .*a\.png have the same text file a\.txt"):
        load(tmp_path)


def test_size_is_the_one_after_exif_rotation(tmp_path):
    exif = Image.Exif()
    exif[274] = 6
    add(tmp_path, "a.jpg", "0 .5 .5 1 .5", exif=exif)
    (record,) = load(tmp_path)
    assert (record["width"], record["height"]) == (HEIGHT, WIDTH)
    assert record["annotations"][0]["bbox"] == [0, 10, 20, 30]


def test_missing_splits_and_images_are_named(tmp_path):
    add(tmp_path, "a.jpg")
    with pytest.raises(FileNotFoundError, match="nowhere: no such folder of images"):
        load(tmp_path, "nowhere")
    (tmp_path / "images/list").mkdir()
    (tmp_path / "list.txt").write_text("images/a.jpg\nimages/b.jpg\n")
    with pytest.raises(ValueError, match=r"images/list and .*list\.txt are there for 'list'"):
        load(tmp_path, "list")
    with pytest.raises(FileNotFoundError, match=r"list\.txt: line 2: no such image: images/b"):
        load(tmp_path, "list.txt")
    (tmp_path / "list.txt").write_text("images/a.jpg\nimages/a.jpg\n")
    with pytest.raises(ValueError, match=r"list\.txt: names .*a\.jpg twice"):
        load(tmp_path, "list.txt")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"empty: no image"):
        load(tmp_path, "empty")


def test_registration_is_lazy_and_may_be_repeated(tmp_path, set_name):
    from detectron2.data import DatasetCatalog, MetadataCatalog

    from hypernet_d2.data import register_yolo_style

    for _ in range(2):
        register_yolo_style(set_name, tmp_path, "train", CLASSES)
    assert MetadataCatalog.get(set_name).thing_classes == list(CLASSES)
    with pytest.raises(FileNotFoundError, match="train"):
        DatasetCatalog.get(set_name)
    with pytest.raises(ValueError, match=f"'{set_name}' is registered already"):
        register_yolo_style(set_name, tmp_path, "val", CLASSES)
