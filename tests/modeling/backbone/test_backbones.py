"""VGG16 and the hyper backbone against detectron2's contracts."""

import pytest
import torch

from tests.helpers import tiny_cfg

pytestmark = pytest.mark.detectron2


@pytest.fixture
def vgg():
    from hypernet_d2.modeling import VGG

    return VGG(
        stage_channels=((2,), (3,), (4,), (5,), (6,)),
        out_features=("conv1", "conv3", "conv5"),
        freeze_at=2,
    )


def test_vgg_gives_the_map_sizes_of_the_paper(vgg):
    out = vgg(torch.randn(1, 3, 96, 160))
    assert {n: tuple(x.shape) for n, x in out.items()} == {
        "conv1": (1, 2, 96, 160),
        "conv3": (1, 4, 24, 40),
        "conv5": (1, 6, 6, 10),
    }
    for name, shape in vgg.output_shape().items():
        assert (shape.channels, 96 // shape.stride) == out[name].shape[1:3]


def test_vgg_freezes_its_first_stages(vgg):
    frozen = {n.split(".")[0] for n, p in vgg.named_parameters() if not p.requires_grad}
    trained = {n.split(".")[0] for n, p in vgg.named_parameters() if p.requires_grad}
    assert (frozen, trained) == ({"conv1", "conv2"}, {"conv3", "conv4", "conv5"})


def test_vgg16_has_as_many_parameters_as_torchvisions():
    from torchvision.models import vgg16

    from hypernet_d2.modeling import VGG

    with torch.device("meta"):
        expected = sum(p.numel() for p in vgg16().features.parameters())
        assert sum(p.numel() for p in VGG().parameters()) == expected


def test_vgg_does_not_build_stages_that_nobody_asked_for():
    from hypernet_d2.modeling import VGG

    with torch.device("meta"):
        assert not hasattr(VGG(out_features=("conv3",)), "conv4")


def test_vgg_names_a_map_that_it_lacks():
    from hypernet_d2.modeling import VGG

    with pytest.raises(ValueError, match=r"no map \['conv6'\]; expected one or more of \['conv1'"):
        VGG(out_features=("conv6",))


def test_the_hyper_backbone_keeps_its_promises(vgg):
    from hypernet_d2.modeling import HyperBackbone

    backbone = HyperBackbone(vgg, in_features=["conv1", "conv3", "conv5"])
    assert backbone.size_divisibility == 16
    out = backbone(torch.randn(2, 3, 32, 48))
    assert list(out) == list(backbone.output_shape()) == ["hyper"]
    shape = backbone.output_shape()["hyper"]
    assert out["hyper"].shape == (2, shape.channels, 32 // shape.stride, 48 // shape.stride)


@pytest.mark.parametrize("depth", [18, 50])
def test_stock_resnets_are_trunks(depth):
    from detectron2.modeling import build_backbone

    width = 64 if depth == 18 else 256
    cfg = tiny_cfg("MODEL.RESNETS.DEPTH", depth, "MODEL.RESNETS.RES2_OUT_CHANNELS", width)
    backbone = build_backbone(cfg)
    assert backbone(torch.randn(1, 3, 32, 32))["hyper"].shape == (1, 18, 8, 8)
    assert cfg.MODEL.RESNETS.OUT_FEATURES == ["res4"]  # the user's config is left as it was


def test_vgg16_is_a_trunk_by_its_name():
    from detectron2.modeling import build_backbone

    backbone = build_backbone(
        tiny_cfg(
            "MODEL.HYPERNET.TRUNK",
            "build_vgg_backbone",
            "MODEL.HYPERNET.FEATURE.IN_FEATURES",
            ["conv1", "conv3", "conv5"],
        )  # fmt: skip
    )
    assert backbone(torch.randn(1, 3, 32, 32))["hyper"].shape == (1, 18, 8, 8)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("FEATURE.IN_FEATURES", ["res2", "res9"], r"res9.*stem.*res2.*res5"),
        ("FEATURE.IN_FEATURES", ["res2", "res2"], r"\['res2'\] more than once"),
        ("FEATURE.STRIDE", 6, "STRIDE is 6; expected a power of 2"),
        ("TRUNK", "build_darknet", "TRUNK is 'build_darknet'; expected one of .*build_vgg"),
    ],
)
def test_a_wrong_key_is_named(key, value, message):
    from detectron2.modeling import build_backbone

    with pytest.raises(ValueError, match=message):
        build_backbone(tiny_cfg(f"MODEL.HYPERNET.{key}", value))
