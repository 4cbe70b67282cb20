"""Tiles of a picture, and the detections of ideal detectors merged from tiles."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hypernet_d2.utils.tiles import MAX_TILES, merge_detections, tile_boxes


def test_the_last_tiles_are_moved_back():
    tiles = tile_boxes((100, 250), 100, 20)
    assert tiles.tolist() == [[0, 0, 100, 100], [80, 0, 180, 100], [150, 0, 250, 100]]
    assert tile_boxes((180, 100), 100, 20)[:, 1].tolist() == [0, 80]  # no third tile for 0 pixels


def test_tiles_end_with_the_picture():
    assert tile_boxes((60, 70), 100, 20).tolist() == [[0, 0, 70, 60]]
    line = tile_boxes((1, 50_000), 640, 128)
    assert line[0].tolist() == [0, 0, 640, 1] and line[-1].tolist() == [49_360, 0, 50_000, 1]
    assert set(np.diff(line[:-1, 0])) == {512}


@pytest.mark.parametrize(
    ("size", "tile", "overlap", "message"),
    [
        ((10, 10), 0, 0, "the tile's side is 0 pixels; expected 1 or more"),
        ((10, 10), 8, 8, "tiles of 8 pixels overlap by 8; expected 0 to 7"),
        ((10, 10), 8, -1, "overlap by -1; expected 0 to 7"),
        ((9000, 9000), 8, 0, rf"9000 x 9000 pixels has 1265625 tiles.*expected {MAX_TILES} or"),
    ],
)
def test_numbers_out_of_their_range(size, tile, overlap, message):
    with pytest.raises(ValueError, match=message):
        tile_boxes(size, tile, overlap)


def ideal(objects: np.ndarray, tiles: np.ndarray, classes: np.ndarray | None = None) -> list:
    """For each tile what is visible of each object (n, 4) there, the score its visible share."""
    found = []
    classes = np.zeros(len(objects), np.int64) if classes is None else classes
    for tile in tiles:
        visible = np.hstack(
            [np.maximum(objects[:, :2], tile[:2]), np.minimum(objects[:, 2:], tile[2:])]
        )
        sides = (visible[:, 2:] - visible[:, :2]).clip(min=0)
        share = sides.prod(axis=1) / (objects[:, 2:] - objects[:, :2]).prod(axis=1)
        seen = share > 0
        found.append(((visible - np.tile(tile[:2], 2))[seen], share[seen], classes[seen]))
    return found


def merged(objects, size, tile, overlap, classes=None):
    tiles = tile_boxes(size, tile, overlap)
    return merge_detections(ideal(objects, tiles, classes), tiles, size)


def in_order(boxes: np.ndarray) -> list:
    return sorted(boxes.tolist())


@st.composite
def scenes(draw):
    """(objects, size, tile, overlap): objects apart from each other, of sides up to the overlap."""
    tile = draw(st.integers(20, 100))
    overlap = draw(st.integers(4, 3 * tile // 4))
    size = draw(st.tuples(st.integers(4, 250), st.integers(4, 250)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    objects: list[np.ndarray] = []
    for _ in range(30):
        sides = np.minimum(rng.integers(1, overlap + 1, 2), size[::-1])
        corner = rng.integers(0, np.array(size[::-1]) - sides + 1)
        box = np.concatenate([corner, corner + sides]).astype(float)
        if all((box[2:] <= o[:2]).any() or (box[:2] >= o[2:]).any() for o in objects):
            objects.append(box)
    return np.array(objects), size, tile, overlap


@settings(max_examples=20, deadline=None)
@given(scenes())
def test_objects_that_fit_the_overlap_are_neither_lost_nor_doubled(scene):
    objects, size, tile, overlap = scene
    boxes, scores, classes = merged(objects, size, tile, overlap)
    assert in_order(boxes) == in_order(objects)
    assert boxes.dtype == np.float32 and (scores == 1).all() and len(classes) == len(objects)


@settings(max_examples=40, deadline=None)
@given(
    sides=st.tuples(st.integers(1, 300), st.integers(1, 300)),
    at=st.tuples(st.floats(0, 1), st.floats(0, 1)),
    size=st.tuples(st.integers(300, 500), st.integers(300, 500)),
    overlap=st.integers(10, 60),
)
def test_one_object_of_any_size_is_one_exact_box(sides, at, size, overlap):
    corner = np.floor(np.array(at) * (np.array(size[::-1]) - sides))
    one = np.concatenate([corner, corner + sides])[None]
    boxes, _, _ = merged(one, size, 96, overlap)
    assert boxes.tolist() == one.tolist()


def test_an_object_within_a_larger_one_stays():
    both = np.array([[60.0, 60, 220, 200], [90, 90, 110, 115]])
    boxes, _, _ = merged(both, (300, 300), 100, 40)
    assert in_order(boxes) == in_order(both)


def test_objects_of_two_classes_at_one_place_stay():
    both = np.array([[70.0, 20, 90, 40], [70, 20, 90, 40]])
    boxes, _, classes = merged(both, (100, 200), 100, 40, np.array([1, 0]))
    assert in_order(boxes) == in_order(both) and sorted(classes) == [0, 1]


def test_boxes_of_one_tile_are_left_as_they_are():
    tiles = tile_boxes((100, 160), 100, 40)
    pair = np.array([[10.0, 10, 30, 30], [11, 10, 31, 30]])
    empty = (np.zeros((0, 4)), np.zeros(0), np.zeros(0, np.int64))
    boxes, scores, _ = merge_detections(
        [(pair, np.array([0.4, 0.6]), np.array([0, 0])), empty], tiles, (100, 160)
    )
    assert boxes.tolist() == pair[::-1].tolist() and scores.tolist() == [0.6, 0.4]
    boxes, scores, classes = merge_detections([empty, empty], tiles, (100, 160))
    assert boxes.shape == (0, 4) and scores.shape == classes.shape == (0,)


def test_a_whole_box_replaces_a_cut_one_of_a_higher_score():
    tiles = tile_boxes((100, 160), 100, 40)  # the second begins at 60
    one = np.zeros(1, np.int64)
    cut, whole = np.array([[80.0, 20, 100, 50]]), np.array([[21.0, 20, 50, 51]])
    boxes, scores, _ = merge_detections(
        [(cut, np.array([0.9]), one), (whole, np.array([0.6]), one)], tiles, (100, 160)
    )
    assert boxes.tolist() == [[81, 20, 110, 51]] and scores.tolist() == [0.9]


def iou(a: np.ndarray, b: np.ndarray) -> float:
    sides = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
    shared = sides.clip(min=0).prod()
    return shared / ((a[2:] - a[:2]).prod() + (b[2:] - b[:2]).prod() - shared)


def test_parts_whose_boxes_are_off_by_6_percent_are_one_object():
    rng = np.random.default_rng(0)
    tiles = tile_boxes((900, 900), 480, 96)
    number, good = 0, 0
    for _ in range(40):
        sides = rng.uniform(200, 700, 2)
        corner = rng.uniform(0, 900 - sides)
        one = np.concatenate([corner, corner + sides])
        found = []
        for (boxes, scores, classes), tile in zip(ideal(one[None], tiles), tiles, strict=True):
            seen = scores > 0.1
            error = rng.normal(0, 0.06, boxes.shape) * np.tile(boxes[:, 2:] - boxes[:, :2], 2)
            boxes = (boxes + error).clip(min=0, max=np.tile(tile[2:] - tile[:2], 2))
            found.append((boxes[seen], scores[seen], classes[seen]))
        boxes, _, _ = merge_detections(found, tiles, (900, 900))
        number += len(boxes)
        good += iou(boxes[0], one) >= 0.75
    assert number <= 42 and good >= 36  # with boxes compared within the overlap alone: 57 and 24


def test_a_thousand_objects_are_merged_in_a_second():
    size = (2500, 2500)
    rng = np.random.default_rng(0)
    grid = np.stack(np.meshgrid(np.arange(34), np.arange(34)), axis=-1).reshape(-1, 2) * 70.0
    objects = np.hstack([grid, grid + rng.integers(10, 60, grid.shape)])
    start = time.process_time()
    boxes, _, _ = merged(objects, size, 640, 128)
    assert in_order(boxes) == in_order(objects)
    assert time.process_time() - start < 3
