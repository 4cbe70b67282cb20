"""timm models as trunks: maps, normalization of the input, frozen layers, errors."""

import pytest
import torch

from tests.helpers import batched_inputs, tiny_cfg

pytestmark = pytest.mark.detectron2
pytest.importorskip("timm", reason="trunks of timm")

LITE = "tf_efficientnet_lite0"


def backbone(name="resnet10t", out_features=("s4", "s16"), **kwargs):
    from hypernet_d2.modeling import TimmBackbone

    return TimmBackbone(name, out_features=out_features, **kwargs)


# convnext: layer norm; swin: maps with the channels last, and a fixed size; vit: three maps of one
# stride; hrnet: branches; mobilenetv4: blocks that end in another number.
@pytest.mark.parametrize(
    ("name", "maps", "size"),
    [
        (LITE, ("s4", "s16"), (64, 96)),
        ("convnext_atto", ("s4", "s8"), (64, 96)),
        ("swin_tiny_patch4_window7_224", ("s4", "s8"), (224, 224)),
        ("vit_tiny_patch16_224", ("s16",), (224, 224)),
        ("hrnet_w18_small", ("s4", "s32"), (64, 64)),
        ("mobilenetv4_conv_small", ("s2", "s32"), (64, 64)),
    ],
)
def test_maps_have_the_channels_and_strides_that_are_promised(name, maps, size):
    model = backbone(name, maps)
    with torch.no_grad():
        out = model(torch.randn(1, 3, *size))
    assert list(out) == list(maps)
    for key, shape in model.output_shape().items():
        assert key == f"s{shape.stride}"
        assert out[key].shape == (1, shape.channels, *(side // shape.stride for side in size))


def test_of_maps_of_one_stride_the_last_is_taken():
    """The maps of a ViT are its last blocks; timm numbers them 9 to 11."""
    (info,) = backbone("vit_tiny_patch16_224", ("s16",)).net.feature_info.get_dicts()
    assert info["module"] == "blocks.11"


def test_the_trunk_gets_the_image_as_it_was_trained():
    import timm

    image = torch.randint(0, 256, (1, 3, 64, 64)).float()  # RGB
    model = backbone(LITE, ("s4",)).eval()  # for BGR, detectron2's default mean and deviation
    mean = torch.tensor([103.53, 116.28, 123.675]).view(1, 3, 1, 1)
    net = timm.create_model(LITE, features_only=True, out_indices=[1]).eval()
    net.load_state_dict(model.net.state_dict(), strict=False)
    with torch.no_grad():
        (expected,) = net((image - 127.5) / 127.5)
        torch.testing.assert_close(
            model(image.flip(1) - mean)["s4"], expected, rtol=1e-4, atol=1e-4
        )


def test_frozen_batch_norm_keeps_the_activation():
    """detectron2's own conversion of BatchNormAct2d loses it, and activations explode."""
    norms = [m for m in backbone(LITE).modules() if type(m).__name__ == "FrozenBatchNormAct2d"]
    assert any(isinstance(norm.act, torch.nn.ReLU6) for norm in norms)
    assert not [m for m in backbone(LITE).modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert [m for m in backbone(LITE, norm="BN").modules() if isinstance(m, torch.nn.BatchNorm2d)]


@pytest.mark.parametrize("name", ["resnet10t", LITE, "convnext_atto"])
def test_freeze_at_counts_the_maps_from_the_finest(name):
    trained = [
        {key for key, p in backbone(name, ("s8", "s32"), freeze_at=k).named_parameters()
         if p.requires_grad}
        for k in range(4)
    ]  # fmt: skip
    assert all(fewer < more for more, fewer in zip(trained, trained[1:], strict=False))


def test_a_layer_beyond_the_last_map_is_not_built():
    """A parameter without a gradient would stop DistributedDataParallel."""
    for name in (LITE, "resnet10t", "mobilenetv4_conv_small"):
        model = backbone(name, ("s4", "s8"), norm="BN")
        sum(map.mean() for map in model(torch.randn(2, 3, 32, 32)).values()).backward()
        assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "tf_efficientnet_lite9"}, "timm .* does not have; it has"),
        ({"out_features": ("s3",)}, r"no map \['s3'\]; expected one or more of \['s2', 's4'"),
        ({"freeze_at": 9}, "FREEZE_AT of resnet10t is 9; expected 0 to 5"),
        ({"norm": "LN"}, "TIMM.NORM is 'LN'"),
        ({"image_format": "L"}, "INPUT.FORMAT is 'L'"),
    ],
)
def test_a_wrong_setting_is_named(change, message):
    with pytest.raises(ValueError, match=message):
        backbone(**change)


def test_weights_of_another_model_are_an_error():
    from detectron2.modeling import build_model

    cfg = tiny_cfg("MODEL.HYPERNET.TIMM.NAME", "resnet10t", config="Real/hypernet_lite0.yaml")
    with pytest.raises(ValueError, match="expected the weights of the same model"):
        build_model(cfg)


@pytest.mark.parametrize(
    "config", ["hypernet_lite0", "faster_rcnn_lite0_FPN", "faster_rcnn_lite0_C4"]
)
def test_the_models_for_own_pictures_train_and_detect(config):
    from detectron2.modeling import build_model
    from detectron2.utils.events import EventStorage

    cfg = tiny_cfg("MODEL.ROI_HEADS.NUM_CLASSES", 3, config=f"Real/{config}.yaml")
    torch.manual_seed(0)
    model = build_model(cfg)
    with EventStorage():
        losses = model(batched_inputs((64, 96), (64, 64)))
    sum(losses.values()).backward()
    lacking = [key for key, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not lacking
    with torch.no_grad():
        outputs = model.eval()(batched_inputs((64, 96), (64, 64)))
    assert all(len(output["instances"]) <= cfg.TEST.DETECTIONS_PER_IMAGE for output in outputs)
