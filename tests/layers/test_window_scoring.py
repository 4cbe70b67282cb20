"""The scores of all windows against those of `forward_boxes`, which pools each box."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.ops import roi_align, roi_pool

from hypernet_d2.layers import window_align, window_max_pool
from hypernet_d2.layers.window_max_pool import max_pool_bins, sliding_max
from hypernet_d2.layers.window_scoring import WindowScorer
from hypernet_d2.layers.windows import WindowGrid
from tests.helpers import captures

settings.register_profile("scoring", max_examples=60, deadline=None, derandomize=True)
PROFILE = settings.get_profile("scoring")

VARIANTS = {
    "pool": {"pooler_type": "ROIPool"},
    "pool_linear": {"pooler_type": "ROIPool", "conv_relu": False},
    "align": {"pooler_type": "ROIAlignV2"},
    "align_2": {"pooler_type": "ROIAlignV2", "sampling_ratio": 2},
    "sp": {"pooler_type": "ROIPool", "conv_before_pooling": True},
    "sp_align": {"pooler_type": "ROIAlignV2", "conv_before_pooling": True},
}
variants = pytest.mark.parametrize("variant", VARIANTS)

GRID = WindowGrid([(2, 3), (5, 4), (9, 12), (16, 16)], [(2, 2), (2, 3), (6, 6), (8, 8)], 4)


def make_scorer(grid=GRID, channels=3, seed=0, **options):
    torch.manual_seed(seed)
    options = {"pooler_resolution": 5, "fc_dim": 8, **options}
    scorer = WindowScorer(channels, grid, **options).eval()
    # Weights and biases of similar size, so that a mistake in any of them changes the scores.
    for parameter in scorer.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return scorer


def per_box(scorer, x):
    """Scores all windows with forward_boxes, and returns them in the shapes of forward."""
    boxes = scorer.grid.boxes(tuple(x.shape[-2:]), x.device)
    logits, deltas = scorer.forward_boxes(x, [boxes] * len(x))
    return logits.view(len(x), -1), deltas.view(len(x), -1, 4)


def pool_then_convolve(scorer, x, boxes):
    """Pools, convolves and classifies in the order of the paper, without any projection."""
    scale = 1 / scorer.grid.feature_stride
    size = scorer.pooler_resolution
    relu = F.relu if scorer.conv_relu else torch.nn.Identity()
    feature = relu(scorer.conv(x)) if scorer.conv_before_pooling else x
    if scorer.pooler_type == "ROIPool":
        pooled = roi_pool(feature, boxes, size, scale)
    else:
        pooled = roi_align(feature, boxes, size, scale, scorer.sampling_ratio, aligned=True)
    if not scorer.conv_before_pooling:
        pooled = relu(scorer.conv(pooled))
    hidden = F.relu(scorer.fc(pooled.flatten(1)))
    return scorer.objectness(hidden).squeeze(1), scorer.deltas(hidden)


def assert_close(actual, expected, tolerance=1e-5):
    """Bounds the largest difference relative to the range of the expected values."""
    for a, e in zip(actual, expected, strict=True):
        assert a.shape == e.shape
        spread = max(float(e.max() - e.min()), float(e.abs().max()), 1e-30)
        assert float((a - e).abs().max()) <= tolerance * spread


shapes = st.tuples(st.integers(1, 20), st.integers(1, 20))
strides = st.tuples(st.integers(1, 7), st.integers(1, 7))


@variants
@PROFILE
@given(
    shapes_and_strides=st.lists(st.tuples(shapes, strides), min_size=1, max_size=3),
    feature_stride=st.sampled_from([1, 3, 4, 16]),
    map_size=st.tuples(st.integers(1, 18), st.integers(1, 18)),
    bins=st.sampled_from([1, 2, 3, 7, 13]),
    images=st.integers(1, 2),
    seed=st.integers(0, 9),
)
def test_dense_equals_per_box(
    variant, shapes_and_strides, feature_stride, map_size, bins, images, seed
):
    grid = WindowGrid(*zip(*shapes_and_strides, strict=True), feature_stride)
    scorer = make_scorer(grid, 2, seed, pooler_resolution=bins, **VARIANTS[variant]).double()
    x = torch.randn(images, 2, *map_size, dtype=torch.float64)
    with torch.no_grad():
        assert_close(scorer(x), per_box(scorer, x), 1e-9)


@variants
@settings(PROFILE, max_examples=20)
@given(
    shapes_and_strides=st.lists(st.tuples(shapes, strides), min_size=1, max_size=3),
    size=st.tuples(st.integers(1, 18), st.integers(1, 18)),
    more=st.tuples(st.integers(0, 9), st.integers(0, 9)),
    bins=st.sampled_from([2, 7]),
)
def test_the_windows_of_a_larger_grid_are_scored_as_on_the_map_itself(
    variant, shapes_and_strides, size, more, bins
):
    grid = WindowGrid(*zip(*shapes_and_strides, strict=True), 4)
    scorer = make_scorer(grid, 2, pooler_resolution=bins, **VARIANTS[variant]).double()
    x = torch.randn(2, 2, *size, dtype=torch.float64)
    larger = tuple(a + b for a, b in zip(size, more, strict=True))
    inside = grid.inside(larger, (4 * size[0], 4 * size[1]))
    assert torch.equal(grid.boxes(larger)[inside], grid.boxes(size))
    found = scorer(x, larger)
    assert_close([y[:, inside] for y in found], scorer(x), 1e-9)


@variants
def test_dense_equals_per_box_in_single_precision_for_every_shape_of_a_real_grid(variant):
    grid = WindowGrid.from_sizes([8, 16, 32, 64, 128, 256], [0.5, 1, 2], 4, 1 / 2, 24)
    scorer = make_scorer(grid, 8, pooler_resolution=13, fc_dim=16, **VARIANTS[variant])
    x = torch.randn(1, 8, 30, 45)
    with torch.no_grad():
        dense, plain = scorer(x), per_box(scorer, x)
    sizes = [ny * nx for ny, nx in grid.counts((30, 45))]
    for actual, expected in zip(dense, plain, strict=True):
        tolerance = 1e-5 * (expected.max() - expected.min())
        for a, e in zip(actual.split(sizes, dim=1), expected.split(sizes, dim=1), strict=True):
            assert (a - e).abs().max() <= tolerance


@pytest.mark.parametrize("variant", ["pool", "align"])
def test_the_size_of_a_chunk_does_not_matter(variant, monkeypatch):
    scorer = make_scorer(**VARIANTS[variant])
    x = torch.randn(1, 3, 24, 30)
    whole = scorer(x)
    for module in (window_align, window_max_pool):
        monkeypatch.setattr(module, "rows_per_chunk", lambda device, values: 1)
    assert_close(scorer(x), whole, 1e-6)


@variants
def test_windows_of_an_image_do_not_depend_on_its_batch(variant):
    """The windows of a padded image have the same scores in a batch and alone."""
    scorer = make_scorer(**VARIANTS[variant])
    x = torch.randn(2, 3, 20, 28)
    x[1, :, 12:], x[1, :, :, 16:] = 0, 0  # an image of 48 x 64 pixels, padded
    logits, deltas = scorer(x)
    alone = scorer(x[1:])
    assert_close([logits[1:], deltas[1:]], alone, 1e-6)
    inside = GRID.inside((20, 28), (48, 64))
    kept = GRID.boxes((20, 28))[inside]
    assert 0 < len(kept) < len(inside)
    with torch.no_grad():
        assert_close([logits[1, inside], deltas[1, inside]], scorer.forward_boxes(x[1:], [kept]))


@variants
def test_scores_do_not_depend_on_the_order_of_windows(variant):
    scorer = make_scorer(**VARIANTS[variant])
    order = [2, 0, 3, 1]
    shuffled = WindowGrid([GRID.shapes[i] for i in order], [GRID.strides[i] for i in order], 4)
    other = WindowScorer(3, shuffled, pooler_resolution=5, fc_dim=8, **VARIANTS[variant])
    other.load_state_dict(scorer.state_dict())
    x = torch.randn(1, 3, 21, 22)
    sizes = [ny * nx for ny, nx in GRID.counts((21, 22))]
    parts = [s.split(sizes, dim=1) for s in scorer(x)]
    expected = [torch.cat([p[i] for i in order], dim=1) for p in parts]
    assert_close(other(x), expected, 1e-6)

    boxes = GRID.boxes((21, 22))
    permutation = torch.randperm(len(boxes))
    with torch.no_grad():
        logits, _ = scorer.forward_boxes(x, [boxes])
        permuted, _ = scorer.forward_boxes(x, [boxes[permutation]])
    assert_close([permuted], [logits[permutation]], 1e-6)


@variants
def test_forward_boxes_and_its_gradients_equal_pool_then_convolve(variant):
    scorer = make_scorer(**VARIANTS[variant]).double()
    x = torch.randn(2, 3, 14, 17, dtype=torch.float64, requires_grad=True)
    corners = torch.rand(9, 4, dtype=torch.float64) * 40
    corners[:, 2:] += corners[:, :2] + 1  # any boxes, off the grid and beyond the border
    boxes = [corners[:5], corners[5:]]
    inputs = [x, *scorer.parameters()]

    def outputs_and_gradients(function):
        logits, deltas = function(x, boxes)
        loss = (logits**2).sum() + (deltas * torch.arange(4)).sum()
        return [logits, deltas], torch.autograd.grad(loss, inputs)

    actual, gradients = outputs_and_gradients(scorer.forward_boxes)
    expected, expected_gradients = outputs_and_gradients(
        lambda x, boxes: pool_then_convolve(scorer, x, boxes)
    )
    assert all(gradient.abs().max() > 0 for gradient in expected_gradients)
    assert_close(actual, expected, 1e-9)
    assert_close(gradients, expected_gradients, 1e-9)


def test_forward_boxes_takes_images_without_boxes():
    for options in VARIANTS.values():
        scorer = make_scorer(**options)
        x = torch.randn(2, 3, 8, 8, requires_grad=True)
        none = torch.zeros(0, 4)
        logits, deltas = scorer.forward_boxes(x, [none, torch.tensor([[0.0, 0, 12, 20]])])
        assert logits.shape == (1,) and deltas.shape == (1, 4)
        logits, deltas = scorer.forward_boxes(x, [none, none])
        assert logits.shape == (0,) and deltas.shape == (0, 4)
        (logits.sum() + deltas.sum()).backward()
        assert torch.equal(x.grad, torch.zeros_like(x))


def test_forward_records_no_gradient():
    scorer = make_scorer()
    logits, deltas = scorer(torch.randn(1, 3, 9, 9, requires_grad=True))
    assert not logits.requires_grad and not deltas.requires_grad


@variants
@pytest.mark.parametrize("first_run", [False, True])
def test_tracing_gives_the_same_and_refuses_another_map_size(variant, first_run):
    scorer = make_scorer(**VARIANTS[variant])
    x = torch.randn(1, 3, 14, 17)
    if first_run:
        scorer(x)
    traced = torch.jit.trace(scorer, torch.randn(1, 3, 14, 17))
    assert_close(traced(x), scorer(x), 1e-6)
    with pytest.raises(RuntimeError, match="must match the existing size"):
        traced(torch.randn(1, 3, 15, 17))


@captures
@variants
def test_export_gives_the_same(variant):
    scorer = make_scorer(**VARIANTS[variant])
    x = torch.randn(1, 3, 14, 17)
    exported = torch.export.export(scorer, (torch.randn(1, 3, 14, 17),), strict=False)
    assert_close(exported.module()(x), scorer(x), 1e-6)


@pytest.mark.parametrize("variant", ["pool", "align"])
def test_compilation_gives_the_same_for_every_map_size(variant):
    grid = WindowGrid([(2, 3), (9, 9)], [(2, 2), (9, 9)], 4)
    scorer = make_scorer(grid, **VARIANTS[variant])
    torch._dynamo.reset()
    # The eager back end checks the graph; back ends that generate code take minutes.
    compiled = torch.compile(scorer, backend="eager", dynamic=False)
    for size in ((14, 17), (11, 20)):
        x = torch.randn(1, 3, *size)
        assert_close(compiled(x), scorer(x), 1e-6)


@pytest.mark.parametrize("variant", ["pool", "align", "sp"])
def test_autocast_computes_in_half_precision_and_stays_close(variant):
    scorer = make_scorer(**VARIANTS[variant])
    x = torch.randn(1, 3, 14, 17)
    expected = scorer(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits, deltas = scorer(x)
        sampled, _ = scorer.forward_boxes(x, [GRID.boxes((14, 17))])
    assert logits.dtype == deltas.dtype == sampled.dtype == torch.bfloat16
    assert_close([logits.float(), deltas.float()], expected, 0.03)
    assert_close([sampled.float()], [expected[0][0]], 0.03)


@pytest.mark.cuda
@variants
def test_dense_equals_per_box_on_a_gpu(variant):
    scorer = make_scorer(**VARIANTS[variant]).cuda()
    x = torch.randn(2, 3, 24, 30, device="cuda")
    with torch.no_grad():
        dense, plain = scorer(x), per_box(scorer, x)
        assert_close(dense, plain)
        with torch.autocast("cuda", dtype=torch.float16):
            half = scorer(x)
    assert_close([h.float() for h in half], plain, 0.01)


def test_training_works_after_a_call_in_inference_mode():
    scorer = make_scorer()
    x = torch.randn(1, 3, 9, 9, requires_grad=True)
    with torch.inference_mode():
        scorer(x.detach())
    logits, deltas = scorer.forward_boxes(x, [GRID.boxes((9, 9))])
    (logits.sum() + deltas.sum()).backward()
    assert scorer(x)[0].isfinite().all()


def test_bins_are_rounded_as_the_kernel_rounds_them():
    """Where 13 * float32(h / 13) exceeds h, the kernel's last bin reaches one cell farther."""
    farther = 0
    for extent in range(1, 200):
        first, covered = max_pool_bins(extent, 13, "float32")
        last = int(first[-1] + covered[-1])
        assert last in (extent, extent + 1)
        if last == extent + 1:
            farther += 1
            grid = WindowGrid([(extent, 13)], [(9, 9)], 1)
            scorer = make_scorer(grid, 1, pooler_resolution=13)
            x = torch.randn(1, 1, extent + 12, 20)
            with torch.no_grad():
                assert_close(scorer(x), per_box(scorer, x))
    assert farther > 0


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_bins_of_a_shape_have_at_most_two_extents(dtype):
    """The table of a group extends maxima over the smaller extent to the larger one."""
    for extent in range(1, 400):
        for bins in (1, 2, 7, 13, 14):
            _, covered = max_pool_bins(extent, bins, dtype)
            smallest = math.ceil(extent / bins)
            assert covered[0] == smallest and set(covered) <= {smallest, smallest + 1}


