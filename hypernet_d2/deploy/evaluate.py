"""AP of an exported model on a set in COCO's format, and a contact sheet of its detections.

python -m hypernet_d2.deploy.evaluate MODEL ANNOTATIONS.json IMAGES --sheet sheet.png
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from hypernet_d2.utils.drawing import draw_detections, make_sheet
from hypernet_d2.utils.images import read_image

from .arguments import add_tile_arguments, tile_options
from .detector import Detections, Detector
from .providers import add_runtime_arguments

__all__ = ["METRICS", "contact_sheet", "detect_all", "evaluate", "load_set"]

# Named as in detectron2's COCOEvaluator: IoU threshold (None: 0.50 to 0.95) and area range.
METRICS = {
    "AP": (None, "all"),
    "AP50": (0.5, "all"),
    "AP75": (0.75, "all"),
    "APs": (None, "small"),
    "APm": (None, "medium"),
    "APl": (None, "large"),
}


def load_set(annotations: Path, detector: Detector):
    """pycocotools' index of the set, whose categories must be the model's classes.

    Raises:
        FileNotFoundError, ValueError: naming the file and the entry that is wrong.
        ImportError: pycocotools is not installed.
    """
    try:
        from hypernet_d2.utils.coco_json import CheckedCOCO
    except ImportError as error:
        raise ImportError("AP is computed by pycocotools: pip install pycocotools") from error
    if not annotations.is_file():
        raise FileNotFoundError(f"{annotations}: no such annotations")
    with contextlib.redirect_stdout(io.StringIO()):
        coco = CheckedCOCO(str(annotations), evaluated=True)
    names = tuple(coco.cats[key]["name"] for key in sorted(coco.cats))
    if names != detector.info.classes:
        raise ValueError(
            f"{annotations}: the categories are {list(names)}, but the model's classes are "
            f"{list(detector.info.classes)}"
        )
    return coco


def detect_all(detector: Detector, coco, images: Path, **options) -> dict[int, Detections]:
    """{image id: detections} of every image of the set, down to the file's least score.

    Args:
        options: of the call of the detector, such as ``tile``.

    Raises:
        FileNotFoundError, ValueError: an image is missing, unreadable or of another size than the
            set states; the file is named.
    """
    options["score_threshold"] = detector.info.score_threshold
    return {key: detector(_read(image, images), **options) for key, image in coco.imgs.items()}


def evaluate(coco, detections: dict[int, Detections]) -> dict[str, float]:
    """COCO's box AP in percent by the names in `METRICS`; nan where no object has the area.

    All detections of an image count, also those after COCO's first 100.
    """
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    categories = sorted(coco.cats)
    results = [
        {
            "image_id": key,
            "category_id": categories[label],
            "bbox": [x1, y1, x2 - x1, y2 - y1],
            "score": score,
        }
        for key, found in detections.items()
        for (x1, y1, x2, y2), score, label in zip(*(x.tolist() for x in found), strict=True)
    ]
    most = max((len(found.scores) for found in detections.values()), default=0)
    with contextlib.redirect_stdout(io.StringIO()):
        # loadRes does not take an empty list.
        evaluation = COCOeval(coco, coco.loadRes(results) if results else COCO(), "bbox")
        evaluation.params.maxDets = [most]
        evaluation.evaluate()
        evaluation.accumulate()
    params = evaluation.params
    # (IoU thresholds, recalls, categories, areas, 1), -1 where a category has no object.
    precision = evaluation.eval["precision"]
    metrics = {}
    for name, (iou, area) in METRICS.items():
        kept = slice(None) if iou is None else np.isclose(params.iouThrs, iou)
        values = precision[kept, :, :, params.areaRngLbl.index(area)]
        values = values[values >= 0]
        metrics[name] = 100 * float(values.mean()) if values.size else float("nan")
    return metrics


def contact_sheet(
    coco,
    detections: dict[int, Detections],
    images: Path,
    classes: tuple[str, ...],
    score: float,
    count: int = 8,
    width: int = 480,
) -> np.ndarray:
    """Images spread over the set, the ground truth of each beside its detections.

    Args:
        score: least score of a detection that is shown.
        count: number of images, two in a row.
        width: of one image on the sheet, in pixels.

    Returns:
        (H, W, 3) uint8, RGB.

    Raises:
        FileNotFoundError, ValueError: as `detect_all`.
    """
    keys = sorted(detections)
    picked = [keys[i] for i in np.linspace(0, len(keys) - 1, min(count, len(keys))).astype(int)]
    pictures, titles = [], []
    for key in picked:
        image, found = _read(coco.imgs[key], images), detections[key]
        # Enlarged before it is drawn on, so that the labels stay legible.
        scale = width / image.shape[1]
        size = (width, max(1, round(image.shape[0] * scale)))
        large = np.asarray(Image.fromarray(np.ascontiguousarray(image[:, :, ::-1])).resize(size))
        boxes, labels = _ground_truth(coco, key)
        names = [classes[label] for label in labels]
        pictures.append(draw_detections(large, boxes * scale, names, labels))
        kept = found.scores >= score
        boxes, scores, labels = (x[kept] for x in found)
        names = [f"{classes[k]} {s:.0%}" for k, s in zip(labels, scores, strict=True)]
        pictures.append(draw_detections(large, boxes * scale, names, labels))
        titles += [f"{coco.imgs[key]['file_name']}: ground truth", f"detected: {len(names)}"]
    return make_sheet(pictures, titles, columns=4)


def _read(entry: dict, folder: Path) -> np.ndarray:
    """The image of an entry of "images", (H, W, 3) uint8 BGR."""
    path = folder / entry["file_name"]
    image = read_image(path)
    height, width = image.shape[:2]
    if (height, width) != (entry["height"], entry["width"]):
        raise ValueError(
            f"{path}: its size is {width} x {height} pixels (width x height, after the rotation "
            f"that its metadata asks for), but the annotations state {entry['width']} x "
            f"{entry['height']}"
        )
    return image


def _ground_truth(coco, key: int) -> tuple[np.ndarray, np.ndarray]:
    """Boxes (n, 4), x1 y1 x2 y2, and labels (n,) of an image's objects."""
    categories = sorted(coco.cats)
    objects = [a for a in coco.imgToAnns[key] if not a.get("iscrowd")]
    boxes = np.array([a["bbox"] for a in objects], float).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    return boxes, np.array([categories.index(a["category_id"]) for a in objects], int)


