"""AP of an exported model on a set in COCO's format, and pictures of what it detects.

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
from PIL import Image, ImageDraw, ImageFont

from hypernet_d2.utils.images import draw_detections, read_image

from .detector import Detections, Detector

__all__ = ["contact_sheet", "detect_all", "evaluate"]

# In the order of COCOeval.stats; in percent, as detectron2's COCOEvaluator has them.
METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl")


def load_set(annotations: Path, detector: Detector):
    """pycocotools' index of the set, whose categories must be the model's classes.

    Raises:
        FileNotFoundError, ValueError: naming the file and what is wrong with it.
        ImportError: pycocotools is not installed.
    """
    try:
        from hypernet_d2.utils.coco_json import CheckedCOCO
    except ImportError as error:
        raise ImportError("AP is measured by pycocotools: pip install pycocotools") from error
    if not annotations.is_file():
        raise FileNotFoundError(f"{annotations}: no such annotations")
    with contextlib.redirect_stdout(io.StringIO()):
        coco = CheckedCOCO(str(annotations), evaluated=True)
    names = tuple(coco.cats[key]["name"] for key in sorted(coco.cats))
    if names != detector.info.classes:
        raise ValueError(
            f"{annotations}: the categories are {list(names)}, but the model's classes "
            f"{list(detector.info.classes)}"
        )
    return coco


def detect_all(detector: Detector, coco, images: Path) -> dict[int, Detections]:
    """{image id: detections} of every image of the set."""
    return {key: detector(images / image["file_name"]) for key, image in coco.imgs.items()}


def evaluate(coco, detections: dict[int, Detections]) -> dict[str, float]:
    """COCO's box AP in percent, by the names of detectron2's COCOEvaluator; nan where undefined."""
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
    if not results:  # which pycocotools does not take
        return dict.fromkeys(METRICS, 0.0)
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(coco, coco.loadRes(results), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    values = evaluation.stats[: len(METRICS)] * 100
    return {
        name: float(value) if value >= 0 else float("nan")
        for name, value in zip(METRICS, values, strict=True)
    }


def contact_sheet(
    coco,
    detections: dict[int, Detections],
    images: Path,
    classes: tuple[str, ...],
    score: float,
    count: int = 8,
    width: int = 480,
) -> Image.Image:
    """Images spread over the set, the ground truth of each beside what is detected in it.

    Args:
        score: least score of a detection that is shown.
        count: number of images, two in a row.
        width: of one image on the sheet, in pixels.
    """
    keys = sorted(detections)
    picked = [keys[i] for i in np.linspace(0, len(keys) - 1, min(count, len(keys))).astype(int)]
    cells = []
    for key in picked:
        rgb = read_image(images / coco.imgs[key]["file_name"])[:, :, ::-1]
        cells.append(_cell(rgb, *_ground_truth(coco, key), classes, None, width))
        found = detections[key]
        kept = found.scores >= score
        boxes, scores, labels = (x[kept] for x in (found.boxes, found.scores, found.classes))
        cells.append(_cell(rgb, boxes, labels, classes, scores, width))
    rows = [cells[i : i + 4] for i in range(0, len(cells), 4)]
    heights = [max(cell.height for cell in row) for row in rows]
    sheet = Image.new("RGB", (width * min(4, len(cells)), sum(heights)), "white")
    for i, row in enumerate(rows):
        for j, cell in enumerate(row):
            sheet.paste(cell, (j * width, sum(heights[:i])))
    return sheet


def _ground_truth(coco, key: int) -> tuple[np.ndarray, np.ndarray]:
    categories = sorted(coco.cats)
    objects = [a for a in coco.imgToAnns[key] if not a.get("iscrowd")]
    boxes = np.array([a["bbox"] for a in objects], float).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    return boxes, np.array([categories.index(a["category_id"]) for a in objects], int)


def _cell(
    rgb: np.ndarray,
    boxes: np.ndarray,
    labels: np.ndarray,
    classes: tuple[str, ...],
    scores: np.ndarray | None,
    width: int,
) -> Image.Image:
    """One image under its title, enlarged before it is drawn on, so that labels stay legible."""
    scale, title_height = (width - 6) / rgb.shape[1], 26
    size = (width - 6, round(rgb.shape[0] * scale))
    large = np.asarray(Image.fromarray(np.ascontiguousarray(rgb)).resize(size))
    texts = [classes[label] for label in labels]
    title = f"ground truth: {len(texts)}"
    if scores is not None:
        title = f"detected: {len(texts)}"
        texts = [f"{text} {score:.0%}" for text, score in zip(texts, scores, strict=True)]
    drawn = draw_detections(large, boxes * scale, texts, labels)
    cell = Image.new("RGB", (width, size[1] + title_height + 6), "white")
    cell.paste(Image.fromarray(drawn), (3, title_height))
    font = ImageFont.load_default(16)
    ImageDraw.Draw(cell).text((6, 3), title, fill="black", font=font)
    return cell


def main(argv: list[str] | None = None) -> int:
    """Returns the exit status: 0, or 2 for a user's mistake."""
    parser = argparse.ArgumentParser(
        prog="python -m hypernet_d2.deploy.evaluate", description=__doc__.split("\n\n")[0]
    )
    parser.add_argument("model", help="file of tools/export_model.py, .onnx or .pt2")
    parser.add_argument("annotations", type=Path, help="COCO's json; its categories, in the order "
                        "of their ids, are the model's classes")  # fmt: skip
    parser.add_argument("images", type=Path, help="folder of the images")
    parser.add_argument("--sheet", type=Path, help="contact sheet to write, .png or .jpg")
    parser.add_argument("--threshold", type=float, default=0.5, help="least score on it (0.5)")
    parser.add_argument("--json", type=Path, help="file to write the AP to, null where undefined")
    args = parser.parse_args(argv)
    try:
        detector = Detector(args.model)
        coco = load_set(args.annotations, detector)
        detections = detect_all(detector, coco, args.images)
        metrics = evaluate(coco, detections)
        if args.sheet:
            sheet = contact_sheet(
                coco, detections, args.images, detector.info.classes, args.threshold
            )
            args.sheet.parent.mkdir(parents=True, exist_ok=True)
            sheet.save(args.sheet)
    except (OSError, ValueError, ImportError) as error:
        print(error, file=sys.stderr)
        return 2
    if args.json:
        numbers = {k: None if np.isnan(v) else round(v, 2) for k, v in metrics.items()}
        args.json.write_text(json.dumps(numbers, indent=2) + "\n")
    print(f"{len(detections)} images: " + ", ".join(f"{k} {v:.1f}" for k, v in metrics.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
