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


FPN = [
    "MODEL.HYPERNET.TRUNK", "build_resnet_fpn_backbone",
    "MODEL.FPN.IN_FEATURES", ["res2", "res3", "res4", "res5"],
    "MODEL.FPN.OUT_CHANNELS", 8,
    "MODEL.HYPERNET.FEATURE.IN_FEATURES", ["p2", "p3", "p4"],
]  # fmt: skip


@pytest.mark.parametrize("out_features", [[], ["stem", "res2", "res3", "res4", "res5"]])
def test_a_stock_fpn_is_a_trunk(out_features):
    from detectron2.modeling import FPN as StockFPN
    from detectron2.modeling import build_backbone

    opts = ["MODEL.RESNETS.OUT_FEATURES", out_features] if out_features else []
    backbone = build_backbone(tiny_cfg(*FPN, *opts))
    assert isinstance(backbone.trunk, StockFPN)
    maps = backbone.trunk.bottom_up.output_shape()
    assert list(maps) == (out_features or ["res2", "res3", "res4", "res5"])
    assert backbone.size_divisibility == 32
    hyper = backbone(torch.randn(1, 3, 32, 64))["hyper"]
    assert hyper.shape == (1, 18, 8, 16)
    hyper.sum().backward()  # DistributedDataParallel needs a gradient of every parameter, p5's too
    assert [n for n, p in backbone.named_parameters() if p.grad is None] == []


def build_patches(channels: int):
    """What the network of SimpleFeaturePyramid returns: one map of stride 16, named "last"."""
    from detectron2.layers import ShapeSpec
    from detectron2.modeling import Backbone

    class Patches(Backbone):
        def __init__(self):
            super().__init__()
            self.embed = torch.nn.Conv2d(channels, 16, 16, 16)

        def output_shape(self):
            return {"last": ShapeSpec(channels=16, stride=16)}

        def forward(self, x):
            return {"last": self.embed(x)}

    return Patches()


def build_vit(channels: int):
    from detectron2.modeling import ViT

    return ViT(
        img_size=64, patch_size=16, in_chans=channels, embed_dim=16, depth=1, num_heads=2,
        pretrain_img_size=64, out_feature="last",
    )  # fmt: skip


@pytest.mark.parametrize("build_net", [build_patches, build_vit])
def test_a_simple_feature_pyramid_is_a_trunk(build_net, monkeypatch):
    """ViTDet's backbone, which reads no key of a ResNet and asks for square input."""
    from detectron2.modeling import BACKBONE_REGISTRY, SimpleFeaturePyramid, build_backbone
    from detectron2.modeling.backbone.fpn import LastLevelMaxPool
    from detectron2.structures import ImageList

    if build_net is build_vit:
        pytest.importorskip("timm", reason="detectron2's ViT imports timm")

    def build_tiny_vitdet(cfg, input_shape):
        net, scales = build_net(input_shape.channels), (4.0, 2.0, 1.0, 0.5)
        return SimpleFeaturePyramid(net, "last", 8, scales, LastLevelMaxPool(), square_pad=64)

    monkeypatch.setitem(BACKBONE_REGISTRY._obj_map, "build_tiny_vitdet", build_tiny_vitdet)
    backbone = build_backbone(
        tiny_cfg(
            "MODEL.HYPERNET.TRUNK", "build_tiny_vitdet",
            "MODEL.HYPERNET.FEATURE.IN_FEATURES", ["p2", "p3", "p4"],
        )
    )  # fmt: skip
    assert backbone.size_divisibility == 64  # p6, although it is not fused
    assert backbone.padding_constraints["square_size"] == 64
    images = ImageList.from_tensors(
        [torch.randn(3, 40, 50)],
        backbone.size_divisibility,
        padding_constraints=backbone.padding_constraints,
    )
    hyper = backbone(images.tensor)["hyper"]
    assert hyper.shape == (1, 18, 16, 16)
    hyper.sum().backward()
    assert [n for n, p in backbone.named_parameters() if p.grad is None] == []


def test_a_trunk_with_names_of_its_own_over_a_default_resnet(monkeypatch):
    """Its ResNet reads MODEL.RESNETS.OUT_FEATURES, which names none of the trunk's maps."""
    from detectron2.modeling import BACKBONE_REGISTRY, Backbone, build_backbone
    from detectron2.modeling.backbone import build_resnet_backbone

    class Renamed(Backbone):
        def __init__(self, resnet):
            super().__init__()
            self.resnet = resnet

        def output_shape(self):
            return {"coarse": self.resnet.output_shape()["res4"]}

        def forward(self, x):
            return {"coarse": self.resnet(x)["res4"]}

    def build_renamed(cfg, input_shape):
        return Renamed(build_resnet_backbone(cfg, input_shape))

    monkeypatch.setitem(BACKBONE_REGISTRY._obj_map, "build_renamed", build_renamed)
    opts = ["MODEL.HYPERNET.TRUNK", "build_renamed", "MODEL.HYPERNET.FEATURE.IN_FEATURES"]
    backbone = build_backbone(tiny_cfg(*opts, ["coarse"]))
    assert backbone(torch.randn(1, 3, 32, 48))["hyper"].shape == (1, 6, 8, 12)
    with pytest.raises(ValueError, match=r"\['fine'\], but the trunk has only \['coarse'\]"):
        build_backbone(tiny_cfg(*opts, ["fine"]))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("FEATURE.IN_FEATURES", ["res2", "res9"], r"res9.*trunk has only .*stem.*res2.*res5"),
        ("FEATURE.IN_FEATURES", [], r"IN_FEATURES is \[\], but the trunk has only"),
        ("FEATURE.IN_FEATURES", ["res2", "res2"], r"\['res2'\] more than once"),
        ("FEATURE.STRIDE", 6, "STRIDE is 6; expected a power of 2"),
        ("TRUNK", "build_darknet", "TRUNK is 'build_darknet'; expected one of .*build_vgg"),
    ],
)
def test_a_wrong_key_is_named(key, value, message):
    from detectron2.modeling import build_backbone

    with pytest.raises(ValueError, match=message):
        build_backbone(tiny_cfg(f"MODEL.HYPERNET.{key}", value))


def test_a_map_that_the_users_own_out_features_leave_out_is_named():
    from detectron2.modeling import build_backbone

    opts = ["MODEL.RESNETS.OUT_FEATURES", ["res2", "res4"]]
    with pytest.raises(ValueError, match=r"only \['res2', 'res4'\].*MODEL.RESNETS.OUT_FEATURES"):
        build_backbone(tiny_cfg(*opts))
