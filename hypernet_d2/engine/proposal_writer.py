"""Writes proposals for later training and evaluation on them."""

from __future__ import annotations

import itertools
import pickle

from detectron2.evaluation import DatasetEvaluator
from detectron2.structures import BoxMode
from detectron2.utils import comm

from hypernet_d2.checkpoint import OUTPUT_FILES

__all__ = ["ProposalWriter"]


class ProposalWriter(DatasetEvaluator):
    """Writes the proposals of a ProposalNetwork to one of detectron2's precomputed-proposal files.

    COCOEvaluator writes the same format, but not atomically, so that an interrupted step would
    seem finished, and it converts and evaluates the ground truth of the whole training set.

    The file is a pickled dict with a list over the images under each of ``ids``, ``boxes``
    ((n, 4) float32, x1 y1 x2 y2 in pixels of the stored image) and ``objectness_logits`` ((n,)
    float32, best first), and the ``bbox_mode`` of all boxes.
    """

    def __init__(self, path: str):
        self.path = path
        self.reset()

    def reset(self) -> None:
        """Discard the proposals collected so far."""
        self._images: list[tuple] = []

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        """Collect the proposals of a batch."""
        for image, output in zip(inputs, outputs, strict=True):
            proposals = output["proposals"].to("cpu")
            boxes, logits = proposals.proposal_boxes.tensor, proposals.objectness_logits
            self._images.append((image["image_id"], boxes.numpy(), logits.numpy()))

    def evaluate(self) -> None:
        """Write the file, in the main process, with the images of all processes."""
        images = list(itertools.chain(*comm.gather(self._images)))
        if comm.is_main_process():
            content = {
                "ids": [image_id for image_id, _, _ in images],
                "boxes": [boxes for _, boxes, _ in images],
                "objectness_logits": [logits for _, _, logits in images],
                "bbox_mode": BoxMode.XYXY_ABS.value,
            }
            with OUTPUT_FILES.open(self.path, "wb") as file:
                pickle.dump(content, file)
        comm.synchronize()
