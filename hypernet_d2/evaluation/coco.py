"""detectron2's COCOEvaluator with the current ground truth of sets in any format."""

from __future__ import annotations

import contextlib
import copy
import json
import logging
import os
from collections.abc import Iterable, Iterator

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets.coco import convert_to_coco_dict
from detectron2.evaluation import COCOEvaluator
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager
from detectron2.utils.logger import log_first_n

from hypernet_d2.checkpoint import OUTPUT_FILES
from hypernet_d2.config import hypernet_node
from hypernet_d2.data import load_dataset
from hypernet_d2.data.parts import has_parts
from hypernet_d2.utils.coco_json import join_first, read_coco_json, select_polygons
from hypernet_d2.utils.tiles import tile_boxes

from .size_classes import evaluate_boxes, quantile_sizes

__all__ = [
    "build_coco_evaluator",
    "detections_file",
    "ground_truth",
    "max_detections",
    "records_to_coco",
]

logger = logging.getLogger(__name__)

_COCO_LIMIT = 100  # detections of a class in an image

# What COCO's evaluation needs of each object for a task, and the key that trains its head.
_TASKS = {
    "segm": ("segmentation", "masks", "MODEL.MASK_ON"),
    "keypoints": ("keypoints", "keypoints", "MODEL.KEYPOINT_ON"),
}


def build_coco_evaluator(cfg: CfgNode, dataset_name: str, output_dir: str) -> COCOEvaluator:
    """The stock evaluator, with the ground truth that the set has at the time of the call.

    The stock one converts a set without a json once, and reuses the file in its output folder in
    later evaluations. Here the conversion, ``<set>_coco_format.json``, is written each time. It is
    also written for a json that lacks what COCO's evaluation needs.

    Args:
        cfg: of the model. ``TEST.DETECTIONS_PER_IMAGE`` above 100, and tiles, raise COCO's limit of
            100 detections, which is logged; ``MODEL.MASK_ON`` and ``MODEL.KEYPOINT_ON`` add their
            tasks if the set has such ground truth.
        dataset_name: a registered set. Each process has to call this.
        output_dir: for the conversion and the detections.

    Raises:
        ValueError, FileNotFoundError: see `load_dataset`; or the set has no ``thing_classes``, or
            masks of only some objects.
    """
    records = load_dataset(dataset_name, evaluated=True)
    metadata = MetadataCatalog.get(dataset_name)
    classes = metadata.get("thing_classes")
    if classes is None:
        raise ValueError(
            f"data set {dataset_name!r} has no class names; set them with "
            f"MetadataCatalog.get({dataset_name!r}).set(thing_classes=[...])"
        )
    content, path = ground_truth(dataset_name, records)
    cleaned = _remove_bad_polygons(content)
    tasks = _choose_tasks(cfg, content, dataset_name)
    completed = _complete(content, "keypoints" in tasks)
    if path is None or cleaned or completed:
        path = os.path.join(output_dir, f"{dataset_name}_coco_format.json")
        _write(content, path)
    values = {"thing_classes": classes, "json_file": path}
    if ids := metadata.get("thing_dataset_id_to_contiguous_id"):
        values["thing_dataset_id_to_contiguous_id"] = ids
    limit = max_detections(cfg, records)
    if limit != _COCO_LIMIT:
        log_first_n(
            logging.INFO,
            f"data set {dataset_name!r}: AP and AR count up to {limit} detections of a class in an "
            f"image, COCO's own {_COCO_LIMIT}",
            name=__name__,
            key="message",
        )
    with _temporary_metadata(f"{dataset_name}_ground_truth", values) as name:
        return SizeClassEvaluator(
            dataset_name,
            name,
            tasks,
            output_dir=output_dir,
            max_dets_per_image=limit,
            kpt_oks_sigmas=cfg.TEST.KEYPOINT_OKS_SIGMAS,
        )


