"""The records that the loaders get, and what stops them before a model is built."""

from __future__ import annotations

import logging

import pytest

from tests.helpers import logged_by, tiny_cfg, write_voc

pytestmark = pytest.mark.detectron2


@pytest.fixture
def register(tmp_path):
    """A function that registers (name, change of the records) with three images of write_voc."""
    from detectron2.data import DatasetCatalog, MetadataCatalog

    from hypernet_d2.data import load_voc_style

    write_voc(tmp_path / "voc", count=3)
    names = []

    def call(name: str, change=lambda records: records, classes=("square", "bar"), **metadata):
        DatasetCatalog.register(
            name, lambda: change(load_voc_style(tmp_path / "voc", "all", ["square", "bar"]))
        )
        MetadataCatalog.get(name).set(thing_classes=list(classes), **metadata)
        names.append(name)
        return name

    yield call
    for name in names:
        DatasetCatalog.pop(name)
        MetadataCatalog.pop(name)


def training_records(*names, opts=()):
    from hypernet_d2.data.build import get_training_records

    return get_training_records(tiny_cfg("DATASETS.TRAIN", names, *opts))


def without_objects(records):
    return [{**record, "annotations": []} for record in records]


def with_hidden_keypoints(records):
    for record in records:
        for one in record["annotations"]:
            one["keypoints"] = [4.0, 4.0, 0]
    return records


def test_images_without_objects_are_left_out(register):
    name = register("a", lambda records: [*records[:1], *without_objects(records[1:])])
    records = training_records(name)
    assert [len(record["annotations"]) for record in records] == [2]
    keep = ("DATALOADER.FILTER_EMPTY_ANNOTATIONS", False)
    assert len(training_records(name, opts=keep)) == 3


def test_each_cause_of_an_empty_set_is_told_apart(register):
    empty = register("empty", without_objects)
    with pytest.raises(ValueError, match="no image of empty has an object.*FILTER_EMPTY"):
        training_records(empty)
    keypoints = ("MODEL.KEYPOINT_ON", True, "MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS", 1,
                 "MODEL.ROI_KEYPOINT_HEAD.MIN_KEYPOINTS_PER_IMAGE", 1)  # fmt: skip
    hidden = register("hidden", with_hidden_keypoints)
    with pytest.raises(ValueError, match="no image of hidden has 1 visible keypoints"):
        training_records(hidden, opts=keypoints)
    unlabeled = register(
        "unlabeled", lambda records: [{"file_name": record["file_name"]} for record in records]
    )
    with pytest.raises(ValueError, match="'unlabeled' has no annotations to train on"):
        training_records(unlabeled)
    with pytest.raises(ValueError, match="DATASETS.TRAIN is empty"):
        training_records()
    with pytest.raises(
        KeyError, match="'bccd_trian' .DATASETS.TRAIN.; .*did you mean 'bccd_train'"
    ):
        training_records("bccd_trian")
    with pytest.raises(KeyError, match="no data set is called 'nowhere' .*--data PATH"):
        training_records("nowhere")


def test_sets_of_other_classes_are_not_trained_on_together(register):
    one, other = register("one"), register("other", classes=("bar", "square"))
    with pytest.raises(ValueError, match=r"'one' and 'other'.*\['square', 'bar'\].*\['bar', 'squ"):
        training_records(one, other)


def test_proposal_files_are_as_many_as_the_sets(register):
    with pytest.raises(ValueError, match="PROPOSAL_FILES_TRAIN has 0 files for .'a'."):
        training_records(register("a"), opts=("MODEL.LOAD_PROPOSALS", True))


def test_a_sampler_that_reads_unchecked_data_is_refused(register):
    from hypernet_d2.data.loader import build_train_loader

    name = register("a")
    cfg = tiny_cfg("DATASETS.TRAIN", (name,), "DATALOADER.SAMPLER_TRAIN", "WeightedTrainingSampler")
    with pytest.raises(ValueError, match="SAMPLER_TRAIN is 'WeightedTrainingSampler', expected"):
        build_train_loader(cfg, dict)


MANY = ("TEST.DETECTIONS_PER_IMAGE", 5, "MODEL.RPN.POST_NMS_TOPK_TEST", 3)


def repeated(records):
    """Six objects in the first image, three in the second, none in the others."""
    numbers = [6, 3, *[0] * len(records)]
    for record, number in zip(records, numbers, strict=False):
        one = record["annotations"][0]
        boxes = [[10 * i, 10 * i, 10 * i + 8, 10 * i + 8] for i in range(number)]
        record["annotations"] = [{**one, "bbox": box} for box in boxes]
        record["annotations"].append({**one, "iscrowd": 1})
    return records


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (MANY, ": up to 6 objects in an image (000.jpg), but TEST.DETECTIONS_PER_IMAGE is 5 "
               "and MODEL.RPN.POST_NMS_TOPK_TEST is 3: in 1 of 3 images some objects cannot be "
               "found; expected 6 or more"),
        (("TEST.DETECTIONS_PER_IMAGE", -1, "MODEL.RPN.POST_NMS_TOPK_TEST", 2),
         "but MODEL.RPN.POST_NMS_TOPK_TEST is 2: in 2 of 3 images"),
        (("TEST.DETECTIONS_PER_IMAGE", 6, "MODEL.RPN.POST_NMS_TOPK_TEST", 6), None),
        ((*MANY, "MODEL.META_ARCHITECTURE", "RetinaNet"), "but TEST.DETECTIONS_PER_IMAGE is 5: "),
        # The objects lie along the diagonal.
        ((*MANY, "MODEL.HYPERNET.TILES.SIZE", 44, "MODEL.HYPERNET.TILES.OVERLAP", 24),
         "up to 4 objects in a tile (000.jpg), but MODEL.RPN.POST_NMS_TOPK_TEST is 3"),
    ],
)  # fmt: skip
def test_more_objects_than_can_be_found_are_told_with_the_numbers(request, register, opts, message):
    from hypernet_d2.data.build import get_test_records, get_training_records

    name = register(request.node.name, repeated)  # each message is logged once in a process
    cfg = tiny_cfg("DATASETS.TRAIN", (name,), "DATASETS.TEST", (name,), *opts)
    with logged_by("hypernet_d2.data.config_checks", logging.WARNING) as messages:
        get_test_records(cfg, name)
        get_training_records(cfg)
    found = [text for text in messages if "cannot be found" in text]
    assert len(found) == (message is not None)
    assert message is None or message in found[0]
