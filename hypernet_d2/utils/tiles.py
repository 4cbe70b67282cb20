"""Tiles of a large picture, and one list of detections from those of its tiles.

Coordinates are pixels of the picture. Notation: T tiles, n detections.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np

__all__ = ["merge_detections", "merge_with_parts", "tile_boxes"]

MAX_TILES = 1_000_000
# Agreement from which two boxes show the same object, see `_agreement`.
SAME_OBJECT = 0.5
# A side of a box this close to a border of its tile, as a share of the tile's side, is cut there.
BORDER = 0.03
# Factor of the score of a cut box where boxes are ordered.
CUT_WEIGHT = 0.5
# A box is cut after all if a box of the same object has more than this share of its side outside
# of the former's tile.
BEYOND = 0.15
LEAST_WEIGHT = 1e-6  # added to scores that are weights, so that their sum is not 0


def tile_boxes(size: tuple[int, int], tile: int, overlap: int) -> np.ndarray:
    """The tiles of a picture, row by row.

    Neighbors overlap by ``overlap`` pixels; the last tile of a row or column is moved back into the
    picture and overlaps more. An object whose sides are ``overlap`` or less is whole in one tile.

    Args:
        size: (height, width) of the picture.
        tile: side of a tile. Where the picture is smaller, the tile ends with the picture.
        overlap: at least 0 and less than ``tile``.

    Returns:
        (T, 4) int64, x1 y1 x2 y2.

    Raises:
        ValueError: a number out of its range, or more than `MAX_TILES` tiles.
    """
    if tile < 1:
        raise ValueError(f"the tile's side is {tile} pixels; expected 1 or more")
    if not 0 <= overlap < tile:
        raise ValueError(
            f"tiles of {tile} pixels overlap by {overlap}; expected 0 to {tile - 1} pixels"
        )
    rows, columns = (_starts(side, tile, tile - overlap) for side in size)
    if len(rows) * len(columns) > MAX_TILES:
        raise ValueError(
            f"a picture of {size[1]} x {size[0]} pixels has {len(rows) * len(columns)} tiles of "
            f"{tile} pixels that overlap by {overlap}; expected {MAX_TILES} or fewer: larger tiles"
        )
    y, x = (grid.ravel() for grid in np.meshgrid(rows, columns, indexing="ij"))
    height, width = size
    return np.stack([x, y, np.minimum(x + tile, width), np.minimum(y + tile, height)], axis=1)


def _starts(side: int, tile: int, step: int) -> np.ndarray:
    last = max(0, side - tile)
    return np.append(np.arange(0, last, step, dtype=np.int64), last)


def merge_detections(
    found: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]],
    tiles: np.ndarray,
    size: tuple[int, int],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The detections of a picture from those of its tiles.

    A box is *cut* if it touches a border of its tile inside the picture, and *whole* otherwise. Two
    boxes of one class and of different tiles show the same object if they agree in the region that
    both tiles see; a cut side may differ more, since only a strip of the object may be left. From
    the best box down, with the scores of cut boxes halved, each box takes those of the same object:

    - A whole box becomes the mean of the whole ones, weighted by score.
    - A cut box becomes the box around all, and around those that the cut ones agree with in turn.
      A whole box is treated so as well if another one goes on outside of its tile.

    The score is the highest one of the group. So an object with sides of at most the overlap, which
    is whole in one tile, has the box of that tile, and a larger one that no tile shows whole has
    the box around its parts. Boxes of one tile stay apart: the detector's own NMS has been applied
    to them.

    The whole picture may be one of the tiles, the last one: its boxes are whole.

    Slicing tools compare the entire boxes instead, by IoU (as in the SAHI paper, arXiv 2202.06934)
    or by intersection over the smaller area (IoS), and suppress what matches (NMS) or unite it
    (SAHI's GREEDYNMM, non-max merging of supervision). AP50, AP75 and surplus boxes per scene of
    ``tools/tile_merging.py``, for a detector whose boxes are off by a standard deviation of 8% of
    their sides, tiles of 480 pixels that overlap by 96, and SAHI 0.12.8:

    ========================  ==================  ==================  ==================
    objects (longer side)     this rule           NMS, IoU            GREEDYNMM, IoS
    ========================  ==================  ==================  ==================
    150 small (12 to 96)      99.9 / 59.3 / 1.5   99.7 / 50.0 / 32.0  100.0 / 51.2 / 1.5
    25 medium (96 to 384)     100.0 / 58.4 / 0.7  97.7 / 43.8 / 24.7  98.9 / 52.9 / 3.7
    6 large (384 to 960)      96.1 / 74.1 / 0.2   65.6 / 17.3 / 16.7  72.5 / 26.2 / 9.3
    40, small in medium ones  98.5 / 61.6 / 1.3   97.4 / 46.4 / 20.2  56.5 / 23.1 / -6.7
    ========================  ==================  ==================  ==================

    Args:
        found: for each tile its boxes (n, 4), in pixels of the tile, scores (n,) and classes (n,).
        tiles: (T, 4), from `tile_boxes`.
        size: (height, width) of the picture.

    Returns:
        Boxes (m, 4) float32 in pixels of the picture, scores (m,) and classes (m,), best first.
    """
    return merge_with_parts(found, tiles, size)[:3]


