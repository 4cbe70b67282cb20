"""Recall of proposals (the curves of paper 4.2, and COCO's average recall).

Shapes: K maximum number of proposals, T IoU thresholds, S object sizes; P proposals and G objects
of an image.
"""

from __future__ import annotations

import itertools
import json
import logging
import math
from collections import OrderedDict, defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from detectron2.evaluation import DatasetEvaluator
from detectron2.structures import Boxes, BoxMode, pairwise_iou
from detectron2.utils import comm
from tabulate import tabulate

from hypernet_d2.data import load_dataset
from hypernet_d2.modeling.proposal_generator.proposal_network import MAX_PROPOSALS

from .coco import records_to_coco

__all__ = ["ProposalRecallEvaluator", "recall_file"]

logger = logging.getLogger(__name__)

# Bounds of an object's area in pixels of the stored image, both inclusive, as COCO has them.
SIZES = {
    "all": (0, math.inf),
    "small": (0, 32**2),
    "medium": (32**2, 96**2),
    "large": (96**2, math.inf),
}
IOUS = [round(0.5 + 0.01 * i, 2) for i in range(51)]
AR_IOUS = slice(0, 50, 5)  # 0.5 to 0.95 in steps of 0.05
AR_NUMBERS = (10, 50, 100, 200, 1000)
CURVE_IOUS = (0.5, 0.7)  # of recall against number
CURVE_NUMBERS = (50, 100, 200)  # of recall against IoU
N_RECALLS, N_IOU = (25, 50, 75), 0.7  # the paper's N@25%, N@50% and N@75%


