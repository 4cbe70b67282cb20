"""Detections written as a COCO json file."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.structures import Instances

from hypernet_d2.engine import Predictor
from hypernet_d2.utils.files import atomic_write

__all__ = ["CocoWriter", "coco_writer"]


@contextmanager
def coco_writer(file: Path, predictor: Predictor) -> Iterator[CocoWriter]:
    """A writer to ``file``, which appears when all is written."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(file, "w") as stream:
        writer = CocoWriter(stream, predictor)
        yield writer
        writer.finish()


class CocoWriter:
    """Writes detections as they come, so that memory does not grow with a video's length.

    ``annotations`` has the fields of COCO's results (``image_id``, ``category_id``, ``bbox`` as x,
    y, width and height in pixels, ``score``); ``images`` has ``file_name``, ``width``, ``height``
    and, for videos, ``frame``, counted from 0. Detections that have ``track_ids`` are written with
    ``track_id``, which is null for 0.
    """

    def __init__(self, stream: IO[str], predictor: Predictor):
        self.stream = stream
        metadata, num_classes = predictor.metadata, predictor.cfg.MODEL.ROI_HEADS.NUM_CLASSES
        to_contiguous = metadata.get("thing_dataset_id_to_contiguous_id", None) or {
            i: i for i in range(num_classes)
        }
        self.category_ids = {contiguous: id for id, contiguous in to_contiguous.items()}
        names = metadata.get("thing_classes", None) or [str(i) for i in range(num_classes)]
        categories = [
            {"id": id, "name": names[contiguous]} for contiguous, id in self.category_ids.items()
        ]
        self.images: list[str] = []
        self.num_annotations = 0
        self.stream.write(f'{{"categories": {json.dumps(categories)},\n"annotations": [')

    def add(self, instances: Instances, file_name: str, frame: int | None = None) -> None:
        """Write the detections of one image or frame; they are on the CPU."""
        height, width = instances.image_size
        image_id = len(self.images) + 1
        image = {"id": image_id, "file_name": file_name, "width": width, "height": height}
        self.images.append(json.dumps(image if frame is None else {**image, "frame": frame}))
        ids = instances.track_ids.tolist() if instances.has("track_ids") else None
        for i, result in enumerate(instances_to_coco_json(instances, image_id)):
            self.stream.write(",\n" if self.num_annotations else "\n")
            self.num_annotations += 1
            result["category_id"] = self.category_ids[result["category_id"]]
            area = result["bbox"][2] * result["bbox"][3]
            if ids is not None:
                result["track_id"] = ids[i] or None
            self.stream.write(
                json.dumps({"id": self.num_annotations, **result, "area": area, "iscrowd": 0})
            )

    def finish(self) -> None:
        self.stream.write('],\n"images": [\n' + ",\n".join(self.images) + "]}\n")
