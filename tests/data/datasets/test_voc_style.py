"""VOC-style sets: what is read, and what each kind of bad input says."""

import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.helpers import logged_by

pytestmark = pytest.mark.detectron2

CLASSES = ("cell", "dust")
WIDTH, HEIGHT = 40, 30


def make_object(name="cell", box=(5, 6, 15, 16), extra=""):
    sides = zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)
    corners = "".join(f"<{side}>{value}</{side}>" for side, value in sides)
    return (
        f"<object><name>{name}</name><pose>Left</pose><truncated>0</truncated>"
        f"<difficult>0</difficult>{extra}<bndbox>{corners}</bndbox></object>"
    )


def make_xml(*objects, size=(WIDTH, HEIGHT)):
    stated = ""
    if size is not None:
        stated = f"<size><width>{size[0]}</width><height>{size[1]}</height></size>"
    return f"<annotation>{stated}{''.join(objects)}</annotation>"


class Root:
    """A VOC-style folder that a test fills."""

    def __init__(self, path: Path):
        self.path = path
        for folder in ("Annotations", "ImageSets/Main", "JPEGImages"):
            (path / folder).mkdir(parents=True)
        self.split_file = path / "ImageSets" / "Main" / "train.txt"

    def add(self, image_id, xml, suffix=".jpg", size=(WIDTH, HEIGHT), **save):
        noise = np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), np.uint8)
        Image.fromarray(noise).save(self.path / "JPEGImages" / f"{image_id}{suffix}", **save)
        xml = xml if isinstance(xml, bytes) else xml.encode()
        (self.path / "Annotations" / f"{image_id}.xml").write_bytes(xml)
        with self.split_file.open("a") as file:
            file.write(f"{image_id}\n")

    def load(self, split="train", classes=CLASSES):
        from hypernet_d2.data import load_voc_style

        return load_voc_style(self.path, split, classes)


@pytest.fixture
def root(tmp_path) -> Root:
    return Root(tmp_path / "set")


@pytest.fixture
def logged():
    with logged_by("hypernet_d2.data.checks", logging.WARNING) as messages:
        yield messages


def boxes_of(root: Root) -> list[list[float]]:
    return [a["bbox"] for record in root.load() for a in record["annotations"]]


def test_same_boxes_as_detectron2s_own_voc_loader(root):
    from detectron2.data.datasets.pascal_voc import load_voc_instances

    root.add("a", make_xml(make_object(), make_object("dust", (1, 1, WIDTH, HEIGHT))))
    root.add("b", make_xml(make_object(box=(2, 3, 4, 9))))
    ours, stock = root.load(), load_voc_instances(str(root.path), "train", CLASSES)
    for mine, theirs in zip(ours, stock, strict=True):
        for key in ("file_name", "image_id", "height", "width"):
            assert mine[key] == theirs[key]
        for a, b in zip(mine["annotations"], theirs["annotations"], strict=True):
            assert {key: a[key] for key in b} == b


def test_one_based_corners_become_continuous_sides(root):
    root.add("a", make_xml(make_object(box=(1, 1, WIDTH, HEIGHT))))
    assert boxes_of(root) == [[0, 0, WIDTH, HEIGHT]]


@pytest.mark.parametrize("suffix", [".jpg", ".jpeg", ".png", ".JPG"])
def test_image_suffixes(root, suffix):
    root.add("a", make_xml(make_object()), suffix=suffix)
    assert Path(root.load()[0]["file_name"]).name.lower() == f"a{suffix}".lower()


def test_image_without_objects_is_kept(root):
    root.add("a", make_xml())
    root.add("b", make_xml(make_object()))
    assert [len(record["annotations"]) for record in root.load()] == [0, 1]


def test_difficult_objects_are_kept_and_marked(root):
    xml = make_xml(make_object(), make_object().replace("difficult>0", "difficult>1"))
    root.add("a", xml)
    assert [a["difficult"] for a in root.load()[0]["annotations"]] == [False, True]