def merge_with_parts(
    found: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]],
    tiles: np.ndarray,
    size: tuple[int, int],
) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[np.ndarray]]:
    """As `merge_detections`, and for each object the indices of the detections that show it.

    They count the detections of all tiles, one tile after the other. A whole box is one detection;
    the parts of an object that no tile shows whole are several, the best first.
    """
    corners = np.tile(tiles[:, :2], 2)
    boxes = np.concatenate([one[0] + at for one, at in zip(found, corners, strict=True)])
    scores, classes = (np.concatenate([one[k] for one in found]) for k in (1, 2))
    first = np.cumsum([0, *(len(one[1]) for one in found)])
    owner = np.repeat(np.arange(len(tiles)), np.diff(first))
    seen = tiles[owner]  # the tile of each box
    cut = _cut_axes(boxes, seen, size)
    whole = ~cut.any(axis=1)
    indices_near = functools.cache(
        lambda tile: np.concatenate(
            [np.arange(*first[t : t + 2]) for t in _overlapping(tiles, tile)] or [first[:0]]
        )
    )
    taken = np.zeros(len(boxes), bool)
    merged, parts = [], []
    for i in np.argsort(-scores * np.where(whole, 1, CUT_WEIGHT), kind="stable"):
        if taken[i]:
            continue
        taken[i] = True
        group, pending = [i], [i]
        while pending:
            k = pending.pop()
            others = indices_near(owner[k])
            others = others[~taken[others] & (classes[others] == classes[i])]
            others = others[_meets(boxes[k], boxes[others])]
            near = boxes[others], seen[others], cut[others]
            same = others[_agreement(boxes[k], seen[k], cut[k], *near) >= SAME_OBJECT]
            taken[same] = True
            group.extend(same)
            whole[i] &= not _goes_beyond(boxes[same], seen[i])
            if not whole[i]:
                pending.extend(same[~whole[same]])
        if whole[i]:
            entire = [k for k in group if whole[k]]
            box = np.average(boxes[entire], axis=0, weights=scores[entire] + LEAST_WEIGHT)
        else:
            box = np.concatenate([boxes[group, :2].min(axis=0), boxes[group, 2:].max(axis=0)])
        merged.append((box, scores[group].max(), classes[i]))
        parts.append(np.array([i] if whole[i] else group))
    new_boxes, new_scores, new_classes = zip(*merged, strict=True) if merged else ((), (), ())
    new_scores = np.array(new_scores, scores.dtype)
    order = np.argsort(-new_scores, kind="stable")
    return (
        np.array(new_boxes, np.float32).reshape(-1, 4)[order],
        new_scores[order],
        np.array(new_classes, classes.dtype)[order],
        [parts[i] for i in order],
    )


def _cut_axes(boxes: np.ndarray, tiles: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(n, 2): whether each box touches a border of its tile inside the picture, along x and y."""
    height, width = size
    sides = np.tile(tiles[:, 2:] - tiles[:, :2], 2)
    inner = tiles != np.array([0, 0, width, height])
    cut = inner & (np.abs(boxes - tiles) <= BORDER * sides)
    return cut[:, :2] | cut[:, 2:]


def _goes_beyond(boxes: np.ndarray, tile: np.ndarray) -> bool:
    """Whether one of the boxes has more than the share `BEYOND` of a side outside of a tile."""
    outside = np.maximum(tile[:2] - boxes[:, :2], boxes[:, 2:] - tile[2:])
    return bool((outside > BEYOND * (boxes[:, 2:] - boxes[:, :2])).any())


def _overlapping(tiles: np.ndarray, index: int) -> np.ndarray:
    """The indices of the other tiles that share pixels with a tile."""
    shares = _meets(tiles[index], tiles)
    shares[index] = False
    return np.flatnonzero(shares)


def _meets(box: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Whether a box shares pixels with each of others; as most do not, this is looked at first."""
    return ((boxes[:, :2] < box[2:]) & (boxes[:, 2:] > box[:2])).all(axis=1)


def _agreement(
    box: np.ndarray,
    tile: np.ndarray,
    cut: np.ndarray,
    boxes: np.ndarray,
    tiles: np.ndarray,
    cuts: np.ndarray,
) -> np.ndarray:
    """How well a box of a tile agrees with boxes of other tiles, in the region that both show.

    It is their IoU there. Where one of the two is cut along an axis, it is at least the product of
    the IoUs along the axes, that one's under a square root.
    """
    common = _intersection(tile, tiles)
    one, others = _intersection(box, common), _intersection(boxes, common)
    parts = one, others, _intersection(one, others)
    sides, other_sides, shared = ((part[:, 2:] - part[:, :2]).clip(min=0) for part in parts)
    along = _ratio(shared, sides + other_sides - shared)
    lenient = np.sqrt(along) * along[:, ::-1]
    area = shared.prod(axis=1)
    iou = _ratio(area, sides.prod(axis=1) + other_sides.prod(axis=1) - area)
    return np.maximum(iou, np.where(cut | cuts, lenient, 0).max(axis=1))


def _ratio(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """a / b, and 0 where b is."""
    return np.divide(a, b, out=np.zeros(np.shape(a)), where=b > 0)


def _intersection(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.concatenate(
        [np.maximum(a[..., :2], b[..., :2]), np.minimum(a[..., 2:], b[..., 2:])], axis=-1
    )
