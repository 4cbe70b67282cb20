"""Data of one's own: which layout a path has, its splits and classes, and what is ambiguous."""

import json
import logging
import shutil
from pathlib import Path

import pytest
from PIL import Image

from tests.helpers import logged_by, write_voc

pytestmark = pytest.mark.detectron2

WIDTH, HEIGHT = 80, 64
PREFIX = "own_data_of_a_test"


@pytest.fixture
def register():
    """`register_own_data` under a name of the tests."""
    from hypernet_d2.data import register_own_data

    yield lambda path: register_own_data(path, PREFIX)
    unregister()


def unregister() -> None:
    from detectron2.data import DatasetCatalog, MetadataCatalog

    for role in ("all", "train", "val", "test"):
        for catalog in (DatasetCatalog, MetadataCatalog):
            catalog.pop(f"{PREFIX}_{role}", None)


@pytest.fixture
def logged():
    with logged_by("hypernet_d2.data.datasets.common", logging.WARNING) as messages:
        yield messages


def write_image(path: Path, color: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (WIDTH, HEIGHT), (20 * color, 0, 0)).save(path)


def write_yolo(folder: Path, images: dict[str, str], yaml: str | None = None) -> None:
    """``images`` are {path: lines}, each path with ``images`` in it."""
    for number, (name, lines) in enumerate(images.items()):
        write_image(folder / name, number)
        file = folder / Path(name.replace("images", "labels")).with_suffix(".txt")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(lines)
    if yaml is not None:
        (folder / "data.yaml").write_text(yaml)


def write_coco(file: Path, names: list[str], categories=("cat", "dog"), root: str = "") -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(names):
        write_image(file.parent / root / name, number + 6 * ("val" in file.stem))
    content = {
        "images": [
            {"id": i, "file_name": name, "width": WIDTH, "height": HEIGHT}
            for i, name in enumerate(names, start=1)
        ],
        "categories": [{"id": i, "name": name} for i, name in enumerate(categories, start=1)],
        "annotations": [
            {"id": i, "image_id": i, "category_id": 1, "bbox": [8, 8, 16, 16], "area": 256,
             "iscrowd": 0}
            for i in range(1, len(names) + 1)
        ],
    }  # fmt: skip
    file.write_text(json.dumps(content))


def load(name: str, **kwargs) -> list[dict]:
    from hypernet_d2.data import load_dataset

    return load_dataset(name, **kwargs)


def stems(names) -> set[str]:
    return {Path(record["file_name"]).stem for name in names for record in load(name)}


LINE = "0 .5 .5 .5 .5"
TRAIN_AND_VAL = {"train/images/a.jpg": LINE, "valid/images/b.jpg": LINE}


@pytest.mark.parametrize(
    "yaml",
    [
        "train: ../train/images\nval: ../valid/images\nnc: 2\nnames: ['cat', 'no']",
        "train: train/images\nval: valid/images\nnames: [cat, no]",
        "path: .\ntrain: train\nval: [valid/images]\nnames: {0: cat, 1: no}",
        "path: ../nowhere\ntrain: train/images\nval: valid\nnames:\n  1: no\n  0: cat\n",
        "\ufefftrain: train.txt\r\nval: valid\r\ntest:\r\nnames: [cat, no]\r\n",
    ],
)
def test_forms_of_a_data_yaml(tmp_path, register, yaml):
    write_yolo(tmp_path / "x", TRAIN_AND_VAL, yaml)
    (tmp_path / "x/train.txt").write_text("./train/images/a.jpg\n")
    for path in (tmp_path / "x", tmp_path / "x/data.yaml"):
        data = register(path)
        assert data.classes == ("cat", "no")  # which YAML would take for False
        assert (stems(data.train), stems(data.test)) == ({"a"}, {"b"})
        unregister()
        assert f"{path}: YOLO, 2 classes: {PREFIX}_train with 1 image(s)" in data.summary


