"""Part labels: their two formats, and their way through the augmentations."""

import numpy as np
import pytest
from PIL import Image

pytestmark = pytest.mark.detectron2

H, W = 24, 40


def encode(mask: np.ndarray) -> dict:
    from pycocotools import mask as coco_mask

    return coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))


def labels_of(box: tuple[int, int, int, int]) -> np.ndarray:
    """(H, W): in a box x1, y1, x2, y2 the left half is part 0 and the right half part 1."""
    x1, y1, x2, y2 = box
    labels = np.zeros((H, W), np.uint8)
    labels[y1:y2, x1:x2] = 1
    labels[y1:y2, (x1 + x2) // 2 : x2] = 2
    return labels


def annotation(box: tuple[int, int, int, int], **fields) -> dict:
    from detectron2.structures import BoxMode

    labels = labels_of(box)
    return {
        "bbox": list(box),
        "bbox_mode": BoxMode.XYXY_ABS,
        "category_id": 0,
        "parts": [encode(labels == 1), encode(labels == 2)],
        **fields,
    }


@pytest.fixture
def record(tmp_path) -> dict:
    """A dataset dict of an image with two objects and a crowd."""
    path = tmp_path / "image.png"
    Image.fromarray(np.zeros((H, W, 3), np.uint8)).save(path)
    boxes = (2, 3, 12, 13), (20, 4, 30, 24), (0, 0, 9, 9)
    annotations = [annotation(box) for box in boxes]
    annotations[2] |= {"iscrowd": 1, "parts": None}
    return {"file_name": str(path), "height": H, "width": W, "annotations": annotations}


def mapper(*augmentations, hflip_labels=None):
    from hypernet_d2.data import PartDatasetMapper

    return PartDatasetMapper(
        is_train=True,
        num_parts=2,
        hflip_labels=hflip_labels,
        augmentations=list(augmentations),
        image_format="BGR",
    )


def test_both_formats_give_the_same_labels(tmp_path):
    from hypernet_d2.data import load_part_labels

    labels = labels_of((2, 3, 12, 13))
    path = tmp_path / "labels.png"
    Image.fromarray(labels).save(path)
    rles = [encode(labels == 1), encode(labels == 2)]
    for parts in (str(path), rles):
        found = load_part_labels(parts, (H, W), 2, "image.png")
        assert found.dtype == np.uint8 and np.array_equal(found, labels)
    assert np.array_equal(
        load_part_labels([None, rles[1]], (H, W), 2, "image.png"), labels * (labels == 2)
    )
    whole = [encode(labels == 1), encode(labels > 0)]
    assert np.array_equal(load_part_labels(whole, (H, W), 2, "image.png"), 2 * (labels > 0))


@pytest.mark.parametrize(
    "size, num_parts, words",
    [
        ((H, W + 1), 2, rf"labels.png: part labels have the shape \({H}, {W}\); expected the im"),
        ((H, W), 1, r"labels.png: part labels run from 0 to 2; expected 0 to 1"),
    ],
)
def test_a_label_image_that_does_not_fit_is_named(tmp_path, size, num_parts, words):
    from hypernet_d2.data import load_part_labels

    Image.fromarray(labels_of((2, 3, 12, 13))).save(tmp_path / "labels.png")
    with pytest.raises(ValueError, match=words):
        load_part_labels(str(tmp_path / "labels.png"), size, num_parts, "image.png")


def test_what_cannot_be_read_is_named(tmp_path):
    from hypernet_d2.data import load_part_labels

    rle = encode(labels_of((2, 3, 12, 13)) > 0)
    for parts, words in [
        (str(tmp_path / "none.png"), "none.png: cannot be read as an image of part labels"),
        ([rle], r"image.png: an object's parts are .*expected .* a list of 2 RLEs"),
        ([None, None], "image.png: an object's parts are"),
        (None, "image.png: an object's parts are 'None'"),
        ([rle, encode(np.ones((3, 3)))], r"image.png: .*several sizes: \[\(3, 3\), \(24, 40\)\]"),
    ]:
        with pytest.raises(ValueError, match=words):
            load_part_labels(parts, (H, W), 2, "image.png")


def test_labels_go_through_the_augmentations(record):
    from detectron2.data import transforms as T

    instances = mapper(T.Resize((2 * H, 2 * W)))(record)["instances"]
    assert instances.gt_parts.shape == (2, 2 * H, 2 * W)
    for found, box in zip(instances.gt_parts, ((2, 3, 12, 13), (20, 4, 30, 24)), strict=True):
        assert np.array_equal(found.numpy(), labels_of(box).repeat(2, 0).repeat(2, 1))
    assert not instances.has("gt_masks")


def test_an_object_outside_of_a_crop_takes_its_labels_with_it(record):
    from detectron2.data import transforms as T

    class RightHalf(T.Augmentation):
        def get_transform(self, image):
            return T.CropTransform(16, 0, W - 16, H, W, H)

    instances = mapper(RightHalf())(record)["instances"]
    assert instances.gt_boxes.tensor.tolist() == [[4, 4, 14, 24]]
    assert np.array_equal(instances.gt_parts[0].numpy(), labels_of((20, 4, 30, 24))[:, 16:])


@pytest.mark.parametrize("hflip_labels, left", [(None, 2), ([0, 2, 1], 1)])
def test_parts_with_a_side_are_exchanged_in_a_mirrored_image(record, hflip_labels, left):
    from detectron2.data import transforms as T

    instances = mapper(T.RandomFlip(prob=1.0), hflip_labels=hflip_labels)(record)["instances"]
    assert int(instances.gt_parts[0, 5, W - 12]) == left
    assert int(instances.gt_parts[0, 5, W - 3]) == 3 - left


def test_an_image_without_objects_has_no_labels(record):
    instances = mapper()({**record, "annotations": record["annotations"][2:]})["instances"]
    assert len(instances) == 0 and instances.gt_parts.shape == (0, H, W)


def test_an_object_without_parts_is_named(record):
    del record["annotations"][0]["parts"]
    with pytest.raises(ValueError, match=r"image.png: an object has no parts, only \['bbox'"):
        mapper()(record)


class TestFromConfig:
    """What the mapper takes from the config and the metadata."""

    @pytest.fixture
    def cfg(self):
        from hypernet_d2 import model_zoo

        return model_zoo.get_config("Digits-Parts/hypercolumn_R_18.yaml")

    @pytest.fixture
    def sided(self):
        from detectron2.data import MetadataCatalog

        MetadataCatalog.get("test_sided_parts").set(
            part_names=["left arm", "head", "right arm"],
            part_flip_map=[("left arm", "right arm")],
        )
        yield "test_sided_parts"
        MetadataCatalog.remove("test_sided_parts")

    def test_the_flip_map_is_that_of_the_metadata(self, cfg, sided):
        from hypernet_d2.data import PartDatasetMapper

        assert PartDatasetMapper(cfg, True).hflip_labels is None
        cfg.DATASETS.TRAIN = (sided,)
        assert PartDatasetMapper(cfg, True).hflip_labels.tolist() == [0, 3, 2, 1]

    def test_another_number_of_parts_is_named(self, cfg):
        from hypernet_d2.data import PartDatasetMapper

        cfg.MODEL.HYPERNET.HYPERCOLUMN.NUM_PARTS = 4
        with pytest.raises(
            ValueError, match="NUM_PARTS is 4, but 'digits_train' has the parts .*up"
        ):
            PartDatasetMapper(cfg, True)


def test_objects_without_part_labels_are_named_before_training(tmp_path):
    from hypernet_d2.data.config_checks import check_masks
    from hypernet_d2.model_zoo import get_config

    cfg = get_config("Digits-Parts/hypercolumn_R_18.yaml")
    whole = {"parts": str(tmp_path / "labels.png"), "iscrowd": 0}
    crowd = {"iscrowd": 1}
    good = [{"file_name": "a.png", "annotations": [whole, crowd]}]
    check_masks(cfg, good, "parts_set")
    with pytest.raises(
        ValueError, match=r"'parts_set': 1 of 2 objects have no part labels .*b\.pn"
    ):
        check_masks(cfg, [*good, {"file_name": "b.png", "annotations": [{}]}], "parts_set")
