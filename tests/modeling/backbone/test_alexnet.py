"""AlexNet as a trunk: sizes, alignment and freezing."""

import pytest
import torch
from torch import nn

from tests.helpers import tiny_cfg

pytestmark = pytest.mark.detectron2

STAGES = ("conv1", "conv2", "conv3", "conv4", "conv5")


@pytest.fixture
def alexnet():
    from hypernet_d2.modeling import AlexNet

    return AlexNet(channels=(2, 3, 4, 5, 6), out_features=STAGES, freeze_at=1)


@pytest.mark.parametrize("size", [(16, 16), (64, 96), (112, 208), (79, 130)])
def test_maps_have_the_size_that_their_stride_promises(alexnet, size):
    out = alexnet(torch.randn(1, 3, *size))
    shapes = alexnet.output_shape()
    assert [shapes[name].stride for name in STAGES] == [4, 8, 16, 16, 16]
    for name, shape in shapes.items():
        assert out[name].shape[1:] == (
            shape.channels,
            size[0] // shape.stride,
            size[1] // shape.stride,
        )


@pytest.mark.parametrize(("stage", "shift"), [("conv1", 0.5), ("conv2", 2.5), ("conv5", -1.5)])
def test_cells_lie_near_where_a_pooler_takes_them_to_be(alexnet, stage, shift):
    """The centre of a cell's receptive field, all of whose inputs count alike, by its gradient."""
    for name in STAGES:
        layers = getattr(alexnet, name)
        for key, layer in layers.named_children():
            if isinstance(layer, nn.MaxPool2d):
                setattr(layers, key, nn.AvgPool2d(3, 2))
            elif isinstance(layer, nn.Conv2d):
                nn.init.ones_(layer.weight)
    image = torch.ones(1, 3, 320, 320, requires_grad=True)
    cells = alexnet(image)[stage]
    stride = alexnet.output_shape()[stage].stride
    i = cells.shape[-1] // 2
    cells[0, 0, i, i].backward()
    seen = image.grad[0, 0].abs().sum(0).nonzero()
    centre = (seen.min() + seen.max() + 1) / 2
    assert centre.item() == (i + 0.5) * stride + shift


def test_as_many_parameters_as_torchvisions():
    from torchvision.models import alexnet

    from hypernet_d2.modeling import AlexNet

    with torch.device("meta"):
        expected = sum(p.numel() for p in alexnet().features.parameters())
        assert sum(p.numel() for p in AlexNet().parameters()) == expected


def test_the_first_stage_is_frozen(alexnet):
    assert {n.split(".")[0] for n, p in alexnet.named_parameters() if not p.requires_grad} == {
        "conv1"
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"freeze_at": 6}, "FREEZE_AT of AlexNet is 6; expected 0 to 5"),
        ({"out_features": ("conv1", "res2")}, r"AlexNet has no map \['res2'\]; expected .*'conv5'"),
        ({"out_features": ()}, "AlexNet has no map"),
    ],
)
def test_a_wrong_argument_is_named(change, message):
    from hypernet_d2.modeling import AlexNet

    with pytest.raises(ValueError, match=message), torch.device("meta"):
        AlexNet(**change)


def test_it_is_a_trunk_by_its_name():
    from detectron2.modeling import build_backbone

    backbone = build_backbone(
        tiny_cfg(
            "MODEL.HYPERNET.TRUNK", "build_alexnet_backbone",
            "MODEL.HYPERNET.FEATURE.IN_FEATURES", ["conv1", "conv3", "conv5"],
        )
    )  # fmt: skip
    assert backbone.size_divisibility == 16
    assert backbone(torch.randn(1, 3, 32, 48))["hyper"].shape == (1, 18, 8, 12)
