"""The records that the loaders get: checked, with proposals, without images that are left out.

In place of detectron2's ``get_detection_dataset_dicts``, which reads unchecked data and unpickles
proposal files.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.data.build import (
    filter_images_with_few_keypoints,
    filter_images_with_only_crowd_annotations,
    print_instances_class_histogram,
)
from torch.utils import data

from hypernet_d2.config import hypernet_node

from .config_checks import check_keypoints, check_masks, warn_of_many_objects, warn_of_unfit_windows
from .image_files import check_image_sizes
from .load import check_registered, load_dataset
from .proposals import add_proposals
from .tiles import training_tiles

__all__ = ["get_test_records", "get_training_records"]


def get_training_records(cfg: CfgNode) -> list[dict] | data.Dataset:
    """The records of ``DATASETS.TRAIN``.

    Images without objects are left out under ``DATALOADER.FILTER_EMPTY_ANNOTATIONS``, and with
    keypoints those with fewer than ``MODEL.ROI_KEYPOINT_HEAD.MIN_KEYPOINTS_PER_IMAGE``. With
    ``MODEL.HYPERNET.TILES.TRAIN_SIZE`` the records are those of tiles, see `training_tiles`.

    Returns:
        The records of all sets in one list, or the torch data set if one is registered.

    Raises:
        ValueError, FileNotFoundError: see `load_dataset`, `add_proposals` and `config_checks`; no
            image is left.
    """
    names = _check_names(cfg.DATASETS.TRAIN, "DATASETS.TRAIN")
    sets = [load_dataset(name) for name in names]
    if isinstance(sets[0], data.Dataset):
        if hypernet_node(cfg).TILES.TRAIN_SIZE:
            raise ValueError(
                f"data set {names[0]!r} is a torch data set, which cannot be cut into tiles; "
                "expected a list of dicts, or MODEL.HYPERNET.TILES.TRAIN_SIZE 0"
            )
        return sets[0] if len(sets) == 1 else data.ConcatDataset(sets)
    for name, records in zip(names, sets, strict=True):
        if not any("annotations" in record for record in records):
            raise ValueError(f"data set {name!r} has no annotations to train on (DATASETS.TRAIN)")
        check_masks(cfg, records, name)
        check_keypoints(cfg, records, name, train=True)
        warn_of_many_objects(cfg, records, name)
    _check_same_classes(names)
    if cfg.MODEL.LOAD_PROPOSALS:
        _add_proposals(sets, cfg.DATASETS.PROPOSAL_FILES_TRAIN, names, "TRAIN")
    sets = _leave_out_images(cfg, sets, names)
    sets = [training_tiles(cfg, one, name) for one, name in zip(sets, names, strict=True)]
    records = list(itertools.chain.from_iterable(sets))
    classes = MetadataCatalog.get(names[0]).get("thing_classes")
    warn_of_unfit_windows(cfg, records, names)
    if classes is not None:
        print_instances_class_histogram(records, classes)  # to the log
    return records


def get_test_records(cfg: CfgNode, name: str) -> list[dict] | data.Dataset:
    """The records of a test set, with proposals where the config loads them.

    Raises:
        ValueError, FileNotFoundError: see `load_dataset`, `add_proposals` and `config_checks`; the
            set has no image, or images of another size than stated.
    """
    (name,) = _check_names([name], "DATASETS.TEST")
    records = load_dataset(name)
    if isinstance(records, list):
        if not records:
            raise ValueError(f"data set {name!r} has no image")
        check_image_sizes(records, name)
        check_keypoints(cfg, records, name, train=False)
        warn_of_many_objects(cfg, records, name)
        if cfg.MODEL.LOAD_PROPOSALS:
            files = dict(zip(cfg.DATASETS.TEST, cfg.DATASETS.PROPOSAL_FILES_TEST, strict=False))
            _add_proposals([records], [files[name]] if name in files else [], [name], "TEST")
    return records


def _check_names(names: Sequence[str], key: str) -> Sequence[str]:
    if not names:
        raise ValueError(f"{key} is empty; expected the name of a registered data set")
    for name in names:
        check_registered(name, key)
    return names


def _check_same_classes(names: Sequence[str]) -> None:
    lists = [MetadataCatalog.get(name).get("thing_classes") for name in names]
    for name, classes in zip(names, lists, strict=True):
        if classes != lists[0]:
            raise ValueError(
                f"data sets {names[0]!r} and {name!r} cannot be trained on together: their classes "
                f"are {lists[0]} and {classes}; expected the same names in the same order"
            )


def _add_proposals(
    sets: list[list[dict]], files: Sequence[str], names: Sequence[str], split: str
) -> None:
    if len(files) != len(names):
        raise ValueError(
            f"DATASETS.PROPOSAL_FILES_{split} has {len(files)} files for {list(names)}; expected "
            "one for each data set, since MODEL.LOAD_PROPOSALS is True"
        )
    for records, file in zip(sets, files, strict=True):
        add_proposals(records, file)


def _leave_out_images(
    cfg: CfgNode, sets: list[list[dict]], names: Sequence[str]
) -> list[list[dict]]:
    """The records of each set that there is something to learn from."""
    if cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS:
        sets = [filter_images_with_only_crowd_annotations(records) for records in sets]
        if not any(sets):
            raise ValueError(
                f"no image of {', '.join(names)} has an object, and images without objects are "
                "left out of training (DATALOADER.FILTER_EMPTY_ANNOTATIONS)"
            )
    least = cfg.MODEL.ROI_KEYPOINT_HEAD.MIN_KEYPOINTS_PER_IMAGE if cfg.MODEL.KEYPOINT_ON else 0
    if least > 0:
        sets = [filter_images_with_few_keypoints(records, least) for records in sets]
        if not any(sets):
            raise ValueError(
                f"no image of {', '.join(names)} has {least} visible keypoints "
                "(MODEL.ROI_KEYPOINT_HEAD.MIN_KEYPOINTS_PER_IMAGE)"
            )
    return sets
