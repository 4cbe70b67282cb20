"""Augmentation by the keys of MODEL.HYPERNET.AUGMENT."""

from __future__ import annotations

import copy

import numpy as np
import pytest
from PIL import Image

from tests.helpers import tiny_cfg

pytestmark = pytest.mark.detectron2

NODE = "MODEL.HYPERNET.AUGMENT"
SIZE = (60, 100)  # height, width of the picture
BOX = (20, 10, 50, 30)
ALL = {"SCALE": [0.4, 2.5], "VERTICAL_FLIP": 0.5, "ROTATE_90": True, "BRIGHTNESS": 0.2,
       "CONTRAST": 0.2, "SATURATION": 0.2, "HUE": 0.1}  # fmt: skip


def options(**keys) -> list:
    return [word for key, value in keys.items() for word in (f"{NODE}.{key}", value)]


@pytest.fixture
def record(tmp_path) -> dict:
    """A gray picture with one white rectangle, its mask, and its corners as keypoints."""
    picture = np.full((*SIZE, 3), 60, np.uint8)
    x0, y0, x1, y1 = BOX
    picture[y0:y1, x0:x1] = 250
    Image.fromarray(picture).save(tmp_path / "a.png")
    corners = [x0, y0, x1, y0, x1, y1, x0, y1]
    keypoints = [v for x, y in zip(corners[::2], corners[1::2], strict=True) for v in (x, y, 2)]
    one = {"bbox": BOX, "bbox_mode": 0, "category_id": 0, "segmentation": [corners],
           "keypoints": keypoints}  # fmt: skip
    return {"file_name": str(tmp_path / "a.png"), "height": SIZE[0], "width": SIZE[1],
            "annotations": [one]}  # fmt: skip


def mapped(record: dict, *opts, count: int = 25) -> list[dict]:
    """What a training mapper makes of the record, with the random numbers 0, 1, ..."""
    from detectron2.data import MetadataCatalog

    from hypernet_d2.data import NamedErrorDatasetMapper

    cfg = tiny_cfg("INPUT.MIN_SIZE_TRAIN", (60,), "INPUT.RANDOM_FLIP", "none", "DATASETS.TRAIN",
                   ("augmented",), *opts)  # fmt: skip
    names = [str(i) for i in range(4)]
    MetadataCatalog.pop("augmented", None)
    MetadataCatalog.get("augmented").set(keypoint_names=names, keypoint_flip_map=[])
    mapper = NamedErrorDatasetMapper(cfg, True)
    results = []
    for i in range(count):
        np.random.seed(i)
        results.append(mapper(copy.deepcopy(record)))
    return results


def bright_box(image) -> list[int]:
    """x0, y0, x1, y1 of the white pixels of a (3, H, W) image; empty if there are none."""
    y, x = np.nonzero(image.numpy().mean(axis=0) > 150)
    return [x.min(), y.min(), x.max() + 1, y.max() + 1] if len(x) else []


@pytest.mark.parametrize("keys", [{}, {"VERTICAL_FLIP": 0.5}, {"ROTATE_90": True},
                                  {"SCALE": [0.4, 2.5]}, ALL], ids=str)  # fmt: skip
def test_boxes_masks_and_keypoints_follow_the_pixels(record, keys):
    opts = ("MODEL.MASK_ON", True, "INPUT.MASK_FORMAT", "bitmask", "MODEL.KEYPOINT_ON", True,
            "MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS", 4)  # fmt: skip
    sizes, pictures = set(), set()
    for result in mapped(record, *options(**keys), *opts):
        image, objects = result["image"], result["instances"]
        sizes.add(tuple(image.shape[1:]))
        pictures.add(image.numpy().tobytes())
        expected = bright_box(image)
        assert len(objects) == bool(expected)
        if not expected:
            continue
        box = objects.gt_boxes.tensor[0].numpy()
        assert box == pytest.approx(expected, abs=1.5)
        height, width = image.shape[1:]
        mask = np.nonzero(objects.gt_masks.tensor[0].numpy())
        assert mask[1].min() == pytest.approx(expected[0], abs=1.5)
        assert mask[0].max() + 1 == pytest.approx(expected[3], abs=1.5)
        points = objects.gt_keypoints.tensor[0].numpy()
        seen = points[points[:, 2] > 0]
        on_corner = np.isclose(seen[:, None, :2], box.reshape(2, 2), atol=2.5).any(axis=1)
        assert on_corner.all()
        inside = (0 < expected[0] and expected[2] < width, 0 < expected[1] and expected[3] < height)
        assert len(seen) == 4 or not all(inside)
    assert len(pictures) > 1 or not keys
    assert sizes <= {(60, 100), (100, 60)} or "SCALE" in keys
    assert all(min(size) <= 60 and max(size) <= 100 for size in sizes)


