"""Hypercolumns against enlarged maps, and their picture."""

import pytest
import torch
import torch.nn.functional as F

from hypernet_d2.layers import hypercolumn_picture, hypercolumns

SIZE = (24, 40)


def maps(n: int = 2, **kwargs) -> dict[str, torch.Tensor]:
    """Maps of stride 4 and 8, one finer than the image, and one of no whole stride."""
    sizes = {"fine": (6, 10), "coarse": (3, 5), "finest": (48, 80), "odd": (5, 7)}
    return {name: torch.randn(n, 3 + i, *s, **kwargs) for i, (name, s) in enumerate(sizes.items())}


def enlarged(features: dict[str, torch.Tensor], size: tuple[int, int]) -> torch.Tensor:
    """(N, C, H, W): the volume that hypercolumns are read from."""
    volumes = [
        F.interpolate(x, size=size, mode="bilinear", align_corners=False) for x in features.values()
    ]
    return torch.cat(volumes, dim=1)


def test_every_pixel_has_the_value_of_the_enlarged_maps():
    features = maps()
    ys, xs = torch.meshgrid(torch.arange(SIZE[0]), torch.arange(SIZE[1]), indexing="ij")
    points = (torch.stack([xs, ys], dim=-1) + 0.5).reshape(1, -1, 2).expand(2, -1, -1)
    volume = enlarged(features, SIZE).flatten(2).transpose(1, 2)
    assert torch.allclose(hypercolumns(features, points, SIZE), volume, atol=1e-5)


def test_a_point_between_cells_is_their_mean():
    x = torch.randn(1, 4, 6, 10)
    # Centres of cells lie at 2, 6, 10, ...: this is the middle of cells (1, 2), (1, 3), (2, 2), ...
    (column,) = hypercolumns({"a": x}, torch.tensor([[[12.0, 8.0]]]), SIZE)[0]
    assert torch.allclose(column, x[0, :, 1:3, 2:4].mean((1, 2)), atol=1e-6)


@pytest.mark.parametrize("point, cell", [((-5, -5), (0, 0)), ((45, 12), (2, 4)), ((2, 99), (2, 0))])
def test_beyond_the_image_the_border_goes_on(point, cell):
    x = torch.randn(1, 4, 3, 5)
    points = torch.tensor([[point]], dtype=torch.float32)
    edge = points.clamp(min=0).minimum(torch.tensor(SIZE[::-1]))
    column = hypercolumns({"a": x}, points, SIZE)
    assert torch.allclose(column, hypercolumns({"a": x}, edge, SIZE))
    if point[0] < 0 or point[1] > SIZE[0]:
        assert torch.allclose(column[0, 0], x[0, :, cell[0], cell[1]], atol=1e-6)


def test_images_of_a_batch_have_points_of_their_own():
    features = maps()
    points = torch.rand(2, 9, 2) * torch.tensor(SIZE[::-1])
    together = hypercolumns(features, points, SIZE)
    assert together.shape == (2, 9, 3 + 4 + 5 + 6)
    for i in range(2):
        one = {name: x[i : i + 1] for name, x in features.items()}
        assert torch.allclose(hypercolumns(one, points[i : i + 1], SIZE)[0], together[i])
    assert hypercolumns(features, points[:, :0], SIZE).shape == (2, 0, 18)


def test_gradients_reach_maps_and_points():
    x = torch.randn(1, 2, 3, 5, dtype=torch.float64, requires_grad=True)
    points = torch.rand(1, 4, 2, dtype=torch.float64) * 20 + 2.3
    assert torch.autograd.gradcheck(
        lambda x, p: hypercolumns({"a": x}, p, SIZE), (x, points.requires_grad_())
    )


def test_half_precision_maps_keep_the_points_exact():
    features = {"a": torch.randn(1, 2, 100, 100).half()}
    points = torch.tensor([[[3001.5, 2999.5]]])
    exact = hypercolumns({"a": features["a"].float()}, points, (4000, 4000))
    assert torch.equal(hypercolumns(features, points, (4000, 4000)), exact)


@pytest.mark.parametrize(
    "features, points, words",
    [
        ({}, torch.zeros(1, 1, 2), "features is empty"),
        ({"a": torch.zeros(1, 1, 2, 2)}, torch.zeros(1, 2), r"shape \(1, 2\); expected \(N, P, 2"),
        ({"a": torch.zeros(1, 1, 2, 2)}, torch.zeros(2, 1, 2), "'a' has 1 images and points has 2"),
    ],
)
def test_wrong_input_is_named(features, points, words):
    with pytest.raises(ValueError, match=words):
        hypercolumns(features, points, SIZE)