def test_rounding_at_the_border_is_clipped_silently(root, logged):
    root.add("a", make_xml(make_object(box=(1, 1, WIDTH + 1, HEIGHT + 1))))
    assert boxes_of(root) == [[0, 0, WIDTH, HEIGHT]]
    assert logged == []


def test_xml_that_counts_from_0_is_told_and_can_be_read(root, set_name, logged):
    from hypernet_d2.data import load_dataset, register_voc_style

    root.add("a", make_xml(make_object(box=(0, 0, 10, 12)), make_object(box=(5, 6, 15, 16))))
    assert boxes_of(root)[1] == [4, 5, 15, 16]
    assert [m for m in logged if "1 box(es) with a corner at 0" in m and "one_based=False" in m]
    logged.clear()
    register_voc_style(set_name, root.path, "train", CLASSES, one_based=False)
    (record,) = load_dataset(set_name)
    assert [a["bbox"] for a in record["annotations"]] == [[0, 0, 10, 12], [5, 6, 15, 16]]
    assert logged == []


@pytest.mark.parametrize("named", ["a.png", "C:\\pictures\\a.png"])
def test_of_two_images_with_one_id_the_xml_names_its_own(root, named):
    root.add("a", make_xml(make_object()), suffix=".png")
    (root.path / "JPEGImages/a.jpg").write_bytes(b"another picture")
    xml = root.path / "Annotations/a.xml"
    with pytest.raises(ValueError, match=r"a\.xml: .*a\.jpg and .*a\.png have its name"):
        root.load()
    xml.write_text(xml.read_text().replace("<size>", f"<filename>{named}</filename><size>"))
    assert root.load()[0]["file_name"].endswith("a.png")


def test_odd_boxes_can_be_kept_to_be_looked_at(root, set_name, logged):
    from hypernet_d2.data import load_dataset, register_voc_style

    boxes = [(20, 8, 5, 12), (50, 5, 60, 9), (30, 5, 60, 9)]
    root.add("a", make_xml(*(make_object(box=box) for box in boxes)))
    register_voc_style(set_name, root.path, "train", CLASSES)
    (record,) = load_dataset(set_name, keep_odd_boxes=True)
    kept = [a["bbox"] for a in record["annotations"]]
    assert kept == [[19, 7, 5, 12], [49, 4, 60, 9], [29, 4, 60, 9]]
    assert logged == []
    assert [a["bbox"] for a in load_dataset(set_name)[0]["annotations"]] == [[29, 4, 40, 9]]


def test_a_size_with_a_decimal_point_is_one(root):
    root.add("a", make_xml(make_object(), size=(f"{WIDTH}.0", f"{HEIGHT}.0")))
    assert (root.load()[0]["width"], root.load()[0]["height"]) == (WIDTH, HEIGHT)


@pytest.mark.parametrize(("encoding", "stated"), [("utf-16", "utf-16"), ("cp1252", "windows-1252")])
def test_xml_in_the_encoding_that_it_states_is_read(root, encoding, stated):
    text = f'<?xml version="1.0" encoding="{stated}"?>' + make_xml(make_object("Bär"))
    root.add("a", text.encode(encoding))
    assert root.load(classes=["Bär"])[0]["annotations"][0]["category_id"] == 0


def test_xml_in_an_encoding_that_it_does_not_state_is_named(root):
    root.add("a", make_xml(make_object("Bär")).encode("cp1252"))
    with pytest.raises(ValueError, match=r"a\.xml: expected VOC xml, but "):
        root.load(classes=["Bär"])


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "cp1252"])
def test_split_file_in_another_encoding_is_named(root, encoding):
    root.add("a", make_xml())
    root.split_file.write_bytes("Bär\n".encode(encoding))
    with pytest.raises(ValueError, match=r"train\.txt"):
        root.load()