class SizeClassEvaluator(COCOEvaluator):
    """The stock evaluator, with AP and recall of boxes by size classes of the set.

    Also writes the detections to the file of `detections_file`: the stock file has the same name
    for every set, so that it holds only those of the last one.

    Adds ``APsize-1of3`` and ``ARsize-1of3`` (the smallest third of the objects) to ``3of3``, see
    :func:`quantile_sizes`. The hyphen keeps them out of the line to copy that detectron2 prints.
    """

    def __init__(self, dataset_name: str, *args, **kwargs):
        """
        Args:
            dataset_name: of the set, for the file of the detections.
            args, kwargs: of COCOEvaluator.
        """
        super().__init__(*args, **kwargs)
        self.dataset_name = dataset_name

    def evaluate(self, img_ids=None):
        """As the stock method."""
        results = super().evaluate(img_ids)
        if "bbox" in (results or {}) and self._output_dir:
            stock = os.path.join(self._output_dir, "coco_instances_results.json")
            own = detections_file(self._output_dir, self.dataset_name)
            PathManager.copy(stock, own, overwrite=True)
        return results

    def _derive_coco_results(self, coco_eval, iou_type, class_names=None):
        results = super()._derive_coco_results(coco_eval, iou_type, class_names)
        if coco_eval is None or iou_type != "bbox":
            return results
        objects = self._coco_api.dataset["annotations"]
        sizes = quantile_sizes([one["area"] for one in objects if not one.get("iscrowd", 0)])
        by_size = evaluate_boxes(
            coco_eval.cocoGt, coco_eval.cocoDt, sizes, max(coco_eval.params.maxDets)
        )
        for name in sizes:
            results[f"APsize-{name}"], results[f"ARsize-{name}"] = (
                by_size[name].ap,
                by_size[name].ar,
            )
        bounds = [f"{low**0.5:.0f}" for low, _ in list(sizes.values())[1:]]
        logger.info(
            "AP by the size of the objects, in classes of equal number (bounds %s pixels): %s",
            ", ".join(bounds) or "none",
            ", ".join(f"{name} {by_size[name].ap:.2f}" for name in sizes),
        )
        return results


def detections_file(folder: str | os.PathLike, dataset_name: str) -> str:
    """The path of the detections in a set, as COCO's json of results, in ``inference``."""
    return os.path.join(folder, f"{dataset_name}_instances_results.json")


def max_detections(cfg: CfgNode, records: Iterable[dict] = ()) -> int:
    """The number of detections of a class in an image that are evaluated; at least COCO's 100.

    Otherwise it is ``TEST.DETECTIONS_PER_IMAGE``; with ``MODEL.HYPERNET.TILES``, where that limits
    each tile, times the number of tiles of the image with the most.
    """
    limit = cfg.TEST.DETECTIONS_PER_IMAGE
    if limit < 0:  # no limit: each proposal gives at most one detection of a class
        limit = cfg.MODEL.RPN.POST_NMS_TOPK_TEST
    tiles = hypernet_node(cfg).TILES
    if tiles.SIZE:
        sizes = {(record["height"], record["width"]) for record in records}
        numbers = (len(tile_boxes(size, tiles.SIZE, tiles.OVERLAP)) for size in sizes)
        limit *= max(numbers, default=1)
    return max(_COCO_LIMIT, limit)


def ground_truth(dataset_name: str, records: list[dict]) -> tuple[dict, str | None]:
    """The ground truth of a set as COCO's json, and the path of the json if the set has one.

    Args:
        dataset_name: of the set.
        records: from `load_dataset`.
    """
    metadata = MetadataCatalog.get(dataset_name)
    path = metadata.get("json_file") if metadata.get("evaluator_type") == "coco" else None
    if path is None:
        return records_to_coco(records, dataset_name), None
    path = PathManager.get_local_path(str(path))
    return read_coco_json(path, evaluated=True), path