def test_a_nan_stays_in_the_windows_that_contain_it():
    """Windows share maxima and sums of rows; a value outside a window must not reach it."""
    scorer = make_scorer(WindowGrid([(5, 4), (9, 9)], [(1, 1), (2, 3)], 4))
    x = torch.randn(1, 3, 20, 22)
    x[:, :, 7, 11] = torch.nan
    x1, y1, x2, y2 = (scorer.grid.boxes((20, 22)) / 4).unbind(1)
    contains = (x1 <= 11) & (x2 >= 11) & (y1 <= 7) & (y2 >= 7)
    assert torch.equal(scorer(x)[0].isnan()[0], contains)


@pytest.mark.parametrize("extent", range(1, 10))
def test_sliding_max(extent):
    x = torch.randn(4, 12)
    expected = x.unfold(1, extent, 1).amax(-1)
    for reach in range(1, extent + 1):
        so_far = x.unfold(1, reach, 1).amax(-1)
        assert torch.equal(sliding_max(so_far, extent, 1, reach), expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pooler_type": "ROIAlign"}, "pooler_type: .*'ROIAlign'"),
        ({"pooler_resolution": 0}, "pooler_resolution: .*0"),
        ({"conv_channels": 0}, "conv_channels: .*0"),
        ({"fc_dim": -1}, "fc_dim: .*-1"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        WindowScorer(3, GRID, **options)


@captures
@pytest.mark.parametrize("pooler_type", ["ROIPool", "ROIAlignV2"])
def test_a_captured_graph_does_not_grow_with_the_map(pooler_type):
    grid = WindowGrid.from_sizes([16, 64], [1.0], 4)
    scorer = WindowScorer(
        8, grid, pooler_type=pooler_type, pooler_resolution=3, conv_channels=2, fc_dim=4
    ).eval()
    counts = []
    for side in (40, 80):
        x = torch.rand(1, 8, side, side)
        scorer(x)
        program = torch.export.export(scorer, (x,), strict=False)
        graphs = (m.graph for m in program.graph_module.modules() if hasattr(m, "graph"))
        counts.append(sum(len(graph.nodes) for graph in graphs))
    assert counts[0] == counts[1]