@pytest.mark.parametrize(
    ("yaml", "message"),
    [
        ("train: train\nval: valid", "no 'names'"),
        ("train: [", "expected YAML, but"),
        ("names: [a]\nval: valid", "no 'train'"),
        ("names: [a, a]\ntrain: train", "data.yaml: classes are .*expected a list of distinct"),
        ("names: {1: a, 2: b}\ntrain: train", r"keys \['1', '2'\], expected 0 to 1"),
        ("names: [a, b]\nnc: 3\ntrain: train", "nc is 3, but there are 2 names"),
        ("names: [a]\nkpt_shape: [17, 3]\ntrain: train", "has keypoints"),
        ("names: [a]\ntrain: train\nval: {a: b}", "val is .*expected paths"),
    ],
)
def test_bad_data_yaml_is_named(tmp_path, register, yaml, message):
    write_yolo(tmp_path, TRAIN_AND_VAL, yaml)
    with pytest.raises(ValueError, match=message) as caught:
        register(tmp_path)
    assert "data.yaml" in str(caught.value)


def test_missing_splits_of_a_data_yaml(tmp_path, register, logged):
    yaml = "names: [cat]\ntrain: train\nval: valid\ntest: ../test/images"
    write_yolo(tmp_path, TRAIN_AND_VAL, yaml)
    assert stems(register(tmp_path).test) == {"b"}
    assert [m for m in logged if "test is '../test/images', but there is no" in m]
    (tmp_path / "data.yaml").write_text("names: [cat]\ntrain: train\nval: nowhere")
    with pytest.raises(FileNotFoundError, match="data.yaml: val is 'nowhere', but there is no"):
        register(tmp_path)


def test_an_entry_that_fits_two_places_is_ambiguous(tmp_path, register):
    write_yolo(tmp_path / "x", TRAIN_AND_VAL, "names: [cat]\ntrain: ../train\nval: valid")
    write_yolo(tmp_path, TRAIN_AND_VAL)
    with pytest.raises(ValueError, match="train '../train' may be each of"):
        register(tmp_path / "x")


def test_the_path_of_a_data_yaml_comes_before_its_own_folder(tmp_path, register):
    write_yolo(tmp_path / "x", TRAIN_AND_VAL, "path: ../y\ntrain: train\nval: valid\nnames: [a]")
    write_yolo(tmp_path / "y", {"train/images/c.jpg": LINE, "valid/images/d.jpg": LINE})
    assert stems(register(tmp_path / "x").train) == {"c"}


def test_yolo_without_a_yaml_needs_class_names(tmp_path, register):
    write_yolo(tmp_path, {"images/train/a.jpg": LINE, "images/val/b.jpg": LINE})
    with pytest.raises(ValueError, match="without class names"):
        register(tmp_path)
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    (tmp_path / "notes.json").write_text('{"categories": [], "info": {}}')  # Label Studio's
    data = register(tmp_path)
    assert (data.classes, stems(data.train), stems(data.test)) == (("cat", "dog"), {"a"}, {"b"})


@pytest.mark.parametrize("root", ["../images", "..", "", "images", "../{}", "../images/{}"])
def test_coco_in_annotations_with_images_in_several_places(tmp_path, register, root):
    write_coco(tmp_path / "annotations/instances_train.json", ["a.jpg"], root=root.format("train"))
    write_coco(tmp_path / "annotations/instances_val.json", ["b.jpg"], root=root.format("val"))
    data = register(tmp_path)
    assert data.classes == ("cat", "dog")
    assert (stems(data.train), stems(data.test)) == ({"a"}, {"b"})


def test_roboflows_coco(tmp_path, register):
    for split, name in (("train", "a"), ("valid", "b"), ("test", "c")):
        write_coco(tmp_path / split / "_annotations.coco.json", [f"{name}.jpg"])
    (tmp_path / "README.dataset.txt").write_text("x")
    data = register(tmp_path)
    assert (stems(data.train), stems(data.test)) == ({"a"}, {"b"})
    assert stems([f"{PREFIX}_test"]) == {"c"}
    assert f"{PREFIX}_test with 1 image(s)" in data.summary


def test_a_json_is_split_and_both_parts_are_whole_sets(tmp_path, register):
    file = tmp_path / "set.json"
    write_coco(file, [f"{name}.jpg" for name in "abcdefghij"])
    content = json.loads(file.read_text())
    content["annotations"][3]["segmentation"] = [[]]  # which detectron2 leaves out with its box
    file.write_text(json.dumps(content))
    data = register(file)
    train, val = (load(name, evaluated=True) for (name,) in (data.train, data.test))
    assert (len(train), len(val)) == (8, 2)
    assert all(len(record["annotations"]) == 1 for record in [*train, *val])
    assert "taken from the training images" in data.summary


