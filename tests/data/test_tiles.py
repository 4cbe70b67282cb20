"""Training tiles: which there are, what they show, and what is refused."""

from __future__ import annotations

import itertools
import logging

import numpy as np
import pytest
from PIL import Image

from tests.helpers import logged_by, tiny_cfg

pytestmark = pytest.mark.detectron2

SIZE = (100, 180)  # tiles of 100 that overlap by 20: x from 0 to 100 and from 80 to 180
TILES = ("MODEL.HYPERNET.TILES.TRAIN_SIZE", 100, "MODEL.HYPERNET.TILES.OVERLAP", 20)
LEFT, RIGHT = (0, 0, 100, 100), (80, 0, 180, 100)


def one(x1, y1, x2, y2, **fields) -> dict:
    from detectron2.structures import BoxMode

    box = {"bbox": [x1, y1, x2 - x1, y2 - y1], "bbox_mode": BoxMode.XYWH_ABS}
    return {**box, "category_id": 0, **fields}


def image_record(file_name, *annotations) -> dict:
    return {
        "file_name": str(file_name), "height": SIZE[0], "width": SIZE[1],
        "annotations": list(annotations),
    }  # fmt: skip


@pytest.fixture
def picture(tmp_path):
    """(path, pixels) of a picture of noise."""
    pixels = np.random.default_rng(0).integers(0, 255, (*SIZE, 3), dtype=np.uint8)
    path = tmp_path / "picture.png"
    Image.fromarray(pixels).save(path)
    return path, pixels


def cut(records, min_visible=0.5, empty_share=0.0):
    from hypernet_d2.data.tiles import cut_records

    tiles, hidden = cut_records(records, 100, 20, min_visible, empty_share)
    return [(tile["tile"], [a["bbox"][0] for a in tile["annotations"]]) for tile in tiles], hidden


def test_an_object_belongs_to_the_tiles_that_show_enough_of_it():
    both, mostly_left, crowd = one(84, 0, 96, 9), one(60, 0, 90, 9), one(150, 0, 170, 9, iscrowd=1)
    record = image_record("a.png", both, mostly_left, crowd)
    assert cut([record]) == ([(LEFT, [84, 60]), (RIGHT, [84])], 0)
    assert cut([record], min_visible=0.3) == ([(LEFT, [84, 60]), (RIGHT, [84, 60])], 0)
    # The right tile, which shows a third of it, does not teach that this is background.
    assert cut([image_record("a.png", mostly_left)]) == ([(LEFT, [60])], 0)
    assert cut([image_record("a.png", one(40, 0, 140, 9))], min_visible=0.7) == ([], 1)


def test_tiles_without_objects_have_their_share():
    empty = [image_record(f"{i}.png") for i in range(10)]
    full = [image_record(f"full{i}.png", one(0, 0, 9, 9), one(170, 0, 179, 9)) for i in range(3)]
    for share, count in ((0, 0), (0.25, 2), (0.5, 6), (0.9, 20)):
        tiles, _ = cut([*full, *empty], empty_share=share)
        assert sum(not objects for _, objects in tiles) == count
        assert sum(bool(objects) for _, objects in tiles) == 6
    assert cut([*full, *empty], empty_share=0.5) == cut([*full, *empty], empty_share=0.5)


@pytest.mark.parametrize("mask_format", ["polygon", "bitmask"])
def test_a_tile_has_its_pixels_boxes_masks_and_keypoints(picture, mask_format):
    from hypernet_d2.data import NamedErrorDatasetMapper
    from hypernet_d2.data.tiles import cut_records

    if mask_format == "polygon":
        pytest.importorskip("shapely", reason="detectron2 cuts polygons with shapely")
    path, pixels = picture
    triangle = [[70.0, 20.0, 110.0, 20.0, 70.0, 60.0]]  # of which a triangle of 30 x 30 is right
    keypoints = [75.0, 25.0, 2, 100.0, 21.0, 2]
    record = image_record(path, one(70, 20, 110, 60, segmentation=triangle, keypoints=keypoints))
    (_, tile), _ = cut_records([record], 100, 20, 0.5, 0)
    cfg = tiny_cfg(
        "MODEL.MASK_ON", True, "INPUT.MASK_FORMAT", mask_format, "INPUT.FORMAT", "RGB", *TILES,
        "INPUT.MIN_SIZE_TRAIN", (0,), "INPUT.RANDOM_FLIP", "none",
    )  # fmt: skip
    mapper = NamedErrorDatasetMapper(cfg, True)
    mapper.use_keypoint = True  # by MODEL.KEYPOINT_ON, which needs a data set
    mapped = mapper(tile)
    assert np.array_equal(mapped["image"].numpy().transpose(1, 2, 0), pixels[:, 80:])
    found = mapped["instances"]
    assert found.image_size == (100, 100)
    np.testing.assert_allclose(found.gt_boxes.tensor, [[0, 20, 30, 50]], atol=1)
    masks = found.gt_masks
    area = masks.area() if mask_format == "polygon" else masks.tensor.sum()
    assert float(area) == pytest.approx(450, abs=20)
    assert found.gt_keypoints.tensor.tolist() == [[[0, 0, 0], [20, 21, 2]]]


