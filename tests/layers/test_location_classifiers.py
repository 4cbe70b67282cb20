"""Location-specific classifiers against hypercolumns and interpolated classifiers, one by one."""

import pytest
import torch
import torch.nn.functional as F

from hypernet_d2.layers import LocationClassifiers, hypercolumns
from hypernet_d2.layers.location_classifiers import interpolation_weights

STRIDES = {"a": 4, "b": 8}
CHANNELS = {"a": 3, "b": 5}
SIZE = (32, 48)


def maps(n: int = 2) -> dict[str, torch.Tensor]:
    h, w = SIZE
    return {k: torch.randn(n, c, h // STRIDES[k], w // STRIDES[k]) for k, c in CHANNELS.items()}


def classifiers(**kwargs) -> LocationClassifiers:
    layer = LocationClassifiers(CHANNELS, STRIDES, **{"heatmap_size": 10, **kwargs})
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter)
    return layer


def by_definition(layer, features, roi, label, box_class, box_bias, margin) -> torch.Tensor:
    """(M, M): at each position the dot product of hypercolumn and interpolated classifier."""
    k, m = layer.grid_size, layer.heatmap_size
    x1, y1, x2, y2 = roi[1:]
    steps = (torch.arange(m) + 0.5) / m
    xs, ys = x1 + (x2 - x1) * steps, y1 + (y2 - y1) * steps
    points = torch.stack(torch.meshgrid(xs, ys, indexing="xy"), -1).view(1, -1, 2)
    image = int(roi[0])
    one = {name: x[image : image + 1] for name, x in features.items()}
    columns = hypercolumns(one, points, SIZE)[0]  # (M * M, C)
    weights = torch.cat([layer.convs[n].weight.flatten(1) for n in features], 1)
    biases = layer.bias + box_bias
    shape = (layer.num_classes, k, k, layer.num_labels)
    grid = weights.view(*shape, -1)[box_class, :, :, label]
    grid_bias = biases.view(shape)[box_class, :, :, label]
    scores = torch.empty(m, m)
    for i in range(m):
        for j in range(m):
            at = ((steps[[i, j]] + margin) / (1 + 2 * margin) * k - 0.5).clamp(0, k - 1)
            (r, s), (fr, fs) = at.int().tolist(), at.frac()
            r2, s2 = min(r + 1, k - 1), min(s + 1, k - 1)
            corners = [
                (r, s, (1 - fr) * (1 - fs)), (r, s2, (1 - fr) * fs),
                (r2, s, fr * (1 - fs)), (r2, s2, fr * fs),
            ]  # fmt: skip
            w = sum(f * grid[a, b] for a, b, f in corners)
            bias = sum(f * grid_bias[a, b] for a, b, f in corners)
            scores[i, j] = columns[i * m + j] @ w + bias
    return scores


@pytest.mark.parametrize("grid_size", [1, 2, 3, 5, 10])
@pytest.mark.parametrize("margin", [0.0, 0.15])
def test_a_score_is_the_hypercolumn_times_the_interpolated_classifier(grid_size, margin):
    layer = classifiers(grid_size=grid_size, num_classes=3, num_labels=2)
    features = maps()
    # Inside an image, of less than a pixel, and up to the image's borders.
    rois = torch.tensor([[0, 5.3, 6.1, 30.7, 20.2], [1, 0, 0, 48, 32], [1, 20.2, 9.1, 20.9, 9.3]])
    classes, bias = torch.tensor([2, 0, 2]), torch.randn(3, layer.out_channels)
    heat_maps = layer(features, rois, classes, bias, margin)
    assert heat_maps.shape == (3, 2, 10, 10)
    for r, roi in enumerate(rois):
        for label in range(2):
            expected = by_definition(layer, features, roi, label, int(classes[r]), bias[r], margin)
            assert torch.allclose(heat_maps[r, label], expected, atol=1e-4)


@pytest.mark.parametrize("grid_size, size", [(1, 7), (5, 50), (10, 50), (3, 8), (6, 6)])
def test_classifiers_are_interpolated_as_torch_interpolates(grid_size, size):
    values = torch.randn(1, 1, grid_size)
    weights = torch.from_numpy(interpolation_weights(grid_size, size)).float()
    expected = F.interpolate(values, size=size, mode="linear", align_corners=False)
    assert torch.allclose(values @ weights, expected, atol=1e-5)


def test_a_margin_reads_the_middle_of_a_larger_heat_map():
    # 10 positions on a box are the inner ones of 14 on the box enlarged by a fifth at each side.
    layer = classifiers(heatmap_size=10)
    whole = classifiers(heatmap_size=14)
    whole.load_state_dict(layer.state_dict())
    features = maps(1)
    inner, outer = torch.tensor([[0, 12.0, 8, 32, 18]]), torch.tensor([[0, 8.0, 6, 36, 20]])
    cropped = whole(features, outer)[..., 2:12, 2:12]
    assert torch.allclose(layer(features, inner, margin=0.2), cropped, atol=1e-4)


def test_a_kernel_larger_than_one_is_a_convolution_of_the_map():
    layer = classifiers(kernel_size=3, grid_size=1, heatmap_size=4)
    features = maps(1)
    roi = torch.tensor([[0, 4.0, 4, 20, 20]])  # the positions are the centers of cells of map a
    conv = layer.convs["a"]
    features["b"].zero_()
    expected = conv(features["a"])[0, 0, 1:5, 1:5] + layer.bias
    assert torch.allclose(layer(features, roi)[0, 0], expected, atol=1e-4)


def test_only_the_first_class_and_those_that_occur_are_run(monkeypatch):
    layer = classifiers(num_classes=20)
    channels, conv2d = [], F.conv2d
    monkeypatch.setattr(
        F, "conv2d", lambda x, w, **kwargs: channels.append(len(w)) or conv2d(x, w, **kwargs)
    )
    layer(maps(), torch.tensor([[0, 0.0, 0, 8, 8]] * 3), torch.tensor([7, 3, 7]))
    assert channels == [3 * 25] * 2


@pytest.mark.parametrize("num_classes", [1, 4])
def test_no_box_leaves_every_parameter_in_the_graph(num_classes):
    layer = classifiers(num_classes=num_classes)
    heat_maps = layer(maps(), torch.zeros(0, 5), torch.zeros(0, dtype=torch.int64))
    assert heat_maps.shape == (0, 1, 10, 10)
    heat_maps.sum().backward()
    assert all(p.grad is not None and not p.grad.any() for p in layer.parameters())


def test_boxes_beyond_the_maps_have_finite_scores():
    layer = classifiers()
    rois = torch.tensor([[0, -100.0, -50, 200, 90], [0, 500, 500, 600, 600], [0, 3, 3, 3, 3]])
    heat_maps = layer(maps(), rois)
    assert torch.isfinite(heat_maps).all()
    bias = F.interpolate(layer.bias.view(1, 1, 5, 5), size=10, mode="bilinear")[0]
    assert torch.allclose(heat_maps[1], bias, atol=1e-5)


def test_gradients_are_those_of_the_function():
    layer = classifiers(num_classes=2, grid_size=2, heatmap_size=4).double()
    features = {name: x.double().requires_grad_() for name, x in maps(1).items()}
    rois = torch.tensor([[0, 3.2, 4.1, 30.3, 25.7]], dtype=torch.float64)
    weight = layer.convs["a"].weight
    bias = torch.randn(1, layer.out_channels, dtype=torch.float64, requires_grad=True)

    def function(a, b, bias, weight):
        return layer({"a": a, "b": b}, rois, torch.tensor([1]), bias)

    assert torch.autograd.gradcheck(function, (features["a"], features["b"], bias, weight))


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"kernel_size": 2}, "KERNEL_SIZE is 2; expected an odd"),
        ({"grid_size": 0}, "GRID_SIZE is 0; expected 1 to"),
        ({"grid_size": 11}, "GRID_SIZE is 11; expected 1 to HEATMAP_SIZE, 10"),
    ],
)
def test_wrong_settings_are_named(settings, words):
    with pytest.raises(ValueError, match=words):
        classifiers(**settings)