def test_perfect_detections_of_a_made_split_have_ap_100(tmp_path, register, perfect_outputs):
    from hypernet_d2.evaluation import build_evaluator
    from tests.helpers import tiny_cfg

    write_coco(tmp_path / "set.json", [f"{name}.jpg" for name in "abcdefghij"])
    (name,) = register(tmp_path / "set.json").test
    evaluator = build_evaluator(tiny_cfg("OUTPUT_DIR", str(tmp_path)), name)
    evaluator.reset()
    for record in load(name):
        evaluator.process([record], [perfect_outputs(record)])
    assert evaluator.evaluate()["bbox"]["AP"] == pytest.approx(100)


def test_coco_errors(tmp_path, register):
    file = tmp_path / "annotations/train.json"
    write_coco(file, ["a.jpg"])
    for name in ("instances_train.json", "extra.json"):
        shutil.copy(file, file.with_name(name))
        with pytest.raises(ValueError, match=r"found .*train\.json \(train\)"):
            register(tmp_path)
        file.with_name(name).unlink()
    write_image(tmp_path / "images/a.jpg")
    with pytest.raises(ValueError, match="its images are in .* and in .*expected one folder"):
        register(tmp_path)
    shutil.rmtree(tmp_path / "images")
    (tmp_path / "annotations/a.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"its image 'a\.jpg' is in none of"):
        register(tmp_path)


@pytest.mark.parametrize("annotations", ["Annotations", "annotations", "."])
@pytest.mark.parametrize("images", ["JPEGImages", "images", "."])
def test_voc_without_image_sets(tmp_path, register, logged, annotations, images):
    write_voc(tmp_path / "from", count=5)
    (tmp_path / "voc").mkdir()
    for source, target in (("Annotations", annotations), ("JPEGImages", images)):
        (tmp_path / "voc" / target).mkdir(exist_ok=True)
        for file in (tmp_path / "from" / source).iterdir():
            shutil.copy(file, tmp_path / "voc" / target / file.name.replace("00", "a [0] "))
    data = register(tmp_path / "voc")
    assert data.classes == ("bar", "square")
    found = [load(name) for (name,) in (data.train, data.test)]
    assert [len(records) for records in found] == [4, 1]
    assert all(len(record["annotations"]) == 2 for records in found for record in records)
    assert logged == []


def test_voc_with_image_sets(tmp_path, register):
    write_voc(tmp_path, count=5)
    sets = tmp_path / "ImageSets/Main"
    assert stems(register(tmp_path).train + register(tmp_path).test) == {f"00{i}" for i in range(5)}
    for name, ids in (("trainval", "000 001 002"), ("train", "000 001"), ("val", "002")):
        (sets / f"{name}.txt").write_text(ids.replace(" ", "\n"))
    data = register(tmp_path)
    assert (stems(data.train), stems(data.test)) == ({"000", "001"}, {"002"})
    (sets / "train.txt").write_text("000\n007")
    with pytest.raises(FileNotFoundError, match="train.txt: names '007', but there is no xml"):
        register(tmp_path)


def test_voc_in_split_folders_and_xml_named_by_its_filename(tmp_path, register):
    for split in ("train", "valid"):
        write_voc(tmp_path / "from", count=1)
        (tmp_path / split).mkdir()
        shutil.copy(tmp_path / "from/JPEGImages/000.jpg", tmp_path / split / f"{split}.jpg")
        xml = (tmp_path / "from/Annotations/000.xml").read_text()
        xml = xml.replace("<size>", f"<filename>C:\\x\\{split}.jpg</filename><size>")
        (tmp_path / split / "other.xml").write_text(xml)
    shutil.rmtree(tmp_path / "from")
    data = register(tmp_path)
    assert (stems(data.train), stems(data.test)) == ({"train"}, {"valid"})


def test_voc_files_without_a_partner_are_named(tmp_path, register, logged):
    write_voc(tmp_path, count=6)
    shutil.rmtree(tmp_path / "ImageSets")
    (tmp_path / "JPEGImages/001.jpg").unlink()
    (tmp_path / "Annotations/002.xml").unlink()
    data = register(tmp_path)
    assert stems(data.train + data.test) == {"000", "003", "004", "005"}
    assert [m for m in logged if "1 xml file(s) without an image are left out: 001.xml" in m]
    assert [m for m in logged if "1 image(s) without xml are left out" in m and "002.jpg" in m]


@pytest.mark.parametrize(
    "source", ["shapes", pytest.param("bccd", marks=[pytest.mark.bccd, pytest.mark.slow])]
)
def test_one_set_in_all_layouts_gives_the_same_records(tmp_path, register, source, request):
    from detectron2.structures import BoxMode

    if source == "bccd":
        voc = request.getfixturevalue("bccd_root")
    else:
        voc = tmp_path / "voc"
        write_voc(voc, count=6)
        (voc / "ImageSets/Main/train.txt").write_text("000\n002\n003\n004\n")
        (voc / "ImageSets/Main/val.txt").write_text("001\n005\n")
    data = register(voc)
    records = {"train": load(data.train[0]), "val": load(data.test[0])}
    coco, yolo = tmp_path / "coco", {}
    (coco / "annotations").mkdir(parents=True)
    shutil.copytree(voc / "JPEGImages", coco / "images")
    for split, found in records.items():
        images, annotations = [], []
        for record in found:
            name, size = Path(record["file_name"]).name, (record["width"], record["height"])
            images.append({"id": len(images) + 1, "file_name": name, "width": size[0],
                           "height": size[1]})  # fmt: skip
            lines = ""
            for one in record["annotations"]:
                x0, y0, x1, y1 = one["bbox"]
                annotations.append(
                    {"id": len(annotations) + 1, "image_id": len(images), "iscrowd": 0,
                     "area": (x1 - x0) * (y1 - y0), "category_id": one["category_id"] + 1,
                     "bbox": [x0, y0, x1 - x0, y1 - y0]}
                )  # fmt: skip
                values = ((x0 + x1) / 2 / size[0], (y0 + y1) / 2 / size[1])
                values += ((x1 - x0) / size[0], (y1 - y0) / size[1])
                lines += f"{one['category_id']} {' '.join(map(repr, values))}\n"
            yolo[f"images/{split}/{name}"] = lines
        categories = [{"id": i, "name": name} for i, name in enumerate(data.classes, start=1)]
        content = {"images": images, "annotations": annotations, "categories": categories}
        (coco / f"annotations/{split}.json").write_text(json.dumps(content))
    yaml = f"train: images/train\nval: images/val\nnames: {list(data.classes)}"
    write_yolo(tmp_path / "yolo", yolo, yaml)
    for name in yolo:
        shutil.copy(voc / "JPEGImages" / Path(name).name, tmp_path / "yolo" / name)

    def simplify(records: list[dict]) -> list[dict]:
        return [
            {
                "file_name": Path(record["file_name"]).name,
                **{key: record[key] for key in ("height", "width")},
                "annotations": [
                    {
                        "bbox": pytest.approx(
                            list(BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS)),
                            abs=1e-6,
                        ),
                        **{key: a[key] for key in ("category_id", "iscrowd")},
                    }
                    for a in record["annotations"]
                ],
            }
            for record in sorted(records, key=lambda record: record["file_name"])
        ]

    def boxes_as_numbers(records: list[dict]) -> list[dict]:
        return [
            {**one, "annotations": [{**a, "bbox": a["bbox"].expected} for a in one["annotations"]]}
            for one in simplify(records)
        ]

    for folder in ("coco", "yolo"):
        unregister()
        again = register(tmp_path / folder)
        assert again.classes == data.classes
        for split, (name,) in (("train", again.train), ("val", again.test)):
            assert boxes_as_numbers(load(name)) == simplify(records[split])


