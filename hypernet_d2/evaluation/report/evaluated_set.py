"""A data set with ground truth and the detections of a model, as arrays.

Shapes: D detections, G objects.
"""

from __future__ import annotations

import contextlib
import copy
import io
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from pycocotools.coco import COCO

from hypernet_d2.data import load_dataset
from hypernet_d2.evaluation.coco import detections_file, ground_truth, max_detections
from hypernet_d2.utils.coco_json import join_first
from hypernet_d2.utils.files import similar_files

__all__ = ["EvaluatedSet", "find_detections", "make_evaluated_set", "read_evaluated_set"]


@dataclass(frozen=True)
class EvaluatedSet:
    """
    Attributes:
        name: of the data set.
        classes: names.
        images: dicts with ``id``, ``file_name``, ``height`` and ``width``.
        object_image: (G,), index in ``images``.
        object_labels: (G,), index in ``classes``.
        object_boxes: (G, 4), x0, y0, x1, y1 in pixels of the stored image.
        areas: (G,), in square pixels: of the segmentation, or of the box if there is none.
        crowd: (G,) bool, regions that are ignored.
        image_of, labels, boxes, scores: the same of the detections, (D,) and (D, 4). Best first,
            at most ``max_detections`` of a class in an image.
        max_detections: see above.
        truth, detected: both for pycocotools.
    """

    name: str
    classes: list[str]
    images: list[dict]
    object_image: np.ndarray
    object_labels: np.ndarray
    object_boxes: np.ndarray
    areas: np.ndarray
    crowd: np.ndarray
    image_of: np.ndarray
    labels: np.ndarray
    boxes: np.ndarray
    scores: np.ndarray
    max_detections: int
    truth: COCO
    detected: COCO

    @property
    def objects(self) -> np.ndarray:
        """(G,) bool, without crowds."""
        return ~self.crowd

    def count_objects(self, label: int) -> int:
        return int((self.objects & (self.object_labels == label)).sum())

    def of_class(self, label: int, ignored: np.ndarray) -> np.ndarray:
        """The indices of the detections of a class that are not ``ignored`` (D,)."""
        return np.flatnonzero((self.labels == label) & ~ignored)


def find_detections(output_dir: Path, dataset_name: str) -> Path:
    """The detections in a set that an evaluation has written.

    Raises:
        FileNotFoundError: there are none.
    """
    folder = output_dir / "inference"
    path = Path(detections_file(folder, dataset_name))
    stock = folder / "coco_instances_results.json"  # of detectron2 or an earlier version
    found = next((one for one in (path, stock) if one.is_file()), None)
    if found is None:
        raise FileNotFoundError(
            f"{path} is missing; an evaluation with MODEL.HYPERNET.EVALUATOR coco writes it: "
            f"hypernet-d2 eval ... OUTPUT_DIR {output_dir}{similar_files(path)}"
        )
    return found


def read_evaluated_set(output_dir: Path, dataset_name: str, cfg: CfgNode) -> EvaluatedSet:
    """The set and the detections that the evaluation has written.

    Args:
        output_dir: ``OUTPUT_DIR`` of a training or evaluation.
        dataset_name: of a registered set with ground truth.
        cfg: of the evaluation.

    Raises:
        FileNotFoundError: there are no detections.
        ValueError: they are those of another data set, or the set has no ground truth.
        KeyError: no set has the name.
    """
    path = find_detections(output_dir, dataset_name)
    records = load_dataset(dataset_name, evaluated=True)
    try:
        detections = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path}: expected the json of detections, but {error}") from error
    content, _ = ground_truth(dataset_name, records)
    if "annotations" not in content:
        raise ValueError(f"data set {dataset_name!r} has no ground truth to compare with")
    files = {record["image_id"]: str(record["file_name"]) for record in records}
    unknown = {one["image_id"] for one in detections} - files.keys()
    if unknown:
        raise ValueError(
            f"{path} has detections in {len(unknown)} images that data set {dataset_name!r} does "
            f"not have: {join_first(map(str, sorted(unknown, key=str)))}; evaluate the set again"
        )
    metadata = MetadataCatalog.get(dataset_name)
    limit = max_detections(cfg, records)
    return make_evaluated_set(
        dataset_name, list(metadata.thing_classes), content, detections, files, limit
    )


def make_evaluated_set(
    name: str,
    classes: list[str],
    content: dict,
    detections: list[dict],
    files: dict | None = None,
    max_detections: int = 100,
) -> EvaluatedSet:
    """
    Args:
        name: of the data set.
        classes: names, in the order of the category ids.
        content: the ground truth as COCO's json.
        detections: as COCO's json of results.
        files: {image id: path}, where ``file_name`` is not the path.
        max_detections: of a class in an image.
    """
    labels = {
        c["id"]: i for i, c in enumerate(sorted(content["categories"], key=lambda c: c["id"]))
    }
    images = sorted(content["images"], key=lambda image: image["id"])
    place = {image["id"]: i for i, image in enumerate(images)}
    files = files or {}
    objects = [one for one in content["annotations"] if one["image_id"] in place]
    kept = _best(detections, place, max_detections)
    truth = COCO()
    truth.dataset = {"info": {}, **content}
    detected = COCO()
    detected.dataset = {**truth.dataset, "annotations": []}
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        if kept:
            # pycocotools writes into the dicts.
            boxes_only = [
                {key: one[key] for key in ("image_id", "category_id", "bbox", "score")}
                for one in kept
            ]
            detected = truth.loadRes(copy.deepcopy(boxes_only))
        else:
            detected.createIndex()
    return EvaluatedSet(
        name=name,
        classes=classes,
        images=[{**one, "file_name": files.get(one["id"], one["file_name"])} for one in images],
        object_image=np.array([place[one["image_id"]] for one in objects], dtype=int),
        object_labels=np.array([labels[one["category_id"]] for one in objects], dtype=int),
        object_boxes=_boxes(objects),
        areas=np.array([one["area"] for one in objects], dtype=float),
        crowd=np.array([bool(one.get("iscrowd", 0)) for one in objects], dtype=bool),
        image_of=np.array([place[one["image_id"]] for one in kept], dtype=int),
        labels=np.array([labels[one["category_id"]] for one in kept], dtype=int),
        boxes=_boxes(kept),
        scores=np.array([one["score"] for one in kept], dtype=float),
        max_detections=max_detections,
        truth=truth,
        detected=detected,
    )


def _best(detections: list[dict], place: dict, most: int) -> list[dict]:
    """The detections, best first, at most ``most`` of a class in an image.

    Those with equal scores have the order of their images, ``place``, as in pycocotools.
    """
    counts: dict[tuple, int] = {}
    kept = []
    for one in sorted(detections, key=lambda one: (-one["score"], place[one["image_id"]])):
        key = one["image_id"], one["category_id"]
        counts[key] = counts.get(key, 0) + 1
        if counts[key] <= most:
            kept.append(one)
    return kept


def _boxes(entries: list[dict]) -> np.ndarray:
    xywh = np.array([one["bbox"] for one in entries], dtype=float).reshape(-1, 4)
    return np.hstack([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]])
