"""Evaluation of part labels within detections: AP^r_part and mean IoU.

Shapes: ``n`` detections and ``g`` objects of an image of ``H`` x ``W`` pixels.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import logging

import numpy as np
import torch
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.evaluation.coco_evaluation import COCOevalMaxDets
from detectron2.structures import Boxes, BoxMode, Instances, pairwise_iou
from detectron2.utils import comm
from detectron2.utils.logger import create_small_table
from pycocotools.coco import COCO
from torch import Tensor

from hypernet_d2.data import load_dataset
from hypernet_d2.data.parts import load_part_labels
from hypernet_d2.modeling import paste_parts

__all__ = ["PartEvaluator", "part_overlaps"]

logger = logging.getLogger(__name__)

MATCHED_IOU = 0.5  # minimum IoU of the boxes of a detection and an object in mIoU


def part_overlaps(labels: Tensor, truth: Tensor) -> Tensor:
    """Among the pixels that have a part in either, the fraction with the same part in both.

    Args:
        labels: (n, H, W), 0 no part.
        truth: (g, H, W), likewise.

    Returns:
        (n, g), 0 to 1; 0 where neither has a part.
    """
    overlaps = torch.zeros(len(labels), len(truth))
    for j, one in enumerate(truth):
        agree = ((labels == one) & (one > 0)).sum((1, 2))
        either = ((labels > 0) | (one > 0)).sum((1, 2))
        overlaps[:, j] = agree / either.clamp(min=1)
    return overlaps


class PartEvaluator(DatasetEvaluator):
    """AP^r_part and mean IoU of the parts in ``pred_part_masks``, in percent.

    - **AP, AP50, AP75** are COCO's with :func:`part_overlaps` in place of the IoU. A detection is
      correct if the class, the outline and the parts of the object are. AP50 is the paper's
      AP^r_part (Hariharan et al., CVPR 2015).
    - **mIoU** evaluates the part labels alone. Each object is matched with the detection of the
      highest score, of any class, whose box has an IoU of 0.5 or more with that of the object; an
      object without a match has no labels. **IoU-NAME** is the intersection over union of the
      pixels of one part, summed over all objects; mIoU is the mean over the parts.

    Ground truth are the ``parts`` in the data set's dicts, see :mod:`hypernet_d2.data.parts`.
    Objects with ``iscrowd`` are ignored.
    """

    def __init__(self, dataset_name: str, max_detections: int = 100, distributed: bool = True):
        """
        Args:
            dataset_name: of a data set with ``thing_classes`` and ``part_names``.
            max_detections: detections of a class and image that count in AP, at least 100.
            distributed: whether to collect the results of all processes.
        """
        self._max_detections = max_detections
        records = load_dataset(dataset_name)
        metadata = MetadataCatalog.get(dataset_name)
        self._part_names = list(metadata.part_names)
        self._num_classes = len(metadata.thing_classes)
        self._distributed = distributed
        self._records = {record["image_id"]: record for record in records}
        ids = itertools.count(1)  # COCOeval takes 0 for no match
        self._objects = {
            image_id: [
                {**a, "id": next(ids)} for a in record["annotations"] if not a.get("iscrowd", 0)
            ]
            for image_id, record in self._records.items()
        }
        self.reset()

    def reset(self) -> None:
        """Remove what was processed."""
        self._detections: list[dict] = []
        self._areas = np.zeros((2, len(self._part_names)), np.int64)  # intersections, unions

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        """Compare the parts of each image's detections to those of its objects."""
        for item, output in zip(inputs, outputs, strict=True):
            image_id, instances = item["image_id"], output["instances"].to("cpu")
            labels, truth = paste_parts(instances), self._truth(image_id)
            self._add_areas(image_id, instances, labels, truth)
            overlaps = part_overlaps(labels, truth).tolist()
            ids = [a["id"] for a in self._objects[image_id]]
            boxes = BoxMode.convert(instances.pred_boxes.tensor, BoxMode.XYXY_ABS, BoxMode.XYWH_ABS)
            for i, box in enumerate(boxes.tolist()):
                self._detections.append(
                    {
                        "image_id": image_id,
                        "category_id": int(instances.pred_classes[i]),
                        "score": float(instances.scores[i]),
                        "bbox": box,
                        "overlaps": dict(zip(ids, overlaps[i], strict=True)),
                    }
                )

    def evaluate(self) -> dict[str, dict[str, float]] | None:
        """{"parts": {"AP": ..., "mIoU": ..., ...}}, in the main process; else None."""
        detections, areas = self._detections, self._areas
        if self._distributed:
            comm.synchronize()
            gathered = comm.gather((detections, areas), dst=0)
            if not comm.is_main_process():
                return None
            detections = [d for part, _ in gathered for d in part]
            areas = sum(area for _, area in gathered)
        ious = 100 * areas[0] / np.maximum(areas[1], 1)
        results = {
            **self._average_precision(detections),
            "mIoU": float(ious.mean()),
            **{f"IoU-{name}": float(iou) for name, iou in zip(self._part_names, ious, strict=True)},
        }
        logger.info("Evaluation results for parts:\n%s", create_small_table(results))
        return {"parts": results}

    def _truth(self, image_id: int | str) -> Tensor:
        """(g, H, W) uint8: the part labels of an image's objects."""
        record = self._records[image_id]
        size, source = (record["height"], record["width"]), record["file_name"]
        labels = [
            load_part_labels(a.get("parts"), size, len(self._part_names), source)
            for a in self._objects[image_id]
        ]
        return torch.from_numpy(np.stack(labels) if labels else np.zeros((0, *size), np.uint8))

    def _add_areas(
        self, image_id: int | str, instances: Instances, labels: Tensor, truth: Tensor
    ) -> None:
        best = instances.scores.argsort(descending=True)
        for one, a in zip(truth, self._objects[image_id], strict=True):
            box = BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS)
            ious = pairwise_iou(instances.pred_boxes, Boxes(torch.tensor([box]).float()))[:, 0]
            found = best[ious[best] >= MATCHED_IOU]
            label = labels[found[0]] if len(found) else torch.zeros_like(one)
            for part in range(len(self._part_names)):
                ours, theirs = label == part + 1, one == part + 1
                self._areas[0, part] += int((ours & theirs).sum())
                self._areas[1, part] += int((ours | theirs).sum())

    def _average_precision(self, detections: list[dict]) -> dict[str, float]:
        if not detections:  # COCO's interface takes no empty list
            return dict.fromkeys(("AP", "AP50", "AP75"), float("nan"))
        with contextlib.redirect_stdout(io.StringIO()):
            truth = self._as_coco()
            evaluation = _PartEval(truth, truth.loadRes(detections), "bbox")
            evaluation.params.maxDets = [1, 10, self._max_detections]
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
        values = 100 * evaluation.stats[:3]
        return dict(zip(("AP", "AP50", "AP75"), values.tolist(), strict=True))

    def _as_coco(self) -> COCO:
        coco = COCO()
        boxes = {
            a["id"]: BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYWH_ABS)
            for objects in self._objects.values()
            for a in objects
        }
        coco.dataset = {
            "info": {},  # which pycocotools 2.0.10 requires
            "images": [{"id": image_id} for image_id in self._records],
            "categories": [{"id": i} for i in range(self._num_classes)],
            "annotations": [
                {
                    "id": a["id"],
                    "image_id": image_id,
                    "category_id": a["category_id"],
                    "bbox": list(boxes[a["id"]]),
                    "area": boxes[a["id"]][2] * boxes[a["id"]][3],
                    "iscrowd": 0,
                }
                for image_id, objects in self._objects.items()
                for a in objects
            ],
        }
        coco.createIndex()
        return coco


class _PartEval(COCOevalMaxDets):
    """COCO's evaluation with the ``overlaps`` of each detection as IoUs."""

    def computeIoU(self, imgId, catId):
        """(detections, objects) of one image and class, the best detections first."""
        detections, objects = self._dts[imgId, catId], self._gts[imgId, catId]
        best = np.argsort([-d["score"] for d in detections], kind="mergesort")
        best = best[: self.params.maxDets[-1]]
        return np.array(
            [[detections[i]["overlaps"][g["id"]] for g in objects] for i in best]
        ).reshape(len(best), len(objects))
