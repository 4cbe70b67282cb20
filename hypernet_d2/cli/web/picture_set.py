"""The data set that the page shows: its images, ground truth and a model's detections."""

from __future__ import annotations

import argparse
import json
import logging
from pathlib import Path

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from tqdm import tqdm

from hypernet_d2.data import load_dataset
from hypernet_d2.data.class_names import match_classes
from hypernet_d2.evaluation.coco import ground_truth
from hypernet_d2.evaluation.report.evaluated_set import (
    EvaluatedSet,
    find_detections,
    make_evaluated_set,
)
from hypernet_d2.utils.images import image_size, list_images, read_image

from .models import ExportedModel, TrainedModel

__all__ = ["PictureSet", "read_folder", "read_registered"]

logger = logging.getLogger(__name__)

MAX_DETECTIONS = 1000  # of a class in an image


class PictureSet:
    """Images with or without ground truth, before a model has detected in them.

    Attributes:
        name: shown on the page.
        content: images, categories and annotations as COCO's json.
        files: {image id: path}.
        labeled: whether there is ground truth.
        classes: names, in the order of the category ids; empty if the set has none.
    """

    def __init__(self, name: str, content: dict, files: dict, classes: list[str]):
        self.name, self.content, self.files, self.classes = name, content, files, classes
        self.labeled = "annotations" in content

    def detect(
        self, model: ExportedModel | TrainedModel, limit: int | None = None
    ) -> tuple[EvaluatedSet, str]:
        """Run a model on the images.

        Args:
            model: whose classes are matched with those of the set by name.
            limit: number of images, evenly spaced in the set; None for all.

        Returns:
            The set with its detections, and what they are, in words.

        Raises:
            ValueError: the set has a class that the model does not; an image cannot be read.
        """
        classes = self.classes or model.classes
        numbers = match_classes(model.classes, self.name, classes)
        images = sorted(self.content["images"], key=lambda image: image["id"])
        if limit is not None and limit < len(images):
            places = np.linspace(0, len(images) - 1, limit).round().astype(int)
            chosen = [images[i] for i in places]
        else:
            chosen = images
        categories = self._categories(classes)
        ids = [one["id"] for one in sorted(categories, key=lambda one: one["id"])]
        results = []
        for image in tqdm(chosen, desc=f"detection by {model.name}", unit="image"):
            found = model.detect(read_image(self.files[image["id"]]), model.least_score)
            for (x0, y0, x1, y1), score, label in zip(
                *(values.tolist() for values in found), strict=True
            ):
                if label in numbers:
                    box = [x0, y0, x1 - x0, y1 - y0]
                    entry = {"image_id": image["id"], "category_id": ids[numbers.index(label)]}
                    results.append({**entry, "bbox": box, "score": score})
        words = "" if len(chosen) == len(images) else f"{len(chosen)} of {len(images)} images"
        return self._with(results, classes, chosen), words

    def read_detections(self, output_dir: Path) -> EvaluatedSet | None:
        """The set with the detections that an evaluation has written; None if there are none.

        Raises:
            ValueError: the file is no json.
        """
        if not self.classes:
            return None
        try:
            path = find_detections(output_dir, self.name)
        except FileNotFoundError:
            return None
        try:
            results = json.loads(path.read_text())
        except ValueError as error:
            raise ValueError(f"{path}: expected the json of detections, but {error}") from error
        if not {one["image_id"] for one in results} <= self.files.keys():
            return None  # of another set that had the name
        return self._with(results, self.classes, self.content["images"])

    def _with(self, results: list[dict], classes: list[str], images: list[dict]) -> EvaluatedSet:
        content = {
            **self.content,
            "images": images,
            "categories": self._categories(classes),
            "annotations": self.content.get("annotations", []),
        }
        return make_evaluated_set(self.name, classes, content, results, self.files, MAX_DETECTIONS)

    def _categories(self, classes: list[str]) -> list[dict]:
        known = self.content.get("categories")
        return known or [{"id": i, "name": name} for i, name in enumerate(classes)]


def read_registered(name: str) -> PictureSet:
    """A registered data set.

    Raises:
        KeyError: no set has the name.
        ValueError, FileNotFoundError: see `load_dataset`; or it has no images.
    """
    records = load_dataset(name)
    if not len(records):
        raise ValueError(f"data set {name!r} has no images")
    content, _ = ground_truth(name, records)
    files = {record["image_id"]: str(record["file_name"]) for record in records}
    # A json may have more images than the set, whose records are those with objects.
    images = [image for image in content["images"] if image["id"] in files]
    classes = list(MetadataCatalog.get(name).get("thing_classes") or [])
    return PictureSet(name, {**content, "images": images}, files, classes)


def read_folder(folder: Path) -> PictureSet:
    """The images of a folder, without ground truth.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: it has no images, or one cannot be read.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"--images {folder}: no such folder")
    paths = list_images(folder)
    if not paths:
        raise ValueError(f"--images {folder}: holds no images")
    images, files = [], {}
    for i, path in enumerate(paths):
        width, height = image_size(path)
        images.append({"id": i, "file_name": path.name, "width": width, "height": height})
        files[i] = str(path)
    return PictureSet(folder.name, {"images": images}, files, [])


def choose_set(args: argparse.Namespace, known: tuple[str, ...]) -> PictureSet | None:
    """The set that the command line names, else the first of ``known`` that is registered."""
    if args.images:
        return read_folder(args.images)
    if args.dataset:
        return read_registered(args.dataset)
    names = [name for name in known if name in DatasetCatalog]
    if names:
        return read_registered(names[0])
    if known:
        logger.warning(
            "data set %r (DATASETS.TEST) is not registered: the page has no images; --data PATH "
            "registers your own",
            known[0],
        )
    return None