def test_odd_boxes_are_counted_and_logged_once(root, logged):
    flat, outside = make_object(box=(7, 7, 7, 12)), make_object(box=(50, 5, 60, 9))
    root.add("good", make_xml(make_object()))
    root.add("flat", make_xml(flat, make_object(box=(9, 8, 5, 12)), make_object(box=(3, 3, 3, 3))))
    root.add("outside", make_xml(outside, make_object(box=(-9, -9, 0, 0))))
    root.add("partly", make_xml(make_object(box=(30, 5, 60, 9))))
    assert boxes_of(root) == [[4, 5, 15, 16], [29, 4, 40, 9]]
    root.load()
    assert len(logged) == 3
    for expected in (
        "3 box(es) without area removed: flat.xml in",
        "2 box(es) outside the image removed: outside.xml in",
        "1 box(es) partly outside the image clipped: partly.xml in",
    ):
        assert any(expected in message for message in logged)


@pytest.mark.parametrize("element", ["xmin", "ymax"])
@pytest.mark.parametrize("value", ["", "abc", "nan", "inf", None])
def test_coordinate_that_is_no_number(root, element, value):
    whole = make_object(box=(5, 5, 9, 9))
    old = f"<{element}>{5 if element == 'xmin' else 9}</{element}>"
    new = "" if value is None else f"<{element}>{value}</{element}>"
    root.add("a", make_xml(make_object(), whole.replace(old, new)))
    with pytest.raises(
        ValueError, match=rf"a\.xml: object 2: bndbox/{element} .*expected a number"
    ):
        root.load()


def test_class_not_in_the_list(root):
    root.add("a", make_xml(make_object("cat")))
    with pytest.raises(ValueError, match=r"a\.xml: object 1 .*'cat'.*\['cell', 'dust'\]"):
        root.load()


def test_object_without_name(root):
    root.add("a", make_xml(make_object().replace("<name>cell</name>", "")))
    with pytest.raises(ValueError, match=r"a\.xml: object 1 is of class ''"):
        root.load()


def test_missing_split_file_names_those_there(root):
    root.add("a", make_xml())
    with pytest.raises(FileNotFoundError, match=r"nope\.txt: no such split.*there: train"):
        root.load("nope")


@pytest.mark.parametrize("text", ["", "\n \n"])
def test_empty_split_file(root, text):
    root.split_file.write_text(text)
    with pytest.raises(ValueError, match=r"train\.txt: names no image"):
        root.load()


def test_split_file_names_an_image_twice(root):
    root.add("a", make_xml())
    root.add("a", make_xml())
    with pytest.raises(ValueError, match=r"train\.txt: names 'a' twice"):
        root.load()


def test_split_file_that_is_no_text(root):
    root.split_file.write_bytes(b"\xff\xfe\x80\n")
    with pytest.raises(ValueError, match=r"train\.txt: expected text in UTF-8"):
        root.load()


def test_split_file_with_byte_order_mark_and_windows_ends(root):
    root.add("a", make_xml())
    root.add("b", make_xml())
    root.split_file.write_bytes(b"\xef\xbb\xbfa\r\nb\r\n")
    assert [record["image_id"] for record in root.load()] == ["a", "b"]


def test_split_file_with_one_line(root):
    root.add("000012", make_xml(make_object()))
    assert [record["image_id"] for record in root.load()] == ["000012"]


def test_missing_image(root):
    root.add("a", make_xml())
    (root.path / "JPEGImages" / "a.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"JPEGImages/a: no such image.*train\.txt"):
        root.load()


def test_missing_annotation(root):
    root.add("a", make_xml())
    (root.path / "Annotations" / "a.xml").unlink()
    with pytest.raises(FileNotFoundError, match=r"a\.xml: no such annotation.*train\.txt"):
        root.load()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x00\x01\x02",
        b"<annotation><size>",
        b"not xml",
        b'<?xml version="1.0" encoding="x"?><a/>',
    ],
)
def test_xml_that_does_not_parse(root, content):
    root.add("a", content)
    with pytest.raises(ValueError, match=r"a\.xml: expected VOC xml, but "):
        root.load()