def records_to_coco(records: list[dict], dataset_name: str) -> dict:
    """Dataset dicts as COCO's json, by detectron2's own conversion.

    Args:
        records: of the set, from `load_dataset`.
        dataset_name: whose metadata has the class names.
    """
    metadata = MetadataCatalog.get(dataset_name)
    values = {
        key: metadata.get(key)
        for key in ("thing_classes", "thing_dataset_id_to_contiguous_id")
        if metadata.get(key) is not None
    }
    with _temporary_metadata(f"{dataset_name}_records", values) as name:
        # The conversion reads a registered set, and changes the keypoints in place.
        DatasetCatalog.register(name, lambda: copy.deepcopy(records))
        try:
            content = convert_to_coco_dict(name)
        finally:
            DatasetCatalog.pop(name)
    if any("annotations" in record for record in records):
        content.setdefault("annotations", [])  # images without objects, not without ground truth
    return content


@contextlib.contextmanager
def _temporary_metadata(name: str, values: dict) -> Iterator[str]:
    # Not under the set's own name: the stock evaluator stores the path of its conversion in the
    # metadata, and later evaluations would take it for the set's json.
    MetadataCatalog.pop(name, None)
    MetadataCatalog.get(name).set(**values)
    try:
        yield name
    finally:
        MetadataCatalog.pop(name)


def _choose_tasks(cfg: CfgNode, content: dict, dataset_name: str) -> tuple[str, ...]:
    """The tasks that the model is trained for and the set has ground truth for."""
    wanted = []
    if cfg.MODEL.MASK_ON and not has_parts(cfg):
        wanted.append("segm")
    if cfg.MODEL.KEYPOINT_ON:
        wanted.append("keypoints")
    objects = content.get("annotations")
    if objects is None:  # images to detect in, without ground truth
        return ("bbox", *wanted)
    tasks = ["bbox"]
    for task in wanted:
        key, what, switch = _TASKS[task]
        lacking = [one for one in objects if not one.get(key)]
        if len(lacking) == len(objects):
            logger.warning(
                "data set %r has no %s (%s is True): their AP is not computed",
                dataset_name,
                what,
                switch,
            )
            continue
        if task == "segm" and lacking:
            ids = join_first(f"{one['id']} of image {one['image_id']!r}" for one in lacking)
            raise ValueError(
                f"data set {dataset_name!r}: {len(lacking)} of {len(objects)} annotations have no "
                f"'segmentation', which the AP of masks needs ({switch}): {ids}"
            )
        tasks.append(task)
    return tuple(tasks)


def _remove_bad_polygons(content: dict) -> bool:
    """Remove polygons of fewer than 3 points, which pycocotools takes for boxes; whether any."""
    found = False
    for one in content.get("annotations", ()):
        polygons = one.get("segmentation")
        if isinstance(polygons, list):
            one["segmentation"] = select_polygons(polygons)
            found |= len(one["segmentation"]) < len(polygons)
    return found


def _complete(content: dict, keypoints: bool) -> bool:
    """Add what COCO's evaluation needs; whether anything was missing.

    An object without keypoints gets zeros, which means that none is labeled, as in COCO's files.
    """
    changed = "info" not in content
    content.setdefault("info", {})  # which pycocotools 2.0.10 requires
    if keypoints:
        objects = content["annotations"]
        zeros = [0] * len(next(one["keypoints"] for one in objects if one.get("keypoints")))
        for one in objects:
            if not one.get("keypoints"):
                one["keypoints"], one["num_keypoints"] = list(zeros), 0
                changed = True
    return changed


def _write(content: dict, path: str) -> None:
    """Write the json in the main process; the others wait for it."""
    if comm.is_main_process():
        OUTPUT_FILES.mkdirs(os.path.dirname(path))
        with OUTPUT_FILES.open(path, "w") as file:
            json.dump(content, file)
    comm.synchronize()