def test_a_folder_of_two_layouts_is_ambiguous(tmp_path, register):
    write_yolo(tmp_path, TRAIN_AND_VAL, "names: [cat]\ntrain: train\nval: valid")
    write_coco(tmp_path / "annotations/train.json", ["a.jpg"])
    message = r"may be each of YOLO \(data\.yaml\); COCO \(annotations/train\.json\)"
    with pytest.raises(ValueError, match=message):
        register(tmp_path)


def test_a_folder_of_no_layout_lists_what_it_has(tmp_path, register):
    write_image(tmp_path / "a.jpg")
    write_image(tmp_path / "b.jpg")
    write_image(tmp_path / "more/c.jpg")
    with pytest.raises(ValueError, match=r"neither YOLO .*found \.jpg \(2\), folder more"):
        register(tmp_path)
    with pytest.raises(FileNotFoundError, match="nowhere: no such file"):
        register(tmp_path / "nowhere")


def test_registering_again_reads_again_and_other_data_is_refused(tmp_path, register):
    for name in ("x", "y"):
        write_coco(tmp_path / name / "set.json", ["a.jpg", "b.jpg"])
    assert register(tmp_path / "x") == register(tmp_path / "x")
    write_coco(tmp_path / "x/set.json", ["a.jpg", "b.jpg", "c.jpg"])
    data = register(tmp_path / "x")
    assert stems(data.train + data.test) == {"a", "b", "c"}
    with pytest.raises(ValueError, match=f"'{PREFIX}_all' is registered already, from .*x"):
        register(tmp_path / "y")


