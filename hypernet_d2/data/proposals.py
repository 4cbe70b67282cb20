"""Precomputed proposals, read without running code."""

from __future__ import annotations

import logging
import os

import numpy as np
from detectron2.structures import BoxMode
from detectron2.utils.file_io import PathManager

from hypernet_d2.utils import safe_pickle

__all__ = ["add_proposals"]

logger = logging.getLogger(__name__)

# Keys that Detectron, the predecessor of detectron2, wrote.
_OLD_KEYS = {"indexes": "ids", "scores": "objectness_logits"}


def add_proposals(records: list[dict], path: str | os.PathLike) -> list[dict]:
    """detectron2's ``load_proposals_into_dataset`` for files from anyone.

    The stock function unpickles the file, which may run code; here it must hold nothing but arrays,
    numbers and texts.

    Args:
        records: dataset dicts with ``image_id``; changed in place. They get ``proposal_boxes``
            (P, 4), ``proposal_objectness_logits`` (P,), best first, and ``proposal_bbox_mode``.
        path: a pickled dict with ``ids``, ``boxes``, ``objectness_logits`` (lists over the images)
            and ``bbox_mode``.

    Returns:
        The records.

    Raises:
        ValueError: naming the file: it is damaged, holds something else, or has no proposals for
            an image.
    """
    logger.info("Loading proposals from %s", path)
    with PathManager.open(str(path), "rb") as file:
        content = safe_pickle.load(file, encoding="latin1")
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected a dict of proposals, not {type(content).__name__}")
    content = {_OLD_KEYS.get(key, key): value for key, value in content.items()}
    missing = [key for key in ("ids", "boxes", "objectness_logits") if key not in content]
    if missing:
        raise ValueError(f"{path}: no {missing[0]!r}, expected precomputed proposals")
    # detectron2 compares ids as texts, since a file may hold numbers for a set with texts.
    index = {str(image_id): i for i, image_id in enumerate(content["ids"])}
    mode = BoxMode(content.get("bbox_mode", BoxMode.XYXY_ABS))
    for record in records:
        if str(record["image_id"]) not in index:
            raise ValueError(
                f"{path}: no proposals for image {record['image_id']!r}, {record['file_name']}"
            )
        i = index[str(record["image_id"])]
        logits = np.asarray(content["objectness_logits"][i])
        order = logits.argsort()[::-1]
        record["proposal_boxes"] = np.asarray(content["boxes"][i])[order]
        record["proposal_objectness_logits"] = logits[order]
        record["proposal_bbox_mode"] = mode
    return records
