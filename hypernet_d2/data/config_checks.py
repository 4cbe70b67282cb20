"""Checks of a data set against the config: what its objects need for the heads that are trained."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.structures import BoxMode
from detectron2.utils.logger import log_first_n
from pycocotools import mask as coco_mask

from hypernet_d2.config import hypernet_node
from hypernet_d2.utils.coco_json import join_first, shorten
from hypernet_d2.utils.tiles import tile_boxes

from .parts import has_parts
from .tiles import input_size

__all__ = [
    "check_keypoint_settings",
    "check_keypoints",
    "check_masks",
    "warn_of_many_objects",
    "warn_of_unfit_windows",
]

_COCO_KEYPOINTS = 17


def check_masks(cfg: CfgNode, records: list[dict], name: str) -> None:
    """Check that every object has the mask, or the parts, that the mask head is trained on.

    Crowds, from which nothing is learnt, need none. Masks without a pixel, with which detectron2
    leaves the object out under ``INPUT.MASK_FORMAT`` "bitmask", are counted and logged once.

    Raises:
        ValueError: naming the images of objects without ``segmentation`` (or ``parts``), or with a
            run-length code under ``INPUT.MASK_FORMAT`` "polygon".
    """
    if not cfg.MODEL.MASK_ON:
        return
    key, what = ("parts", "part labels") if has_parts(cfg) else ("segmentation", "mask")
    objects = list(_objects(records))
    lacking = [record for record, one in objects if not one.get(key)]
    if lacking:
        raise ValueError(
            f"data set {name!r}: {len(lacking)} of {len(objects)} objects have no {what} "
            f"({key!r}), which MODEL.MASK_ON trains: {_first_files(lacking)}. Add them, remove the "
            "objects, mark them with iscrowd 1, or set MODEL.MASK_ON False"
        )
    if key == "parts":
        return
    if cfg.INPUT.MASK_FORMAT == "polygon":
        codes = [record for record, one in objects if isinstance(one[key], dict)]
        if codes:
            raise ValueError(
                f"data set {name!r}: {len(codes)} of {len(objects)} masks are run-length codes, "
                f"but INPUT.MASK_FORMAT is 'polygon'; expected 'bitmask': {_first_files(codes)}"
            )
        return
    empty = [record for record, one in objects if _is_empty(one[key])]
    if empty:
        _warn_once(
            f"data set {name!r}: {len(empty)} object(s) whose mask has no pixel are left out of "
            f"training (INPUT.MASK_FORMAT 'bitmask'): {_first_files(empty)}"
        )


def check_keypoint_settings(cfg: CfgNode) -> None:
    """Compare the number and the names of keypoints in the config and in the metadata of its sets.

    Raises:
        ValueError: a training set has no ``keypoint_names`` and ``keypoint_flip_map`` that fit each
            other, a set has other names than the first training set, or their number is not
            ``MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS``, or the ``TEST.KEYPOINT_OKS_SIGMAS`` are not
            as many.
    """
    if not cfg.MODEL.KEYPOINT_ON:
        return
    number = cfg.MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS
    first, first_names = None, None
    for name in cfg.DATASETS.TRAIN:
        metadata = MetadataCatalog.get(name)
        names, pairs = metadata.get("keypoint_names"), metadata.get("keypoint_flip_map")
        if names is None or pairs is None:
            raise ValueError(
                f"data set {name!r} has no keypoint_names or no keypoint_flip_map, which "
                f"MODEL.KEYPOINT_ON needs: MetadataCatalog.get({name!r}).set(keypoint_names=[...], "
                "keypoint_flip_map=[(left, right), ...])"
            )
        unknown = [side for pair in pairs for side in pair if side not in names]
        if unknown:
            raise ValueError(
                f"data set {name!r}: keypoint_flip_map names {unknown[0]!r}, which is none of the "
                f"keypoint_names {list(names)}"
            )
    for name in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST):
        names = MetadataCatalog.get(name).get("keypoint_names")
        if names is None:  # a test set is evaluated without names
            continue
        if len(names) != number:
            raise ValueError(
                f"MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS is {number}, but data set {name!r} has "
                f"{len(names)} keypoint_names: {list(names)}"
            )
        if first is None:
            first, first_names = name, list(names)
        if list(names) != first_names:
            raise ValueError(
                f"data sets {first!r} and {name!r} have different keypoint_names: {first_names} "
                f"and {list(names)}; expected the same names in the same order"
            )
    sigmas = len(cfg.TEST.KEYPOINT_OKS_SIGMAS) or _COCO_KEYPOINTS
    if cfg.DATASETS.TEST and sigmas != number:
        given = cfg.TEST.KEYPOINT_OKS_SIGMAS or f"empty, for COCO's {_COCO_KEYPOINTS}"
        raise ValueError(
            f"TEST.KEYPOINT_OKS_SIGMAS is {given}; expected {number} numbers, one for each of "
            "MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS"
        )


def check_keypoints(cfg: CfgNode, records: list[dict], name: str, *, train: bool) -> None:
    """Check the number of keypoints of each object, and complete objects without in training.

    In a set with keypoints, an object without gets zeros: keypoints that are not labeled, as in
    COCO's own annotations. Nothing is learnt from them.

    Raises:
        ValueError: naming the image of an object with another number of keypoints than
            ``MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS``, or a training set without keypoints.
    """
    if not cfg.MODEL.KEYPOINT_ON:
        return
    number = cfg.MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS
    lacking = []
    found = False
    for record, one in _objects(records):
        keypoints = one.get("keypoints")
        if keypoints is None or not len(keypoints):
            lacking.append(one)
            continue
        found = True
        if len(keypoints) != 3 * number:
            raise ValueError(
                f"data set {name!r}: {record['file_name']}: an object has {len(keypoints)} numbers "
                f"in keypoints ({shorten(keypoints)}), expected {3 * number}: x, y and visibility "
                f"of each of MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS {number}"
            )
    if not train:
        return
    if not found:
        raise ValueError(
            f"no object of data set {name!r} has keypoints, which MODEL.KEYPOINT_ON trains"
        )
    for one in lacking:
        one["keypoints"] = [0.0] * (3 * number)


def warn_of_unfit_windows(cfg: CfgNode, records: list[dict], names: tuple[str, ...]) -> None:
    """Warn if the candidate windows are too large or too small for most objects.

    The IoU of a window with an object is highest if both have the same center. An object that
    reaches ``MODEL.RPN.IOU_THRESHOLDS`` with no window even then is never a positive example for
    the proposals. Objects are measured in the network's input, at all ``INPUT.MIN_SIZE_TRAIN``.
    """
    if cfg.MODEL.PROPOSAL_GENERATOR.NAME != "HyperNetProposals":
        return
    sides = np.array(list(_sides_in_network_input(cfg, records)), dtype=float).reshape(-1, 2)
    if not len(sides):
        return
    windows = cfg.MODEL.HYPERNET.PROPOSALS
    best = np.zeros(len(sides))
    for size in windows.SIZES:
        for ratio in windows.ASPECT_RATIOS:
            shape = np.array([size / ratio**0.5, size * ratio**0.5])  # width, height
            shared = np.minimum(sides, shape).prod(axis=1)
            best = np.maximum(best, shared / (sides.prod(axis=1) + shape.prod() - shared))
    threshold = cfg.MODEL.RPN.IOU_THRESHOLDS[-1]
    share = float((best >= threshold).mean())
    if share < 0.5:
        _warn_once(
            f"{', '.join(names)}: only {share:.0%} of the objects have a window of IoU "
            f"{threshold:g} or more. The windows have sizes of {min(windows.SIZES):g} to "
            f"{max(windows.SIZES):g} pixels (MODEL.HYPERNET.PROPOSALS.SIZES), the objects a median "
            f"size of {np.median(sides.prod(axis=1) ** 0.5):.0f} pixels in the network's input. "
            "hypernet-d2 suggest-windows finds sizes that fit"
        )


def warn_of_many_objects(cfg: CfgNode, records: list[dict], name: str) -> None:
    """Warn if an image has more objects than the model can find at test time.

    The limits are ``TEST.DETECTIONS_PER_IMAGE`` and, for models that classify proposals,
    ``MODEL.RPN.POST_NMS_TOPK_TEST``. With ``MODEL.HYPERNET.TILES`` they hold for each tile, and an
    object counts in the tiles that its center lies in.
    """
    limits = {"TEST.DETECTIONS_PER_IMAGE": cfg.TEST.DETECTIONS_PER_IMAGE}
    if cfg.MODEL.META_ARCHITECTURE != "RetinaNet" and not cfg.MODEL.LOAD_PROPOSALS:
        limits["MODEL.RPN.POST_NMS_TOPK_TEST"] = cfg.MODEL.RPN.POST_NMS_TOPK_TEST
    tiles = hypernet_node(cfg).TILES
    numbers = np.array([_most_objects(record, tiles) for record in records], dtype=int)
    most = numbers.max(initial=0)
    reached = {key: limit for key, limit in limits.items() if 0 <= limit < most}
    if not reached:
        return
    file = os.path.basename(records[int(numbers.argmax())]["file_name"])
    count = int((numbers > min(reached.values())).sum())
    where = "a tile" if tiles.SIZE else "an image"
    _warn_once(
        f"data set {name!r}: up to {most} objects in {where} ({file}), but "
        f"{' and '.join(f'{key} is {limit}' for key, limit in reached.items())}: in {count} of "
        f"{len(records)} images some objects cannot be found; expected {most} or more"
    )


def _most_objects(record: dict, tiles: CfgNode) -> int:
    """The number of objects of an image, or of its tile with the most."""
    objects = [one for _, one in _objects([record])]
    if not tiles.SIZE or not objects:
        return len(objects)
    boxes = [BoxMode.convert(one["bbox"], one["bbox_mode"], BoxMode.XYXY_ABS) for one in objects]
    corners = np.array(boxes, dtype=float).reshape(-1, 2, 2)
    centers = corners.mean(axis=1)
    size = record["height"], record["width"]
    return max(
        int(((centers >= tile[:2]) & (centers < tile[2:])).all(axis=1).sum())
        for tile in tile_boxes(size, tiles.SIZE, tiles.OVERLAP)
    )


def _sides_in_network_input(cfg: CfgNode, records: list[dict]) -> Iterator[tuple[float, float]]:
    """(width, height) of each object, at each training size that the config lists."""
    for record in records:
        short, long = sorted(input_size(record))
        scales = [
            min(side / short, cfg.INPUT.MAX_SIZE_TRAIN / long) if side else 1.0
            for side in cfg.INPUT.MIN_SIZE_TRAIN
        ]
        for one in record.get("annotations", ()):
            if one.get("iscrowd", 0) or one["bbox_mode"] == BoxMode.XYWHA_ABS:
                continue
            x0, y0, x1, y1 = BoxMode.convert(one["bbox"], one["bbox_mode"], BoxMode.XYXY_ABS)
            for scale in scales:
                yield (x1 - x0) * scale, (y1 - y0) * scale


def _objects(records: list[dict]) -> Iterator[tuple[dict, dict]]:
    """(record, annotation) of each object that is no crowd."""
    for record in records:
        for one in record.get("annotations", ()):
            if not one.get("iscrowd", 0):
                yield record, one


def _is_empty(segmentation: list | dict) -> bool:
    """Whether a run-length code has no pixel, or no polygon an area."""
    if isinstance(segmentation, dict):
        if isinstance(segmentation["counts"], list):
            return not any(segmentation["counts"][1::2])
        return coco_mask.area(segmentation) == 0
    for polygon in segmentation:
        x, y = np.asarray(polygon, dtype=float).reshape(-1, 2).T
        if abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1))) > 1e-6:
            return False
    return True


def _first_files(records: list[dict]) -> str:
    return join_first(os.path.basename(record["file_name"]) for record in records)


def _warn_once(message: str) -> None:
    log_first_n(logging.WARNING, message, name=__name__, key="message")