def main(argv: list[str] | None = None) -> int:
    """Returns the exit status.

    Raises:
        OSError, ValueError, ImportError, FloatingPointError: a user's mistake.
    """
    parser = argparse.ArgumentParser(
        prog="python -m hypernet_d2.deploy.evaluate", description=__doc__.split("\n\n")[0]
    )
    parser.add_argument("model", help="file that tools/export_model.py wrote, .onnx or .pt2")
    parser.add_argument("annotations", type=Path, help="COCO's json; its categories, in the order "
                        "of their ids, are the model's classes")  # fmt: skip
    parser.add_argument("images", type=Path, help="folder of the images")
    parser.add_argument("--sheet", type=Path, help="contact sheet to write, .png or .jpg")
    parser.add_argument("--threshold", type=float, default=0.5, help="least score on it (0.5)")
    parser.add_argument("--json", type=Path, help="file to write the AP to, null where undefined")
    add_tile_arguments(parser)
    add_runtime_arguments(parser)
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    args = parser.parse_args(argv)
    detector = Detector(args.model, providers=args.provider, runtime=args.runtime)
    coco = load_set(args.annotations, detector)
    detections = detect_all(detector, coco, args.images, **tile_options(args))
    metrics = evaluate(coco, detections)
    if args.sheet:
        sheet = contact_sheet(coco, detections, args.images, detector.info.classes, args.threshold)
        args.sheet.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(sheet).save(args.sheet)
    if args.json:
        numbers = {k: None if np.isnan(v) else round(v, 2) for k, v in metrics.items()}
        args.json.write_text(json.dumps(numbers, indent=2) + "\n", encoding="utf-8")
    print(f"{len(detections)} images: " + ", ".join(f"{k} {v:.1f}" for k, v in metrics.items()))
    return 0


if __name__ == "__main__":
    from hypernet_d2_cli import run

    sys.exit(run(main))