def test_each_color_key_changes_the_picture_and_no_box(record):
    picture = np.zeros((*SIZE, 3), np.uint8)
    picture[:] = np.random.default_rng(0).integers(80, 160, 3)
    picture[10:30, 20:50] = (200, 90, 40)
    Image.fromarray(picture).save(record["file_name"])
    (plain,) = mapped(record, count=1)
    for key in ("BRIGHTNESS", "CONTRAST", "SATURATION", "HUE"):
        images = mapped(record, *options(**{key: 0.3}), count=4)
        assert len({one["image"].numpy().tobytes() for one in images}) > 1
        for one in images:
            assert one["image"].dtype == plain["image"].dtype
            assert not (one["image"] == plain["image"]).all()
            assert one["instances"].gt_boxes.tensor.tolist() == [list(BOX)]


def test_larger_scales_are_cropped_to_the_size_without_and_all_parts_are_seen(record):
    corners = set()
    for result in mapped(record, *options(SCALE=[2.0, 2.0]), count=40):
        assert result["image"].shape[1:] == SIZE
        if len(result["instances"]):
            corners.add(tuple(result["instances"].gt_boxes.tensor[0].tolist()))
    x, y = zip(*[(box[0], box[1]) for box in corners], strict=True)
    assert abs(np.corrcoef(x, y)[0, 1]) < 0.9  # not along the diagonal only


def test_test_images_are_not_augmented(record):
    from hypernet_d2.data import NamedErrorDatasetMapper

    cfg = tiny_cfg("INPUT.MIN_SIZE_TEST", 60, *options(**ALL))
    mapper = NamedErrorDatasetMapper(cfg, False)
    assert bright_box(mapper(record)["image"]) == list(BOX)


def test_stock_crops_keep_records_without_boxes_and_crops_without_objects(record):
    empty = {**record, "annotations": []}
    crop = ("INPUT.CROP.ENABLED", True, "INPUT.CROP.SIZE", [0.3, 0.3])
    counts = set()
    for one in (empty, record):
        for result in mapped(one, *crop):
            boxes = result["instances"].gt_boxes.tensor
            assert boxes.shape[1] == 4 and (boxes[:, 2:] > boxes[:, :2]).all()
            counts.add(len(boxes))
    assert counts == {0, 1}


def test_a_crop_without_objects_has_no_masks_to_compute_boxes_from(record):
    masks = ("MODEL.MASK_ON", True, *options(SCALE=[2.0, 2.0]))
    for result in mapped({**record, "annotations": []}, *masks, count=2):
        assert len(result["instances"]) == 0


def test_objects_of_which_too_little_is_seen_are_left_out(record):
    shares = {0.0: set(), 0.9: set()}
    for least, found in shares.items():
        for result in mapped(record, *options(SCALE=[2.5, 2.5], MIN_VISIBLE=least), count=60):
            for box in result["instances"].gt_boxes:
                found.add(round(float((box[2:] - box[:2]).prod()) / (75 * 50), 2))
    assert min(shares[0.0]) < 0.5 and min(shares[0.9]) >= 0.89 and max(shares[0.9]) == 1


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (options(SCALE=[2.0]), r"AUGMENT.SCALE is \[2.0\]; expected \[\] or \[low, high\]"),
        (options(SCALE=[2.0, 1.0]), "expected .* 0 < low <= high"),
        (options(HUE=0.7), "AUGMENT.HUE is 0.7; expected 0 to 0.5"),
        (options(CONTRAST=-0.1), "AUGMENT.CONTRAST is -0.1; expected 0 to 1"),
        ([*options(SATURATION=0.1), "INPUT.FORMAT", "L"], "SATURATION is 0.1 and INPUT.FORMAT 'L'"),
        (["INPUT.CROP.ENABLED", True, "INPUT.CROP.SIZE", [300, 300]], "in .0, 1., absolute ones"),
        (["INPUT.CROP.ENABLED", True, "INPUT.CROP.TYPE", "square"], "CROP.TYPE is 'square'"),
        (["INPUT.RANDOM_FLIP", "both"], "RANDOM_FLIP is 'both'; .*VERTICAL_FLIP 0.5"),
    ],
)
def test_values_out_of_range_are_errors(opts, message):
    from hypernet_d2.data.augmentation import check_augmentation

    check_augmentation(tiny_cfg(*options(**ALL)))
    with pytest.raises(ValueError, match=message):
        check_augmentation(tiny_cfg(*opts))


@pytest.mark.parametrize("flip", [options(VERTICAL_FLIP=0.5), ["INPUT.RANDOM_FLIP", "vertical"]])
def test_left_and_right_keypoints_are_not_flipped_vertically(flip):
    from detectron2.data import MetadataCatalog

    from hypernet_d2.data.augmentation import check_augmentation

    MetadataCatalog.get("hands").set(keypoint_flip_map=[("left", "right")])
    opts = ("DATASETS.TRAIN", ("hands",), *flip)
    check_augmentation(tiny_cfg(*opts))
    with pytest.raises(ValueError, match="'hands' has left and right .keypoint_flip_map."):
        check_augmentation(tiny_cfg(*opts, "MODEL.KEYPOINT_ON", True))
    MetadataCatalog.pop("hands")
