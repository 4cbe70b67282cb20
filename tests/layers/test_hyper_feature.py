"""The hyper feature: shapes, alignment, options (paper 3.1)."""

import pytest
import torch
import torch.nn.functional as F

from hypernet_d2.layers import HyperFeature

CHANNELS = {"conv1": 4, "conv3": 6, "conv5": 8}
STRIDES = {"conv1": 1, "conv3": 4, "conv5": 16}


def maps(h: int, w: int) -> dict[str, torch.Tensor]:
    return {n: torch.randn(2, c, h // STRIDES[n], w // STRIDES[n]) for n, c in CHANNELS.items()}


@pytest.mark.parametrize("norm", ["LRN", "BN", "GN", "none"])
@pytest.mark.parametrize("upsampling", ["deconv", "bilinear"])
@pytest.mark.parametrize("conv_first", [False, True])
def test_shape_is_that_of_the_paper(norm, upsampling, conv_first):
    feature = HyperFeature(
        CHANNELS, STRIDES, norm=norm, upsampling=upsampling, conv_first=conv_first
    )
    assert feature.out_channels == 126
    assert feature(maps(48, 80)).shape == (2, 126, 12, 20)


@pytest.mark.parametrize("size", [(37, 50), (64, 33), (1, 1)])
def test_maps_of_odd_size_are_aligned_by_the_reference_map(size):
    feature = HyperFeature({"a": 3, "b": 3}, {"a": 4, "b": 8}, channels=2, kernel_size=3)
    fine = torch.randn(1, 3, *size)
    coarse = torch.randn(1, 3, (size[0] + 1) // 2, (size[1] + 1) // 2)
    assert feature({"a": fine, "b": coarse}).shape == (1, 4, *size)


def test_a_map_is_pooled_convolved_and_normalized_in_this_order():
    feature = HyperFeature({"a": 3}, {"a": 2}, stride=4, channels=2, norm="none")
    x = torch.randn(1, 3, 8, 12)
    conv = feature.branches["a"].conv
    assert torch.allclose(feature({"a": x}), F.relu(conv(F.max_pool2d(x, 2))))


def test_conv_first_costs_the_coarse_convolution_only():
    feature = HyperFeature({"a": 3}, {"a": 8}, stride=4, upsampling="bilinear", conv_first=True)
    sizes = []
    feature.branches["a"].conv.register_forward_hook(lambda m, i, o: sizes.append(o.shape[-2:]))
    feature({"a": torch.randn(1, 3, 5, 7)})
    assert sizes == [(5, 7)]


def test_local_response_normalization_brings_scales_together():
    feature = HyperFeature({"a": 3, "b": 3}, {"a": 4, "b": 4}, channels=8, kernel_size=1)
    x = torch.rand(1, 3, 4, 4) * 1000
    out = feature({"a": x, "b": x * 100})
    assert out[:, 8:].max() / out[:, :8].max() < 10


def test_lrn_runs_in_float32_under_autocast():
    feature = HyperFeature({"a": 3}, {"a": 4})
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert feature({"a": torch.randn(1, 3, 4, 4)}).dtype == torch.float32


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"norm": "XN"}, "FEATURE.NORM is 'XN'"),
        ({"upsampling": "nearest"}, "FEATURE.UPSAMPLING is 'nearest'"),
        ({"kernel_size": 4}, "FEATURE.KERNEL_SIZE is 4"),
        ({"stride": 3}, "stride 4 cannot be brought to stride 3"),
        ({"in_strides": {"conv1": 1}}, "expected the same names"),
    ],
)
def test_a_wrong_value_is_named(change, message):
    arguments = {"in_channels": CHANNELS, "in_strides": STRIDES, **change}
    with pytest.raises(ValueError, match=message):
        HyperFeature(**arguments)