BOMB = '<?xml version="1.0"{}?><!DOCTYPE a [<!ENTITY a0 "ha">{}]><annotation>&a40;</annotation>'
BOMB_ENTITIES = "".join(f'<!ENTITY a{i} "&a{i - 1};&a{i - 1};">' for i in range(1, 41))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_entities_are_refused_before_they_expand(root, encoding):
    root.add("a", BOMB.format(f' encoding="{encoding}"', BOMB_ENTITIES).encode(encoding))
    with pytest.raises(ValueError, match=r"a\.xml: has a document type"):
        root.load()


def test_external_entity_is_refused(root, tmp_path):
    (tmp_path / "secret").write_text("cell")
    entity = f'<!DOCTYPE a [<!ENTITY e SYSTEM "file://{tmp_path}/secret">]>'
    root.add("a", entity + make_xml(make_object("&e;")))
    with pytest.raises(ValueError, match=r"a\.xml: has a document type"):
        root.load()


def test_xml_without_size(root):
    root.add("a", make_xml(make_object(), size=None))
    with pytest.raises(ValueError, match=rf"a\.xml: no size.*{WIDTH}.*{HEIGHT}.*a\.jpg"):
        root.load()


@pytest.mark.parametrize("size", [(HEIGHT, WIDTH), (0, 0), ("wide", HEIGHT), ("40.5", HEIGHT)])
def test_size_that_is_not_the_images(root, size):
    root.add("a", make_xml(make_object(), size=size))
    match = rf"a\.xml: the size is {size[0]} x {size[1]} .*a\.jpg is {WIDTH} x {HEIGHT}"
    with pytest.raises(ValueError, match=match):
        root.load()


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_size_is_the_one_after_exif_rotation(root, suffix):
    from detectron2.data.detection_utils import read_image

    exif = Image.Exif()
    exif[274] = 6
    root.add("a", make_xml(make_object(), size=(HEIGHT, WIDTH)), suffix=suffix, exif=exif)
    record = root.load()[0]
    assert (record["height"], record["width"]) == read_image(record["file_name"]).shape[:2]


@pytest.mark.parametrize("content", [b"", b"this is text", b"\xff\xd8\xff"])
def test_image_that_is_no_image(root, content):
    root.add("a", make_xml())
    (root.path / "JPEGImages" / "a.jpg").write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.jpg: cannot be read as an image"):
        root.load()


@pytest.mark.parametrize("classes", ["cell", [], ["cell", "cell"]])
def test_classes_that_are_no_distinct_names(root, classes):
    root.add("a", make_xml())
    with pytest.raises(ValueError, match="expected a list of distinct names"):
        root.load(classes=classes)


@pytest.fixture
def set_name():
    from detectron2.data import DatasetCatalog, MetadataCatalog

    name = "voc_style_of_a_test"
    yield name
    DatasetCatalog.pop(name, None)
    MetadataCatalog.pop(name, None)


def test_registration_is_lazy_and_may_be_repeated(root, set_name):
    from detectron2.data import DatasetCatalog, MetadataCatalog

    from hypernet_d2.data import register_voc_style

    missing = root.path / "later"
    register_voc_style(set_name, missing, "train", CLASSES)
    register_voc_style(set_name, str(missing), "train", list(CLASSES))
    assert MetadataCatalog.get(set_name).thing_classes == list(CLASSES)
    with pytest.raises(FileNotFoundError, match="later"):
        DatasetCatalog.get(set_name)


@pytest.mark.parametrize("change", [{"split": "val"}, {"classes": ("a",)}, {"root": "elsewhere"}])
def test_registering_another_set_under_a_name_that_is_taken(root, set_name, change):
    from hypernet_d2.data import register_voc_style

    arguments = {"root": root.path, "split": "train", "classes": CLASSES}
    register_voc_style(set_name, **arguments)
    with pytest.raises(ValueError, match=f"'{set_name}' is registered already"):
        register_voc_style(set_name, **{**arguments, **change})


