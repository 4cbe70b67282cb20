"""detectron2's PascalVOCDetectionEvaluator for any set, on checked ground truth."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from pathlib import Path
from xml.etree import ElementTree

from detectron2.data import MetadataCatalog
from detectron2.evaluation import PascalVOCDetectionEvaluator
from detectron2.structures import BoxMode

from hypernet_d2.data import load_dataset, load_voc_style

from .class_mapping import select_classes

__all__ = ["CheckedPascalVOCEvaluator"]


class CheckedPascalVOCEvaluator(PascalVOCDetectionEvaluator):
    """The stock evaluator on xml that is written from the records of the set.

    The stock evaluator needs ``pose``, ``truncated``, ``difficult`` and integers in each object and
    ids without spaces, and caches the xml for later evaluations. This one writes the records to a
    temporary folder in that form, with numbers as ids and class names. Fractional corners are
    rounded to whole pixels. Classes without an object are ignored; the stock evaluator gives them
    AP 0.

    Args:
        dataset_name: a registered set with ``thing_classes``. ``difficult`` objects, which do not
            count, are known for sets in VOC layout. The metadata's ``year`` 2007 chooses the
            11-point AP; 2012, or none, the area.

    Raises:
        ValueError, FileNotFoundError: see `load_dataset` and `load_voc_style`.
    """

    def __init__(self, dataset_name: str):
        metadata = MetadataCatalog.get(dataset_name)
        records = _load_records(dataset_name)
        self._numbers = {record["image_id"]: str(i) for i, record in enumerate(records)}
        found = {
            one["category_id"]
            for record in records
            for one in record.get("annotations", ())
            if not _is_ignored(one)
        }
        self._evaluated_classes = sorted(found)
        folder = tempfile.mkdtemp(prefix="pascal_voc_ground_truth_")
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        _write_voc(records, Path(folder))
        name = f"{dataset_name}_ground_truth"
        MetadataCatalog.pop(name, None)
        MetadataCatalog.get(name).set(
            dirname=folder,
            split="all",
            year=metadata.get("year", 2012),
            thing_classes=[str(label) for label in self._evaluated_classes],
        )
        try:
            super().__init__(name)
        finally:
            MetadataCatalog.pop(name)

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        """As the stock one."""
        numbered = [{**one, "image_id": self._numbers[one["image_id"]]} for one in inputs]
        chosen = [
            {"instances": select_classes(output["instances"], self._evaluated_classes)}
            for output in outputs
        ]
        super().process(numbered, chosen)

    def evaluate(self) -> dict | None:
        """As the stock one; the AP of a set without objects is NaN."""
        if not self._evaluated_classes:
            return {"bbox": dict.fromkeys(("AP", "AP50", "AP75"), float("nan"))}
        return super().evaluate()


def _load_records(dataset_name: str) -> list[dict]:
    metadata = MetadataCatalog.get(dataset_name)
    records = load_dataset(dataset_name, evaluated=True)
    objects = [one for record in records for one in record.get("annotations", ())]
    # detectron2's own loader of VOC sets drops the mark.
    if (
        metadata.get("dirname")
        and metadata.get("split")
        and not all("difficult" in one for one in objects)
    ):
        return load_voc_style(metadata.dirname, metadata.split, metadata.thing_classes)
    return records


def _is_ignored(one: dict) -> bool:
    """Whether finding the object counts neither for nor against a detector."""
    return bool(one.get("difficult", False) or one.get("iscrowd", 0))


def _write_voc(records: list[dict], root: Path) -> None:
    """Annotations/<number>.xml and ImageSets/Main/all.txt, as the stock evaluator reads them."""
    (root / "Annotations").mkdir()
    (root / "ImageSets/Main").mkdir(parents=True)
    for number, record in enumerate(records):
        tree = ElementTree.Element("annotation")
        for one in record.get("annotations", ()):
            x0, y0, x1, y1 = BoxMode.convert(one["bbox"], one["bbox_mode"], BoxMode.XYXY_ABS)
            element = ElementTree.SubElement(tree, "object")
            # VOC counts pixels from 1 and includes the last one.
            corners = {"xmin": x0 + 1, "ymin": y0 + 1, "xmax": x1, "ymax": y1}
            fields = {
                "name": one["category_id"], "pose": "Unspecified", "truncated": 0,
                "difficult": int(_is_ignored(one)),
            }  # fmt: skip
            for key, value in fields.items():
                ElementTree.SubElement(element, key).text = str(value)
            box = ElementTree.SubElement(element, "bndbox")
            for key, value in corners.items():
                ElementTree.SubElement(box, key).text = str(round(value))
        ElementTree.ElementTree(tree).write(root / f"Annotations/{number}.xml")
    names = "".join(f"{number}\n" for number in range(len(records)))
    (root / "ImageSets/Main/all.txt").write_text(names)
