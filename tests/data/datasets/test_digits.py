"""The generated digits: exact annotations, the same on every platform, and a complete cache."""

import hashlib
import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from hypernet_d2.data.datasets import digits
from hypernet_d2.data.datasets.digits import generate, glyphs, scenes


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return digits.generate_digits(tmp_path_factory.mktemp("digits"), "train", num_images=8)


@pytest.fixture(scope="module")
def annotations(folder) -> dict[int, list[dict]]:
    """Annotations by image id, the masks and parts decoded to (240, 320) bool."""
    content = json.loads((folder / "annotations.json").read_text())
    by_image = {image["id"]: [] for image in content["images"]}
    for annotation in content["annotations"]:
        annotation["mask"] = coco_mask.decode(annotation["segmentation"]).astype(bool)
        annotation["parts"] = coco_mask.decode(annotation["parts"]).astype(bool).transpose(2, 0, 1)
        annotation["keypoints"] = np.reshape(annotation["keypoints"], (5, 3))
        by_image[annotation["image_id"]].append(annotation)
    return by_image


def test_scenes_are_as_the_json_says(folder):
    content = json.loads((folder / "annotations.json").read_text())
    assert len(content["images"]) == 8
    for image in content["images"]:
        with Image.open(folder / image["file_name"]) as scene:
            assert (scene.size, scene.mode) == ((320, 240), "RGB")
            assert (image["width"], image["height"]) == scene.size
    assert [c["name"] for c in content["categories"]] == list("0123456789")
    # detectron2 warns unless category ids are 1 to their number.
    assert [c["id"] for c in content["categories"]] == list(range(1, 11))


def test_boxes_and_areas_are_those_of_the_masks(annotations):
    for scene in annotations.values():
        assert scene
        for a in scene:
            ys, xs = np.nonzero(a["mask"])
            x, y, w, h = a["bbox"]
            assert (x, y, x + w, y + h) == (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)
            assert a["area"] == a["mask"].sum() > 0


def test_masks_of_a_scene_are_disjoint_and_parts_make_up_the_mask(annotations):
    for scene in annotations.values():
        assert np.sum([a["mask"] for a in scene], axis=0).max() == 1
        for a in scene:
            assert (a["parts"].sum(0) == a["mask"]).all()


def test_visible_ends_are_on_the_digit_and_hidden_keypoints_under_another(annotations):
    seen = set()
    for scene in annotations.values():
        for a in scene:
            others = np.any([b["mask"] for b in scene], axis=0) & ~a["mask"]
            for name, (x, y, visibility) in zip(digits.KEYPOINTS, a["keypoints"], strict=True):
                seen.add(visibility)
                if visibility == 1:
                    assert others[y, x]
                elif name != "center":
                    assert a["mask"][y, x]
            assert a["num_keypoints"] == 5
    assert seen == {1, 2}


def test_digits_differ_from_what_is_around_them(folder, annotations):
    from scipy.ndimage import binary_dilation

    content = json.loads((folder / "annotations.json").read_text())
    contrasts = []
    for image in content["images"]:
        luminance = np.array(Image.open(folder / image["file_name"]).convert("L")).astype(float)
        for a in annotations[image["id"]]:
            ring = binary_dilation(a["mask"], iterations=4) & ~binary_dilation(a["mask"])
            contrasts.append(np.median(abs(luminance[ring] - np.median(luminance[a["mask"]]))))
    assert np.median(contrasts) > 80
    assert min(contrasts) > 45


def test_sizes_vary_from_8_pixels_to_90():
    rng = np.random.default_rng(0)
    source = scenes.load_source("train")
    drawn = [scenes._draw_digit(source, rng, [], scenes.SCENE) for _ in range(200)]
    heights = [np.ptp(np.nonzero(d.mask)[0]) + 1 for d in drawn]
    assert min(heights) <= 9 and max(heights) >= 80
    assert 0.4 < np.mean([h < 32 for h in heights]) < 0.7
    assert {d.digit for d in drawn} == set(range(10))