def test_year_has_to_be_one_that_the_evaluator_knows(root, set_name):
    from hypernet_d2.data import register_voc_style

    with pytest.raises(ValueError, match="2010, expected 2007 or 2012"):
        register_voc_style(set_name, root.path, "train", CLASSES, year=2010)


def test_coco_evaluator_on_a_set_with_an_empty_image(root, set_name, tmp_path, perfect_outputs):
    from detectron2.data import DatasetCatalog
    from detectron2.evaluation import COCOEvaluator

    from hypernet_d2.data import register_voc_style

    root.add("a", make_xml(make_object(), make_object("dust", (20, 20, 31, 28))))
    root.add("empty", make_xml())
    register_voc_style(set_name, root.path, "train", CLASSES)
    evaluator = COCOEvaluator(set_name, ["bbox"], False, output_dir=str(tmp_path))
    evaluator.reset()
    for record in DatasetCatalog.get(set_name):
        evaluator.process([record], [perfect_outputs(record)])
    assert evaluator.evaluate()["bbox"]["AP"] == pytest.approx(100)


@pytest.fixture
def mapper():
    from detectron2.data import transforms as T

    from hypernet_d2.data import NamedErrorDatasetMapper

    return NamedErrorDatasetMapper(
        is_train=True, augmentations=[T.ResizeShortestEdge(15)], image_format="BGR"
    )


def test_mapper_reads_good_images_as_the_stock_one_does(root, mapper):
    root.add("a", make_xml(make_object(box=(5, 6, 15, 16))))
    mapped = mapper(root.load()[0])
    assert mapped["image"].shape == (3, 15, 20)
    assert mapped["instances"].gt_boxes.tensor.tolist() == [[2, 2.5, 7.5, 8]]


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_mapper_names_a_truncated_image(root, mapper, suffix):
    root.add("a", make_xml(make_object()), suffix=suffix)
    record = root.load()[0]
    path = Path(record["file_name"])
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    message = rf"a\{suffix}: cannot be read as an image: .*truncated.*; .* --check-images' lists"
    with pytest.raises(ValueError, match=message):
        mapper(root.load()[0])


@pytest.mark.parametrize("content", [None, b"", b"text"])
def test_mapper_names_an_image_that_went_bad_after_loading(root, mapper, content):
    root.add("a", make_xml(make_object()))
    record = root.load()[0]
    path = Path(record["file_name"])
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.jpg: cannot be read as an image"):
        mapper(record)


def test_mapper_names_an_image_of_another_size(root, mapper):
    root.add("a", make_xml(make_object()))
    with pytest.raises(ValueError, match=r"a\.jpg.*expect \(41, 30\)"):
        mapper({**root.load()[0], "width": WIDTH + 1})


def test_a_look_at_the_data_lists_and_draws_odd_boxes(root, set_name, tmp_path, capsys):
    from hypernet_d2.cli.inspect_data import main

    boxes = [(20, 8, 5, 12), (50, 5, 60, 9), (5, 6, 25, 26)]
    root.add("a", make_xml(*(make_object(box=box) for box in boxes)))
    data = tmp_path / "data.py"
    data.write_text(
        "from hypernet_d2.data import register_voc_style\n"
        f"register_voc_style({set_name!r}, {str(root.path)!r}, 'train', {list(CLASSES)})\n"
    )
    main(["--data", str(data), "--dataset", set_name, "--output", str(tmp_path / "look")])
    printed = capsys.readouterr().out
    assert "2 suspicious boxes in 1 images" in printed
    assert "box 1 (19, 7, 5, 12): no area" in printed
    assert "box 2 (49, 4, 60, 9): outside the image" in printed
    assert [path.name for path in (tmp_path / "look").iterdir()] == ["001_suspicious_a.png"]
