"""Compares rules that merge the detections of tiles, ours and those of SAHI (pip install sahi).

Scenes of rectangles of 900 to 2200 pixels are detected in by tiles of 480 pixels that overlap by
96. The detector returns what is visible of each object, if that is a tenth or more, with errors on
each side and a score that grows with the visible share. The table has AP50, AP75 and the number of
surplus boxes per scene.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator

import numpy as np
from tabulate import tabulate

from hypernet_d2.cli.arguments import CommandParser
from hypernet_d2.utils.tiles import merge_detections, tile_boxes

TILE, OVERLAP = 480, 96
# {kind: (number of objects, shortest and longest of their longer sides)}, in pixels
KINDS = {
    "small": (150, 12, 96),
    "medium": (25, 96, 384),
    "large": (6, 384, 960),
    "small in medium": (10, 150, 384),
}
SAHI = {
    "NMS, IoU": ("NMSPostprocess", "IOU"),
    "NMS, IoS": ("NMSPostprocess", "IOS"),
    "GREEDYNMM, IoS": ("GreedyNMMPostprocess", "IOS"),
}

Found = tuple[np.ndarray, np.ndarray, np.ndarray]  # boxes (n, 4), scores (n,), classes (n,)
Merge = Callable[[list[Found], np.ndarray, tuple[int, int]], Found]


def make_scene(rng: np.random.Generator, kind: str) -> tuple[np.ndarray, tuple[int, int]]:
    """Objects (n, 4) that do not overlap, but for those in others, and the (height, width)."""
    size = tuple(int(side) for side in rng.integers(900, 2200, 2))
    number, shortest, longest = KINDS[kind]
    outer = [np.array([0, 0, size[1], size[0]])] * number
    objects = place(rng, outer, (shortest, longest))
    if kind == "small in medium":
        objects += place(rng, [box for box in objects for _ in range(3)], (15, 60))
    return np.array(objects), size


def place(
    rng: np.random.Generator, outer: list[np.ndarray], sides: tuple[int, int]
) -> list[np.ndarray]:
    """One box within each of the outer ones, apart from the others; none where there is no room."""
    placed: list[np.ndarray] = []
    for frame in outer:
        for _ in range(200):
            longer = rng.uniform(*sides)
            extent = rng.permutation([longer, longer * rng.uniform(0.35, 1)])
            room = frame[2:] - frame[:2] - extent
            if (room <= 0).any():
                continue
            corner = frame[:2] + rng.uniform(0, 1, 2) * room
            box = np.concatenate([corner, corner + extent])
            if not placed or not iou(box[None], np.array(placed)).any():
                placed.append(box)
                break
    return placed


def detect(
    rng: np.random.Generator, objects: np.ndarray, tiles: np.ndarray, error: float
) -> Iterator[Found]:
    """For each tile what the detector returns; ``error`` is its deviation as a share of a side."""
    areas = (objects[:, 2:] - objects[:, :2]).prod(axis=1)
    for tile in tiles:
        shown = intersection(objects, tile)
        sides = (shown[:, 2:] - shown[:, :2]).clip(min=0)
        share = sides.prod(axis=1) / areas
        boxes = shown + rng.normal(0, error, shown.shape) * np.tile(sides, 2)
        boxes = intersection(boxes, tile)
        kept = (share > 0.1) & (boxes[:, 2:] - boxes[:, :2] > 1).all(axis=1)
        scores = 0.7 * share[kept] + 0.25 * rng.random(kept.sum())
        yield boxes[kept] - np.tile(tile[:2], 2), scores, np.zeros(kept.sum(), np.int64)


def intersection(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.concatenate(
        [np.maximum(a[..., :2], b[..., :2]), np.minimum(a[..., 2:], b[..., 2:])], axis=-1
    )


def iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(n, m) of boxes (n, 4) and (m, 4)."""
    common = intersection(a[:, None], b[None])
    shared = (common[..., 2:] - common[..., :2]).clip(min=0).prod(axis=-1)
    areas = [(boxes[:, 2:] - boxes[:, :2]).prod(axis=1) for boxes in (a, b)]
    return shared / (areas[0][:, None] + areas[1] - shared)


def average_precision(results: list[tuple[np.ndarray, Found]], threshold: float) -> float:
    """COCO's AP at one IoU, in percent, of (objects, detections) of scenes."""
    ranked = []
    for objects, (boxes, scores, _) in results:
        free, overlaps = np.ones(len(objects), bool), iou(boxes, objects)
        for i in np.argsort(-scores, kind="stable"):
            best = np.where(free, overlaps[i], -1).argmax()
            hit = free[best] and overlaps[i, best] >= threshold
            free[best] &= not hit
            ranked.append((scores[i], hit))
    hits = np.array([hit for _, hit in sorted(ranked, key=lambda pair: -pair[0])], float).cumsum()
    recall = hits / sum(len(objects) for objects, _ in results)
    precision = np.maximum.accumulate((hits / np.arange(1, len(hits) + 1))[::-1])[::-1]
    at = np.searchsorted(recall, np.linspace(0, 1, 101))
    return 100 * float(np.append(precision, 0)[at].mean())


def sahi_rule(name: str, metric: str) -> Merge:
    """
    Raises:
        ImportError: SAHI is not installed.
    """
    from sahi.postprocess import combine
    from sahi.prediction import ObjectPrediction

    postprocess = getattr(combine, name)(match_threshold=0.5, match_metric=metric)

    def merge(found: list[Found], tiles: np.ndarray, size: tuple[int, int]) -> Found:
        predictions = [
            ObjectPrediction((box + np.tile(tile[:2], 2)).tolist(), 0, "a", None, float(score),
                             full_shape=list(size))
            for (boxes, scores, _), tile in zip(found, tiles, strict=True)
            for box, score in zip(boxes, scores, strict=True)
        ]  # fmt: skip
        merged = postprocess(predictions)
        boxes = np.array([one.bbox.to_xyxy() for one in merged], float).reshape(-1, 4)
        scores = np.array([one.score.value for one in merged])
        return boxes, scores, np.zeros(len(merged), np.int64)

    return merge


def main(argv: list[str]) -> None:
    parser = CommandParser(__doc__, "--scenes 2")
    parser.add_argument("--scenes", type=int, default=6, help="of each kind (%(default)s)")
    args = parser.parse_args(argv)
    rules: dict[str, Merge] = {"ours": merge_detections}
    try:
        rules |= {name: sahi_rule(*rule) for name, rule in SAHI.items()}
    except ImportError:
        print("SAHI is not installed: pip install sahi", file=sys.stderr)
    rows = []
    for error in (0.03, 0.08):
        for kind in KINDS:
            rng = np.random.default_rng(5)
            scenes = []
            for _ in range(args.scenes):
                objects, size = make_scene(rng, kind)
                tiles = tile_boxes(size, TILE, OVERLAP)
                scenes.append((objects, size, tiles, list(detect(rng, objects, tiles, error))))
            row = {"error": f"{error:.0%}", "objects": kind}
            for name, merge in rules.items():
                results = [(objs, merge(found, tiles, size)) for objs, size, tiles, found in scenes]
                surplus = np.mean([len(found[0]) - len(objs) for objs, found in results])
                ap50, ap75 = (average_precision(results, threshold) for threshold in (0.5, 0.75))
                row[name] = f"{ap50:.1f} / {ap75:.1f} / {surplus:.1f}"
            rows.append(row)
    print(tabulate(rows, "keys", tablefmt="github"))


if __name__ == "__main__":
    from hypernet_d2_cli import run

    sys.exit(run(main))