class ProposalRecallEvaluator(DatasetEvaluator):
    """Recall of the best 1 to 1000 proposals of each image, at IoU 0.5 to 1.

    Proposals and objects are matched one to one, greedily by IoU, as in detectron2's evaluation of
    COCO proposals, separately for each number of proposals and each size of objects. Ground truth
    are the data set's dicts; crowds are ignored. The size of an object is the area of its
    segmentation, or of its box if it has none, as in COCOEvaluator.

    Args:
        dataset_name: a registered data set.
        output_dir: folder for ``proposal_recall_<dataset>.json`` (docs/EVALUATION.md has its
            fields), or None.
    """

    def __init__(self, dataset_name: str, output_dir: str | None = None):
        self.dataset_name = dataset_name
        self.output_dir = output_dir
        self._objects: dict[object, list[dict]] = defaultdict(list)
        records = load_dataset(dataset_name, evaluated=True)
        for annotation in records_to_coco(records, dataset_name).get("annotations", []):
            if not annotation["iscrowd"]:
                self._objects[annotation["image_id"]].append(annotation)
        self.reset()

    def reset(self) -> None:
        """Remove the images that were processed."""
        self._images = 0
        self._proposals = 0
        self._num_objects = np.zeros(len(SIZES), dtype=np.int64)
        self._hits = np.zeros((len(SIZES), MAX_PROPOSALS, len(IOUS)), dtype=np.int64)

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        """Add the ``proposals`` of a batch of images, in pixels of the stored image."""
        for image, output in zip(inputs, outputs, strict=True):
            proposals = output["proposals"].to("cpu")
            order = proposals.objectness_logits.sort(descending=True, stable=True).indices
            boxes = proposals.proposal_boxes[order[:MAX_PROPOSALS]]
            objects = self._objects.get(image["image_id"], [])
            self._images += 1
            self._proposals += len(boxes)
            self._count(boxes, objects)

    def _count(self, boxes: Boxes, objects: list[dict]) -> None:
        xywh = torch.tensor([o["bbox"] for o in objects], dtype=torch.float32).reshape(-1, 4)
        gt_boxes = Boxes(BoxMode.convert(xywh, BoxMode.XYWH_ABS, BoxMode.XYXY_ABS))
        iou = pairwise_iou(boxes, gt_boxes).numpy()
        area = np.array([o["area"] for o in objects])
        thresholds = np.array(IOUS, dtype=np.float32)
        for i, (smallest, largest) in enumerate(SIZES.values()):
            chosen = (area >= smallest) & (area <= largest)
            self._num_objects[i] += chosen.sum()
            for first, last, matched in greedy_matches(iou[:, chosen]):
                self._hits[i, first:last] += (matched[:, None] >= thresholds).sum(axis=0)

    def evaluate(self) -> OrderedDict | None:
        """Recall over all images of all processes, in the main process.

        Returns:
            {"box_proposals": {metric: value}}: AR@k and by size ARs@k, ARm@k, ARl@k; R50@k and
            R70@k, recall at IoU 0.5 and 0.7, all in percent; N@p, the least number of proposals
            that reach p percent at IoU 0.7. NaN stands for a number never reached, and for the
            recall of objects that the set does not have.

        Raises:
            ValueError: if there was no image.
        """
        gathered = comm.gather((self._images, self._proposals, self._num_objects, self._hits))
        if not comm.is_main_process():
            return None
        images, proposals, num_objects, hits = (sum(part) for part in zip(*gathered, strict=True))
        if not images:
            raise ValueError(f"data set {self.dataset_name!r}: no image was evaluated")
        if not num_objects[0]:
            logger.warning("%s has no objects: their recall is not defined", self.dataset_name)
        summary = {
            "dataset": self.dataset_name,
            "images": images,
            "proposals_per_image": proposals / images,
            "objects": dict(zip(SIZES, num_objects.tolist(), strict=True)),
            **_summarize(num_objects, hits),
        }
        if self.output_dir:
            path = recall_file(self.output_dir, self.dataset_name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(_one_line_a_curve(summary))
            logger.info("The recall's curves are in %s", path)
        logger.info("Recall of the proposals on %s:\n%s", self.dataset_name, _table(summary))
        return OrderedDict(box_proposals=_metrics(summary))


def recall_file(output_dir: str | Path, dataset_name: str) -> Path:
    """The file that the evaluator writes."""
    return Path(output_dir, f"proposal_recall_{dataset_name}.json")


def greedy_matches(iou: np.ndarray) -> Iterator[tuple[int, int, np.ndarray]]:
    """Match the first k proposals with the objects, the pair of the highest IoU first.

    Args:
        iou: (P, G), of the proposals, best first, with the objects.

    Yields:
        first, last and the matched pairs' IoUs of at least 0.5: those of the first k proposals for
        all k - 1 in range(first, last). Where no pair is matched nothing is yielded.
    """
    proposals, objects = np.nonzero(iou >= IOUS[0])
    values = iou[proposals, objects]
    order = np.lexsort((proposals, objects, -values))
    proposals, objects, values = proposals[order], objects[order], values[order]
    changes = [*np.unique(proposals).tolist(), MAX_PROPOSALS]
    for first, last in itertools.pairwise(changes):
        among = proposals <= first
        found: dict[int, int] = {}  # object: pair
        taken: set[int] = set()
        pairs = zip(proposals[among].tolist(), objects[among].tolist(), strict=True)
        for i, (proposal, obj) in enumerate(pairs):
            if proposal not in taken and obj not in found:
                taken.add(proposal)
                found[obj] = i
        yield first, last, values[among][list(found.values())]


def _summarize(num_objects: np.ndarray, hits: np.ndarray) -> dict:
    """The content of the json file, from the (S,) objects and the (S, K, T) objects found."""
    with np.errstate(invalid="ignore"):
        recall = 100 * hits / num_objects[:, None, None]

    def by_size(values: np.ndarray) -> dict[str, list | float | None]:
        return dict(zip(SIZES, _plain(values.round(4)), strict=True))

    at_n_iou = recall[:, :, IOUS.index(N_IOU)]
    return {
        "AR": {str(k): by_size(recall[:, k - 1, AR_IOUS].mean(axis=1)) for k in AR_NUMBERS},
        "N": {str(p): dict(zip(SIZES, _least(at_n_iou, p), strict=True)) for p in N_RECALLS},
        "recall_by_number": {
            str(iou): by_size(recall[:, :, IOUS.index(iou)]) for iou in CURVE_IOUS
        },
        "ious": IOUS,
        "recall_by_iou": {str(k): by_size(recall[:, k - 1]) for k in CURVE_NUMBERS},
    }


def _least(recall: np.ndarray, percent: int) -> list[int | None]:
    """For each row of (S, K) the least number of proposals with this recall, or None."""
    reached = recall >= percent
    return [int(row.argmax()) + 1 if row.any() else None for row in reached]


def _plain(values: np.ndarray) -> list | float | None:
    """Nested lists with None, json's null, for NaN."""
    return np.where(np.isnan(values), None, values).tolist()


def _one_line_a_curve(summary: dict) -> str:
    """Indented json with each innermost list or dict on one line."""

    def write(value, indent: str) -> str:
        if not isinstance(value, dict) or not any(
            isinstance(inside, dict | list) for inside in value.values()
        ):
            return json.dumps(value, allow_nan=False)
        inner = indent + "  "
        lines = [f"{inner}{json.dumps(key)}: {write(v, inner)}" for key, v in value.items()]
        return "{\n" + ",\n".join(lines) + f"\n{indent}}}"

    return write(summary, "") + "\n"


def _table(summary: dict) -> str:
    """A table with one row per object size."""
    header = ["objects", "", *(f"AR@{k}" for k in AR_NUMBERS), *(f"N@{p}" for p in N_RECALLS)]
    rows = [
        [
            size,
            summary["objects"][size],
            *(summary["AR"][str(k)][size] for k in AR_NUMBERS),
            *(summary["N"][str(p)][size] for p in N_RECALLS),
        ]
        for size in SIZES
    ]
    return tabulate(rows, header, tablefmt="pipe", floatfmt=".2f", missingval="-")


def _metrics(summary: dict) -> dict[str, float]:
    """The scalar metrics of the summary in one flat dict."""
    values: dict[str, float | None] = {}
    for size in SIZES:
        suffix = "" if size == "all" else size[0]
        values |= {f"AR{suffix}@{k}": summary["AR"][str(k)][size] for k in AR_NUMBERS}
    for iou in CURVE_IOUS:
        curve = summary["recall_by_number"][str(iou)]["all"]
        values |= {f"R{100 * iou:.0f}@{k}": curve[k - 1] for k in AR_NUMBERS}
    values |= {f"N@{p}": summary["N"][str(p)]["all"] for p in N_RECALLS}
    return {key: math.nan if value is None else value for key, value in values.items()}