@pytest.mark.parametrize("angle", [0, 30, -30])
def test_rendering_of_a_known_shape(angle):
    # An upright bar, 200 x 40 glyph pixels, rendered 50 pixels high, so 10 wide.
    glyph = np.zeros((320, 320), bool)
    glyph[60:260, 140:180] = True
    coverage, thirds, keypoints = glyphs.render(glyph, 50, angle)
    mask = coverage > 8
    cos, sin = np.cos(np.deg2rad(angle)), np.sin(np.deg2rad(angle))
    ys, xs = np.nonzero(mask)
    assert np.ptp(ys) + 1 == pytest.approx(50 * cos + 10 * abs(sin), abs=2)
    assert np.ptp(xs) + 1 == pytest.approx(10 * cos + 50 * abs(sin), abs=2)
    assert mask.sum() == pytest.approx(500, rel=0.02)
    center = np.array([coverage.shape[1], coverage.shape[0]]) / 2
    ends = {"top": (0, -25), "bottom": (0, 25), "left": (-5, 0), "right": (5, 0), "center": (0, 0)}
    for name, (x, y) in zip(digits.KEYPOINTS, keypoints, strict=True):
        u, v = ends[name]
        expected = center + (u * cos - v * sin, u * sin + v * cos)
        # Half a pixel of rounding, and the outermost 1/8 of a scan pixel counts as the end.
        assert np.abs(np.array([x, y]) + 0.5 - expected).max() < 1.6, name
    areas = [(mask & (thirds == part)).sum() for part in range(3)]
    assert areas == pytest.approx([500 / 3] * 3, rel=0.06)


def test_an_end_with_two_bumps_gives_one_of_them():
    glyph = np.zeros((320, 320), bool)
    glyph[200:260, 100:220] = True
    glyph[60:200, 100:120] = glyph[60:200, 190:220] = True
    u, v = glyphs.glyph_keypoints(glyph)[0]
    assert glyph[v, u] and v < 70 and 190 <= u < 220


def test_threshold_keeps_the_hole_of_a_zero_and_refuses_a_blot():
    ring = np.full((8, 8), 9)
    ring[2:6, 2:6] = 0
    filled_at_7 = np.full((8, 8), 16)
    filled_at_7[2:6, 2:6] = 8
    assert glyphs.choose_threshold(ring, 0) == 7
    assert glyphs.choose_threshold(filled_at_7, 0) == 8
    assert glyphs.choose_threshold(np.full((8, 8), 16), 0) == 0
    assert glyphs.choose_threshold(np.full((8, 8), 16), 1) == 7


def test_training_and_validation_share_no_scan_and_no_pixel():
    train, val = scenes.load_source("train"), scenes.load_source("val")
    for a, b in zip(train.scans, val.scans, strict=True):
        assert len(a) > 50 and len(b) > 10
        assert not {scan.tobytes() for scan in a} & {scan.tobytes() for scan in b}
    assert scenes.COLUMNS["train"][1] <= scenes.COLUMNS["val"][0]