class TestPicture:
    """What the picture shows."""

    def test_regions_of_like_hypercolumns_have_like_colors(self):
        features = {
            name: torch.zeros(1, 4, *size) for name, size in (("a", (6, 10)), ("b", (3, 5)))
        }
        features["a"][:, 1, :, 5:] = 1000.0  # the right half, in a map of large values
        features["b"][:, 2, 2:] = 0.001  # the lower third, in a map of small ones
        picture = hypercolumn_picture(features, SIZE)
        assert picture.shape == (*SIZE, 3) and picture.dtype == torch.uint8
        corners = [picture[y, x].int() for y in (3, 20) for x in (4, 35)]
        for i, one in enumerate(corners):
            for other in corners[i + 1 :]:
                assert (one - other).abs().max() > 100
        assert torch.equal(picture[3, 4], picture[6, 12])

    def test_maps_of_large_values_do_not_hide_the_others(self):
        features = {"noise": 1000 * torch.randn(1, 8, 6, 10), "half": torch.zeros(1, 1, 6, 10)}
        features["half"][..., 5:] = 0.001
        picture = hypercolumn_picture(features, SIZE).float()
        left, right = picture[:, :16], picture[:, 24:]  # apart from where they blend
        apart = (left.mean((0, 1)) - right.mean((0, 1))).abs()
        assert apart[0] > 4 * left[..., 0].std()

    def test_its_colors_are_the_principal_components_of_the_enlarged_maps(self):
        spread = torch.tensor([1.0, 4, 0.2, 2])[:, None, None]  # components well apart
        features = {"a": torch.randn(1, 4, 6, 10) * spread}
        picture = hypercolumn_picture(features, SIZE)[2:-2, 3:-3].flatten(0, 1).double()
        volume = enlarged(features, SIZE)[0][:, 2:-2, 3:-3].flatten(1).T
        components = torch.linalg.svd(volume - volume.mean(0), full_matrices=False).U[:, :3]
        for channel, component in zip(picture.T, components.T, strict=True):
            inside = (channel > 0) & (channel < 255)
            pair = torch.stack([channel[inside], component[inside].double()])
            assert torch.corrcoef(pair)[0, 1].abs() > 0.99

    def test_borders_and_padding_neither_hide_the_inside_nor_are_bright(self):
        features = {"a": torch.randn(1, 4, 25, 30)}
        alone = hypercolumn_picture(features, (100, 120))
        features["a"][:, :, [0, -1]] = 1000.0
        features["a"][:, :, :, [0, -1]] = 1000.0
        framed = hypercolumn_picture(features, (100, 120))
        inside = framed[8:-8, 10:-10]
        assert torch.equal(inside, alone[8:-8, 10:-10])
        assert inside.float().std() > 50
        assert framed[:8].max() <= 0.4 * 255 + 1 and framed[:, :10].max() <= 0.4 * 255 + 1
        padded = {"a": torch.nn.functional.pad(features["a"], (0, 2, 0, 3), value=-1000.0)}
        picture = hypercolumn_picture(padded, (112, 128), (100, 120))
        assert picture.shape == (100, 120, 3)
        assert (picture[8:-8, 10:-10].int() - inside.int()).abs().max() <= 1

    def test_it_is_the_same_every_time_and_leaves_the_seed_alone(self):
        features = {"a": torch.randn(1, 30, 6, 10)}
        state = torch.get_rng_state()
        once = hypercolumn_picture(features, SIZE)
        assert torch.equal(torch.get_rng_state(), state)
        torch.rand(5)
        assert torch.equal(hypercolumn_picture(features, SIZE), once)

    @pytest.mark.parametrize("channels, size", [(1, (4, 4)), (2, (4, 4)), (5, (1, 1)), (5, (1, 3))])
    def test_few_channels_and_small_images_have_a_picture(self, channels, size):
        picture = hypercolumn_picture({"a": torch.randn(1, channels, 1, 1)}, size)
        assert picture.shape == (*size, 3)

    def test_two_images_are_refused(self):
        with pytest.raises(ValueError, match=r"'a' has the shape \(2, 1, 3, 3\)"):
            hypercolumn_picture({"a": torch.zeros(2, 1, 3, 3)}, SIZE)