@pytest.fixture
def registered(picture, catalog):
    """The name of a set of two pictures, one of them without objects."""
    from detectron2.data import DatasetCatalog, MetadataCatalog

    path, _ = picture
    records = [image_record(path, one(84, 0, 96, 9), one(4, 4, 20, 30)), image_record(path)]
    catalog.append("large")
    DatasetCatalog.register("large", lambda: records)
    MetadataCatalog.get("large").set(thing_classes=["thing"])
    return "large"


def config(name, *opts):
    return tiny_cfg(
        "DATASETS.TRAIN", (name,), "MODEL.ROI_HEADS.NUM_CLASSES", 1, "SEED", 3, *TILES,
        "DATALOADER.FILTER_EMPTY_ANNOTATIONS", False, *opts,
    )  # fmt: skip


def test_a_resumed_run_gets_the_tiles_of_an_uninterrupted_one(registered):
    from hypernet_d2.engine import Trainer

    cfg = config(registered, "MODEL.HYPERNET.TILES.TRAIN_EMPTY_SHARE", 0.5)

    def batches(start):
        loader = Trainer.build_train_loader(cfg)
        loader.batch_sampler.start = start
        return list(itertools.islice(loader, 6 - start))

    whole, resumed = batches(0), batches(3)
    assert {one["tile"] for batch in whole for one in batch} == {LEFT, RIGHT}
    for a, b in zip(whole[3:], resumed, strict=True):
        assert [x["tile"] for x in a] == [x["tile"] for x in b]
        assert all((x["image"] == y["image"]).all() for x, y in zip(a, b, strict=True))


def test_windows_are_compared_with_objects_in_resized_tiles(registered):
    from hypernet_d2.data.build import get_training_records

    sizes = ("MODEL.HYPERNET.PROPOSALS.SIZES", [100])
    with logged_by("hypernet_d2.data.config_checks", logging.WARNING) as messages:
        get_training_records(config(registered, *sizes))
    # Objects of 12 x 9, 12 x 9 and 16 x 26 pixels in tiles that are resized from 100 to 64.
    assert f"a median size of {(12 * 9) ** 0.5 * 0.64:.0f} pixels" in messages[-1]


def test_an_object_that_no_tile_shows_well_is_told(registered):
    from hypernet_d2.data.build import get_training_records

    opts = ("MODEL.HYPERNET.TILES.TRAIN_SIZE", 20, "MODEL.HYPERNET.TILES.OVERLAP", 4)
    with logged_by("hypernet_d2.data.tiles", logging.WARNING) as messages:
        records = get_training_records(
            config(registered, *opts, "MODEL.HYPERNET.TILES.TRAIN_MIN_VISIBLE", 0.9)
        )
    assert len(records) == 1
    assert "1 object(s) visible by less than 0.9 in each tile of 20 pixels are not" in messages[0]


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (("MODEL.HYPERNET.TILES.OVERLAP", 100), "TRAIN_SIZE 100 and OVERLAP 100: .*0 to 99"),
        (("MODEL.HYPERNET.TILES.TRAIN_SIZE", -5), "TRAIN_SIZE -5 and .*side is -5 pixels"),
        (("MODEL.HYPERNET.TILES.TRAIN_MIN_VISIBLE", 0.0), "TRAIN_MIN_VISIBLE is 0.0; expected"),
        (("MODEL.HYPERNET.TILES.TRAIN_EMPTY_SHARE", 1.0), "TRAIN_EMPTY_SHARE is 1.0; expected"),
        (("MODEL.LOAD_PROPOSALS", True), "TRAIN_SIZE is 100, but MODEL.LOAD_PROPOSALS True"),
    ],
)
def test_what_training_on_tiles_does_not_support_is_refused(registered, opts, message):
    from hypernet_d2.engine import Trainer

    with pytest.raises(ValueError, match=message):
        Trainer(config(registered, *opts))


def test_a_set_without_a_visible_object_and_a_torch_data_set_are_refused(registered, catalog):
    import torch
    from detectron2.data import DatasetCatalog

    from hypernet_d2.data.build import get_training_records
    from hypernet_d2.engine import train_alternating

    small = ("MODEL.HYPERNET.TILES.TRAIN_SIZE", 5, "MODEL.HYPERNET.TILES.OVERLAP", 0)
    with pytest.raises(ValueError, match="'large': no tile of 5 pixels has an object of which 0.5"):
        get_training_records(config(registered, *small))
    with pytest.raises(ValueError, match="alternating schedule trains on whole images"):
        train_alternating(config(registered), resume=False)
    catalog.append("map")
    DatasetCatalog.register("map", lambda: torch.utils.data.TensorDataset(torch.zeros(2)))
    with pytest.raises(ValueError, match="'map' is a torch data set, which cannot be cut"):
        get_training_records(config("map"))