def read_all(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_same_seed_same_bytes_and_fewer_scenes_are_the_first_of_more(tmp_path, folder):
    again = digits.generate_digits(tmp_path, "train", num_images=8)
    assert read_all(again) == read_all(folder)
    fewer = read_all(digits.generate_digits(tmp_path, "train", num_images=2))
    fewer.pop("annotations.json")
    assert len(fewer) == 2 and fewer.items() <= read_all(folder).items()


def test_another_seed_and_another_split_give_other_scenes(tmp_path, folder):
    first = (folder / "000000.png").read_bytes()
    other_seed = digits.generate_digits(tmp_path, "train", seed=1, num_images=1)
    val = digits.generate_digits(tmp_path, "val", num_images=1)
    assert (other_seed / "000000.png").read_bytes() != first
    assert (val / "000000.png").read_bytes() != first


def test_annotations_are_the_same_on_every_platform(folder):
    # If this fails because the scenes changed on purpose, increase VERSION in generate.py too.
    digest = hashlib.sha256((folder / "annotations.json").read_bytes()).hexdigest()
    assert (digits.VERSION, digest[:16]) == (2, "571db302ff6a960c")


def test_cache_is_used_and_a_new_version_makes_a_new_one(tmp_path, monkeypatch):
    made = digits.generate_digits(tmp_path, "val", num_images=1)
    (made / "000000.png").write_bytes(b"mine")
    assert digits.generate_digits(tmp_path, "val", num_images=1) == made
    assert (made / "000000.png").read_bytes() == b"mine"
    monkeypatch.setattr(generate, "VERSION", generate.VERSION + 1)
    assert digits.generate_digits(tmp_path, "val", num_images=1) != made


def test_interrupted_generation_leaves_nothing(tmp_path, monkeypatch):
    def interrupt(digits_of_scene):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(generate, "annotate", interrupt)
        with pytest.raises(KeyboardInterrupt):
            digits.generate_digits(tmp_path, "val", num_images=2)
    assert list(tmp_path.iterdir()) == []
    made = digits.generate_digits(tmp_path, "val", num_images=2)
    assert len(list(made.glob("*.png"))) == 2


def test_a_process_that_comes_second_takes_the_firsts_work(tmp_path, monkeypatch):
    write = generate._write_scenes

    def write_while_another_does(*args):
        monkeypatch.setattr(generate, "_write_scenes", write)
        digits.generate_digits(tmp_path, "val", num_images=2)
        write(*args)

    monkeypatch.setattr(generate, "_write_scenes", write_while_another_does)
    made = digits.generate_digits(tmp_path, "val", num_images=2)
    assert list(tmp_path.iterdir()) == [made]
    assert len(list(made.glob("*.png"))) == 2


def test_full_disk_is_an_error_and_leaves_nothing(tmp_path, monkeypatch):
    def fail(self, target):
        raise OSError("no space left on device")

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(OSError, match="no space"):
        digits.generate_digits(tmp_path, "val", num_images=1)
    assert list(tmp_path.iterdir()) == []


def test_unknown_split(tmp_path):
    with pytest.raises(ValueError, match=r"'test', expected one of \['train', 'val'\]"):
        digits.generate_digits(tmp_path, "test")


@pytest.mark.parametrize(
    "module, package", [("sklearn.datasets", "scikit-learn"), ("pycocotools", "pycocotools")]
)
def test_missing_package_is_named(tmp_path, monkeypatch, module, package):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=f"pip install {package}"):
        digits.generate_digits(tmp_path, "val", num_images=1)


def test_root_is_with_the_other_data_sets_or_in_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "sets"))
    in_cache = tmp_path / "cache" / "hypernet_d2" / "digits"
    assert digits.digits_root() == in_cache
    (tmp_path / "sets").mkdir()
    assert digits.digits_root() == tmp_path / "sets" / "digits"
    (tmp_path / "sets").chmod(0o555)
    assert digits.digits_root() == in_cache
    (tmp_path / "sets").chmod(0o755)
    holder = tmp_path / "sets" / "digits"
    made = digits.generate_digits(holder, "val", num_images=1)
    holder.chmod(0o555)
    assert digits.digits_root() == holder
    holder.chmod(0o755)
    made.rename(holder / "val-v0-seed0-n1")
    holder.chmod(0o555)
    assert digits.digits_root() == in_cache
    holder.chmod(0o755)