def test_a_python_file_is_run(tmp_path, register):
    (tmp_path / "data.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    assert register(tmp_path / "data.py").train == ()
    assert (tmp_path / "ran").exists()


def test_images_that_two_splits_share_are_named(tmp_path, register, logged):
    images = {
        "train/images/same.jpg": LINE,
        "train/images/x_jpg.rf.0123abc.jpg": LINE,
        "train/images/001.jpg": LINE,
        "valid/images/copy.jpg": LINE,
        "valid/images/x_jpg.rf.456def0.jpg": LINE,
        "valid/images/001.jpg": LINE,
    }
    write_yolo(tmp_path, images, "names: [cat]\ntrain: train\nval: valid")
    shutil.copy(tmp_path / "train/images/same.jpg", tmp_path / "valid/images/copy.jpg")
    register(tmp_path)
    (message,) = logged
    assert "2 image(s) of val are also in train: copy.jpg, x_jpg.rf.456def0.jpg" in message


def test_the_made_split_is_a_fifth_and_keeps_similar_names_together():
    from hypernet_d2.data.datasets.made_split import choose_validation, original_stem

    groups = [f"/x/{name}{i:02}_jpg.rf.{i}ab.jpg" for name in "abcdefghijklmno" for i in range(4)]
    chosen = choose_validation(groups)
    assert len(chosen) == 12
    assert chosen == choose_validation(sorted(groups, reverse=True))
    assert all(
        len({image in chosen for image in groups if f"/{name}" in image}) == 1
        for name in "abcdefghijklmno"
    )
    numbered = [f"/y/IMG_{i:04}.jpg" for i in range(400)]
    chosen = choose_validation(numbered)
    assert 70 <= len(chosen) <= 104
    assert {i // 10 for i, image in enumerate(numbered) if image in chosen} & {
        i // 10 for i, image in enumerate(numbered) if image not in chosen
    } == set()
    for count in range(2, 30):
        chosen = choose_validation(f"/z/{i}.jpg" for i in range(count))
        assert max(1, 0.1 * count) <= len(chosen) <= max(1, 0.35 * count)
    same_name = [f"/{i}/a.jpg" for i in range(4)]
    assert 0 < len(choose_validation(same_name)) < 4
    assert original_stem("a.b.rf.12ab.jpg") == "a.b"
    with pytest.raises(ValueError, match="too few"):
        choose_validation(["a.jpg"])


def test_folders_of_splits_that_a_data_yaml_does_not_name(tmp_path, register, logged):
    images = {**TRAIN_AND_VAL, "test/images/c.jpg": LINE}
    write_yolo(tmp_path, images, "names: [cat]\ntrain: ../train/images\ntest:")
    data = register(tmp_path)
    assert (stems(data.train), stems(data.test)) == ({"a"}, {"b"})
    assert stems([f"{PREFIX}_test"]) == {"c"}
    assert [m for m in logged if "names no test, but there is" in m and "which is used" in m]


def test_coco_images_in_no_json_are_named(tmp_path, register, logged):
    write_coco(tmp_path / "annotations/train.json", ["a.jpg"], root="../images")
    write_coco(tmp_path / "annotations/val.json", ["b.jpg"], root="../images")
    for name in ("c.jpg", "d.jpg"):
        write_image(tmp_path / "images" / name)
    register(tmp_path)
    (message,) = logged
    assert "2 image(s) are in no json" in message and "c.jpg, d.jpg" in message


@pytest.mark.parametrize("splits", [["train", "val"], ["all"]])
def test_keypoints_of_a_coco_json_are_in_the_metadata(tmp_path, register, splits):
    from detectron2.data import MetadataCatalog

    for split in splits:
        file = tmp_path / f"annotations/{split}.json"
        write_coco(file, [f"{split}_a.jpg", f"{split}_b.jpg"])
        content = json.loads(file.read_text())
        content["categories"][0].update(
            keypoints=["nose", "left_eye", "right_eye"], skeleton=[[1, 2], [2, 3], [3, 9], "x"]
        )
        file.write_text(json.dumps(content))
    data = register(tmp_path)
    for (name,) in (data.train, data.test):
        metadata = MetadataCatalog.get(name)
        assert metadata.keypoint_names == ["nose", "left_eye", "right_eye"]
        assert metadata.keypoint_flip_map == [("left_eye", "right_eye")]
        assert [rule[:2] for rule in metadata.keypoint_connection_rules] == [
            ("nose", "left_eye"),
            ("left_eye", "right_eye"),
        ]


def write_scene(path: Path, seed: int, size=(160, 128), **save) -> None:
    """A picture of random smooth patches, the same for one seed at each size."""
    import numpy as np

    patches = np.random.default_rng(seed).integers(0, 256, (8, 10, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(patches).resize(size, Image.Resampling.BICUBIC).save(path, **save)


def test_nearly_identical_images_are_found(tmp_path):
    from hypernet_d2.data.datasets.near_identical import find_near_identical

    write_scene(tmp_path / "a.png", 0)
    write_scene(tmp_path / "b.jpg", 0, (320, 256), quality=40)
    write_scene(tmp_path / "c.png", 1)
    for name in ("d.png", "e.png"):
        Image.new("RGB", (40, 30)).save(tmp_path / name)  # says nothing
    (tmp_path / "f.png").write_bytes(b"no image")
    files = [
        str(tmp_path / name) for name in ("c.png", "b.jpg", "a.png", "d.png", "e.png", "f.png")
    ]
    assert find_near_identical(files) == [0, 1, 1, 3, 4, 5]


def test_the_made_split_keeps_nearly_identical_images_together(tmp_path):
    from hypernet_d2.data.datasets.made_split import choose_validation

    letters = "abcdefghijklmnopqrst"
    for seed, letter in enumerate(letters):
        write_scene(tmp_path / f"{letter}.png", seed)
        write_scene(tmp_path / f"small {letters[-1 - seed]}.jpg", seed, (80, 64), quality=60)
    images = [str(path) for path in tmp_path.iterdir()]
    chosen = choose_validation(images)
    assert 6 <= len(chosen) <= 10
    names = {Path(path).name for path in chosen}
    for seed, letter in enumerate(letters):
        assert (f"{letter}.png" in names) == (f"small {letters[-1 - seed]}.jpg" in names)


def test_a_made_split_can_be_used_again(tmp_path, register, logged):
    from detectron2.data import MetadataCatalog

    from hypernet_d2.data import register_own_data

    write_coco(tmp_path / "set.json", [f"{name}.jpg" for name in "abcde"])
    split = {"train": ["a.jpg", "b.jpg", "c.jpg"], "val": ["d.jpg"]}
    data = register_own_data(tmp_path / "set.json", PREFIX, split)
    assert stems(data.test) == {"d"}
    assert stems(data.train) == {"a", "b", "c", "e"}
    assert MetadataCatalog.get(f"{PREFIX}_train").made_split["train"] == [
        f"{name}.jpg" for name in "abce"
    ]
    assert [m for m in logged if "1 image(s) are not in the split" in m and "e.jpg" in m]
    for wrong, message in (
        ({"train": ["a.jpg"], "val": ["x.jpg"]}, "not in the data: x.jpg"),
        ({"train": ["a.jpg"], "val": ["a.jpg"]}, "in train.txt and in val.txt.*a.jpg"),
    ):
        with pytest.raises(ValueError, match=message):
            register_own_data(tmp_path / "set.json", PREFIX, wrong)
