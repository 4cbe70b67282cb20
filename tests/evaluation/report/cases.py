"""Hand-made ground truth and detections."""

from __future__ import annotations

NAMES = ("owl", "dog")


def make_set(objects, detections, names=NAMES, images: int = 1, **kwargs):
    """An EvaluatedSet.

    Args:
        objects: (class, [x, y, w, h]) or (class, box, {further keys}), all in the first image, or
            {image number: such a list}.
        detections: (class, box, score), likewise.
        names: of the classes.
        images: their number.
        kwargs: of make_evaluated_set.
    """
    from hypernet_d2.evaluation.report.evaluated_set import make_evaluated_set

    ids = {name: 10 * (i + 1) for i, name in enumerate(names)}
    content = {
        "images": [
            {"id": i, "file_name": f"{i}.png", "height": 200, "width": 200} for i in range(images)
        ],
        "categories": [{"id": number, "name": name} for name, number in ids.items()],
        "annotations": [],
    }
    for image, entries in _by_image(objects):
        for name, box, *more in entries:
            one = {"id": len(content["annotations"]) + 1, "image_id": image, "bbox": box,
                   "category_id": ids[name], "area": box[2] * box[3], "iscrowd": 0}  # fmt: skip
            content["annotations"].append({**one, **(more[0] if more else {})})
    results = [
        {"image_id": image, "category_id": ids[name], "bbox": box, "score": score}
        for image, entries in _by_image(detections)
        for name, box, score in entries
    ]
    return make_evaluated_set("set", list(names), content, results, **kwargs)


def _by_image(entries):
    return entries.items() if isinstance(entries, dict) else [(0, entries)]
