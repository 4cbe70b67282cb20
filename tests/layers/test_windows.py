import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hypernet_d2.layers.windows import WindowGrid

settings.register_profile("windows", max_examples=50, deadline=None, derandomize=True)
PROFILE = settings.get_profile("windows")

pairs = st.tuples(st.integers(1, 12), st.integers(1, 12))
grids = st.lists(st.tuples(pairs, pairs), min_size=1, max_size=3).flatmap(
    lambda both: st.builds(
        WindowGrid,
        st.just([shape for shape, _ in both]),
        st.just([stride for _, stride in both]),
        st.sampled_from([1, 4, 16]),
    )
)


def listed_boxes(grid, map_size, image_size=None):
    """Applies the rules of the grid to one window at a time; image_size defaults to the map's."""
    s = grid.feature_stride
    height, width = image_size or (map_size[0] * s, map_size[1] * s)
    boxes = []
    for (h, w), (stride_y, stride_x) in zip(grid.shapes, grid.strides, strict=True):
        for y0 in range(0, map_size[0], stride_y):
            for x0 in range(0, map_size[1], stride_x):
                y_in = y0 == 0 or (y0 + (h - 1) / 2) * s < height
                x_in = x0 == 0 or (x0 + (w - 1) / 2) * s < width
                if y_in and x_in:
                    boxes.append([x0 * s, y0 * s, (x0 + w - 1) * s, (y0 + h - 1) * s])
    return torch.tensor(boxes, dtype=torch.float32)


@PROFILE
@given(grids, st.tuples(st.integers(1, 20), st.integers(1, 20)))
def test_boxes_follow_the_rules_of_the_grid_in_order(grid, map_size):
    boxes = grid.boxes(map_size)
    assert torch.equal(boxes, listed_boxes(grid, map_size))
    assert grid.num_windows(map_size) == len(boxes)
    assert len(grid.counts(map_size)) == grid.num_shapes


@PROFILE
@given(grids, st.tuples(st.integers(1, 20), st.integers(1, 20)), st.data())
def test_inside_keeps_the_windows_of_the_unpadded_image(grid, map_size, data):
    s = grid.feature_stride
    image_size = tuple(data.draw(st.integers(1, length * s)) for length in map_size)
    inside = grid.inside(map_size, image_size)
    assert inside.dtype == torch.bool and inside.shape == (grid.num_windows(map_size),)
    kept = grid.boxes(map_size)[inside]
    assert torch.equal(kept, listed_boxes(grid, map_size, image_size))
    assert len(kept) >= grid.num_shapes  # the window at 0 of each shape


def test_every_window_of_a_full_map_is_inside():
    grid = WindowGrid([(5, 3), (9, 9)], [(2, 1), (3, 3)], 4)
    assert grid.inside((11, 8), (44, 32)).all()


def test_overhang_is_at_most_half_a_window():
    grid = WindowGrid([(9, 6)], [(1, 1)], 4)
    boxes = grid.boxes((20, 30))
    centers = (boxes[:, :2] + boxes[:, 2:]) / 2
    assert centers[:, 0].max() < 30 * 4 <= boxes[:, 2].max()
    assert centers[:, 1].max() < 20 * 4 <= boxes[:, 3].max()


def test_an_image_smaller_than_the_smallest_window_has_one_window_of_each_shape():
    grid = WindowGrid([(9, 9), (17, 17)], [(2, 2), (4, 4)], 4)
    assert grid.counts((2, 2)) == [(1, 1), (1, 1)]
    assert grid.boxes((2, 2)).tolist() == [[0, 0, 32, 32], [0, 0, 64, 64]]


def test_boxes_are_cached_per_map_size_and_survive_inference_mode():
    grid = WindowGrid([(3, 3)], [(1, 1)], 4)
    with torch.inference_mode():
        first = grid.boxes((6, 7))
    assert not first.is_inference()
    assert grid.boxes((6, 7)) is first
    assert grid.boxes((7, 6)) is not first
    for height in range(1, 100):
        grid.boxes((height, 1))
    assert grid.boxes((6, 7)) is not first  # old sizes are dropped


def test_grid_can_be_pickled():
    grid = WindowGrid([(3, 4)], [(1, 2)], 4)
    boxes = grid.boxes((6, 7))
    assert torch.equal(pickle.loads(pickle.dumps(grid)).boxes((6, 7)), boxes)


def test_from_sizes_gives_boxes_of_the_asked_area_and_ratio():
    grid = WindowGrid.from_sizes([64, 256], [0.5, 1, 2], 4, step=0.25)
    assert grid.num_shapes == 6
    asked = [(size, ratio) for size in (64, 256) for ratio in (0.5, 1, 2)]
    for (h, w), (stride_y, stride_x), (size, ratio) in zip(
        grid.shapes, grid.strides, asked, strict=True
    ):
        height, width = 4 * (h - 1), 4 * (w - 1)  # pixels, as boxes() makes them
        assert abs(height - size * ratio**0.5) <= 2
        assert abs(width - size / ratio**0.5) <= 2
        assert abs(stride_y * 4 - height / 4) <= 2
        assert abs(stride_x * 4 - width / 4) <= 2


def test_from_sizes_respects_the_least_stride():
    grid = WindowGrid.from_sizes([8, 64], [1], 4, step=0.5, min_stride=9)
    assert grid.strides == [(3, 3), (8, 8)]  # 9 pixels are 3 cells, rounded up


def test_from_sizes_merges_equal_shapes():
    grid = WindowGrid.from_sizes([8, 8.5, 16], [1], 4)
    assert grid.shapes == [(3, 3), (5, 5)]
    assert WindowGrid.from_sizes([1], [1], 16).shapes == [(2, 2)]  # never less than a cell's length


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([], [], 4), "shapes: expected at least one"),
        (([(3, 3)], [], 4), "strides: expected one"),
        (([(0, 3)], [(1, 1)], 4), r"shapes: .*\(0, 3\)"),
        (([(3, 2.5)], [(1, 1)], 4), r"shapes: .*\(3, 2.5\)"),
        (([(3, 3)], [(1, 0)], 4), r"strides: .*\(1, 0\)"),
        (([(3, 3)], [(1, 1)], 0), "feature_stride: .*0"),
    ],
)
def test_wrong_grids_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        WindowGrid(*arguments)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sizes": []}, "sizes: expected positive"),
        ({"sizes": [8, -1]}, r"sizes: .*-1"),
        ({"aspect_ratios": [0]}, "aspect_ratios: .*0"),
        ({"step": float("nan")}, "step: .*nan"),
        ({"min_stride": -1}, "min_stride: .*-1"),
    ],
)
def test_wrong_sizes_are_refused(changes, message):
    arguments = {"sizes": [8], "aspect_ratios": [1], "feature_stride": 4, **changes}
    with pytest.raises(ValueError, match=message):
        WindowGrid.from_sizes(**arguments)