@pytest.fixture
def small_sets(tmp_path, monkeypatch):
    """``digits_train`` and ``digits_val`` of four scenes each, in a folder of their own."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    monkeypatch.setattr(generate, "SPLITS", {"train": 4, "val": 4})
    return tmp_path


@pytest.mark.detectron2
def test_registration_makes_nothing_and_may_be_repeated(small_sets):
    from detectron2.data import DatasetCatalog, MetadataCatalog

    from hypernet_d2.data.datasets import builtin

    before = {name: DatasetCatalog[name] for name in DatasetCatalog.list()}
    builtin.register_builtin()
    assert {name: DatasetCatalog[name] for name in DatasetCatalog.list()} == before
    assert {"digits_train", "digits_val", "bccd_train", "bccd_val", "bccd_test"} <= before.keys()
    assert MetadataCatalog.get("digits_val").thing_classes == list("0123456789")
    assert list(small_sets.iterdir()) == []


@pytest.mark.detectron2
def test_catalog_gives_boxes_masks_keypoints_and_parts(small_sets):
    from detectron2.data import DatasetCatalog, MetadataCatalog

    records = DatasetCatalog.get("digits_train")
    assert len(records) == 4
    metadata = MetadataCatalog.get("digits_train")
    assert Path(metadata.json_file).is_relative_to(small_sets)
    for record in records:
        assert os.path.isfile(record["file_name"])
        for a in record["annotations"]:
            assert 0 <= a["category_id"] < 10
            assert len(a["keypoints"]) == 3 * len(metadata.keypoint_names)
            assert len(a["parts"]) == len(metadata.part_names)


@pytest.mark.detectron2
def test_another_folder_counts_from_the_next_loading_on(small_sets, monkeypatch):
    from detectron2.data import DatasetCatalog, MetadataCatalog

    DatasetCatalog.get("digits_val")
    elsewhere = small_sets / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.setenv("DETECTRON2_DATASETS", str(elsewhere))
    records = DatasetCatalog.get("digits_val")
    assert Path(records[0]["file_name"]).is_relative_to(elsewhere)
    assert Path(MetadataCatalog.get("digits_val").json_file).is_relative_to(elsewhere)


@pytest.mark.detectron2
def test_stock_evaluator_finds_the_ground_truth_perfect(small_sets, perfect_outputs, tmp_path):
    from detectron2.data import DatasetCatalog
    from detectron2.evaluation import COCOEvaluator

    records = DatasetCatalog.get("digits_val")
    tasks = ["bbox", "segm", "keypoints"]
    evaluator = COCOEvaluator("digits_val", tasks, False, kpt_oks_sigmas=[0.05] * 5)
    evaluator.reset()
    for record in records:
        evaluator.process([record], [perfect_outputs(record)])
    results = evaluator.evaluate()
    for task in tasks:
        assert results[task]["AP"] == pytest.approx(100), task


@pytest.mark.detectron2
def test_stock_loader_flips_masks_and_swaps_left_and_right(small_sets):
    from detectron2.data import DatasetCatalog, build_detection_train_loader
    from detectron2.data import transforms as T
    from detectron2.data.detection_utils import create_keypoint_hflip_indices

    from hypernet_d2.data import NamedErrorDatasetMapper

    records = DatasetCatalog.get("digits_train")
    mapper = NamedErrorDatasetMapper(
        is_train=True,
        augmentations=[T.RandomFlip(prob=1.0)],
        image_format="BGR",
        use_instance_mask=True,
        instance_mask_format="bitmask",
        use_keypoint=True,
        keypoint_hflip_indices=create_keypoint_hflip_indices(["digits_train"]),
    )
    loader = build_detection_train_loader(records, mapper=mapper, total_batch_size=4, num_workers=0)
    batch = next(iter(loader))
    assert len(batch) == 4
    originals = {record["file_name"]: record["annotations"] for record in records}
    left, right = digits.KEYPOINTS.index("left"), digits.KEYPOINTS.index("right")
    for item in batch:
        instances, annotations = item["instances"], originals[item["file_name"]]
        assert len(instances) == len(annotations)
        for n, annotation in enumerate(annotations):
            x, y, w, h = annotation["bbox"]
            assert instances.gt_boxes.tensor[n].tolist() == [320 - x - w, y, 320 - x, y + h]
            mask = coco_mask.decode(annotation["segmentation"])[:, ::-1].astype(bool)
            assert (instances.gt_masks.tensor[n].numpy() == mask).all()
            before = np.reshape(annotation["keypoints"], (5, 3))
            after = instances.gt_keypoints.tensor[n].numpy()
            np.testing.assert_allclose(after[left], [320, 0, 0] + before[right] * [-1, 1, 1])
