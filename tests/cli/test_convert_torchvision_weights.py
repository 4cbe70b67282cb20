"""torchvision's weights in our trunks: random models are converted, and give the same values."""

import importlib
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.helpers import tiny_cfg, write_voc

pytestmark = pytest.mark.detectron2

ROOT = Path(__file__).resolve().parents[2]
MAPS = ["MODEL.HYPERNET.FEATURE.IN_FEATURES", ["conv1", "conv3", "conv5"]]
TRUNK = {
    "vgg16": ["MODEL.HYPERNET.TRUNK", "build_vgg_backbone", *MAPS],
    "alexnet": ["MODEL.HYPERNET.TRUNK", "build_alexnet_backbone", *MAPS],
    "resnet18": ["MODEL.RESNETS.NORM", "FrozenBN"],
}


@pytest.fixture(scope="module")
def tool() -> dict:
    return vars(importlib.import_module("hypernet_d2.cli.convert_torchvision_weights"))


@pytest.fixture(scope="module")
def converted(tool, tmp_path_factory):
    """A function: architecture -> (random torchvision model, path of the converted weights)."""
    from torchvision.models import get_model

    folder, done = tmp_path_factory.mktemp("converted"), {}

    def make(architecture: str, *options: str):
        if (architecture, *options) not in done:
            with torch.device("meta"):  # whose own initialisation takes seconds
                model = get_model(architecture, weights=None).eval()
            for module in model.to_empty(device="cpu").modules():
                if isinstance(module, nn.Conv2d | nn.Linear):
                    nn.init.kaiming_uniform_(module.weight, nonlinearity="relu")
                    if module.bias is not None:
                        nn.init.uniform_(module.bias, -0.1, 0.1)
                if isinstance(module, nn.BatchNorm2d):  # so that statistics and affine part count
                    for values in (module.weight, module.bias, module.running_mean):
                        nn.init.normal_(values, mean=0.5, std=0.2)
                    nn.init.uniform_(module.running_var, 0.5, 2)
            source, target = folder / f"{architecture}.pth", folder / f"{architecture}.pkl"
            torch.save(model.state_dict(), source)
            tool["main"]([architecture, str(source), str(target), *options])
            source.unlink()
            done[(architecture, *options)] = model, str(target)
        return done[(architecture, *options)]

    yield make
    shutil.rmtree(folder)  # half a GB; pytest would keep the last three


@pytest.fixture
def image() -> torch.Tensor:
    """One photograph as it is read: (H, W, 3), RGB, uint8."""
    return torch.randint(0, 256, (64, 96, 3), dtype=torch.uint8)


def as_torchvision_sees(image: torch.Tensor) -> torch.Tensor:
    """(1, 3, H, W) by torchvision's own ImageNet preset, which does not resize here."""
    from torchvision.transforms.functional import normalize

    rgb = image.permute(2, 0, 1) / 255
    return normalize(rgb, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])[None]


def as_detectron2_sees(image: torch.Tensor) -> torch.Tensor:
    """(1, 3, H, W) as the stock mapper and GeneralizedRCNN make it with the default config."""
    cfg = tiny_cfg()
    assert cfg.INPUT.FORMAT == "BGR"
    mean, std = (
        torch.tensor(v).reshape(3, 1, 1) for v in (cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD)
    )
    return ((image.permute(2, 0, 1).flip(0).float() - mean) / std)[None]


def assert_same(got: torch.Tensor, expected: torch.Tensor) -> None:
    """To 1e-5 of the map's largest value."""
    assert got.shape == expected.shape
    assert expected.abs().max() > 0
    assert (got - expected).abs().max() <= 1e-5 * expected.abs().max()


@torch.no_grad()
def test_vgg16_gives_torchvisions_maps(converted, image):
    from detectron2.checkpoint import DetectionCheckpointer
    from torchvision.models.feature_extraction import create_feature_extractor

    from hypernet_d2.modeling import VGG

    source, path = converted("vgg16")
    nodes = {f"features.{i}": f"conv{k}" for k, i in enumerate((3, 8, 15, 22, 29), start=1)}
    expected = create_feature_extractor(source, nodes)(as_torchvision_sees(image))
    trunk = VGG(out_features=tuple(nodes.values())).eval()
    DetectionCheckpointer(trunk).load(path)
    got = trunk(as_detectron2_sees(image))
    assert list(got) == ["conv1", "conv2", "conv3", "conv4", "conv5"]
    for name in got:
        assert_same(got[name], expected[name])


@torch.no_grad()
def test_alexnet_gives_torchvisions_maps_on_equally_padded_maps(converted, image):
    from detectron2.checkpoint import DetectionCheckpointer
    from torch.nn.functional import pad

    from hypernet_d2.modeling import AlexNet
    from hypernet_d2.modeling.backbone.alexnet import CONV1_PADDING, POOL_PADDING

    source, path = converted("alexnet")
    trunk = AlexNet(out_features=("conv1", "conv2", "conv3", "conv4", "conv5")).eval()
    DetectionCheckpointer(trunk).load(path)
    got = trunk(as_detectron2_sees(image))

    first, *layers = source.features
    x = torch.relu(
        nn.functional.conv2d(
            pad(as_torchvision_sees(image), CONV1_PADDING), first.weight, first.bias, 4
        )
    )
    maps, pools = [x], 0
    for layer in layers[1:-1]:
        if isinstance(layer, nn.MaxPool2d):
            pools += 1
            x = pad(x, POOL_PADDING[pools])
        x = layer(x.clone())
        if isinstance(layer, nn.ReLU):
            maps.append(x)
    for (name, value), expected in zip(got.items(), maps, strict=True):
        stride = trunk.output_shape()[name].stride
        assert value.shape[-2:] == (64 // stride, 96 // stride)
        assert_same(value, expected)


@torch.no_grad()
@pytest.mark.parametrize("architecture", ["resnet18", "resnet50", "resnet101"])
def test_resnets_give_torchvisions_maps_in_the_stock_backbone(converted, image, architecture):
    from detectron2.checkpoint import DetectionCheckpointer
    from detectron2.modeling.backbone import BasicStem, ResNet
    from torchvision.models.feature_extraction import create_feature_extractor

    source, path = converted(architecture)
    nodes = {f"layer{i}": f"res{i + 1}" for i in range(1, 5)}
    expected = create_feature_extractor(source, nodes)(as_torchvision_sees(image))
    depth = int(architecture[6:])
    stride = {} if depth == 18 else {"stride_in_1x1": False}
    trunk = ResNet(
        BasicStem(norm="FrozenBN"),
        ResNet.make_default_stages(depth, norm="FrozenBN", **stride),
        out_features=list(nodes.values()),
    ).eval()
    DetectionCheckpointer(trunk).load(path)
    got = trunk(as_detectron2_sees(image))
    for name in nodes.values():
        assert_same(got[name], expected[name])


def trunk_weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {k: v for k, v in model.state_dict().items() if k.startswith("backbone.trunk.")}


def contents(path: str) -> dict[str, torch.Tensor]:
    model = pickle.loads(Path(path).read_bytes())["model"]
    return {name: torch.from_numpy(value) for name, value in model.items()}


@pytest.mark.parametrize("architecture", ["vgg16", "alexnet", "resnet18"])
def test_every_weight_of_the_trunk_is_found_in_a_whole_hypernet(converted, architecture):
    """Keys are matched by their endings: none may be ambiguous, and none missing."""
    from detectron2.modeling import build_model

    from hypernet_d2.checkpoint import HyperNetCheckpointer

    _, path = converted(architecture)
    model = build_model(tiny_cfg(*TRUNK[architecture]))
    HyperNetCheckpointer(model).load(path)
    stored = contents(path)
    for name, value in trunk_weights(model).items():
        assert torch.equal(value, stored[name.removeprefix("backbone.trunk.")]), name


def test_every_stored_weight_has_its_place_in_faster_rcnn(converted):
    from detectron2.modeling import build_model

    from hypernet_d2 import model_zoo
    from hypernet_d2.checkpoint import HyperNetCheckpointer

    _, path = converted("alexnet")
    cfg = model_zoo.get_config("PascalVOC-Detection/faster_rcnn_AlexNet.yaml")
    cfg.MODEL.DEVICE = "cpu"
    model = build_model(cfg)
    HyperNetCheckpointer(model).load(path)
    state = model.state_dict()
    for name, value in contents(path).items():
        (place,) = (key for key in state if key.endswith(f".{name}"))
        assert torch.equal(state[place], value), name


@torch.no_grad()
@pytest.mark.parametrize(
    ("architecture", "channels", "side"), [("vgg16", 512, 7), ("alexnet", 256, 6)]
)
def test_the_fully_connected_layers_are_those_of_the_box_head(
    converted, architecture, channels, side
):
    from detectron2.checkpoint import DetectionCheckpointer
    from detectron2.layers import ShapeSpec
    from detectron2.modeling.roi_heads import FastRCNNConvFCHead

    source, path = converted(architecture)
    shape = ShapeSpec(channels=channels, height=side, width=side)
    holder = nn.Module()
    holder.box_head = FastRCNNConvFCHead(shape, conv_dims=[], fc_dims=[4096, 4096])
    DetectionCheckpointer(holder).load(path)
    pooled = torch.rand(2, channels, side, side)
    expected = torch.relu(source.classifier[:-2](pooled.flatten(1)))
    assert_same(holder.box_head(pooled), expected)


def test_what_has_no_place_is_left_out_and_named(tool, capsys, tmp_path):
    from torchvision.models import get_model

    state = get_model("alexnet", weights=None).state_dict()
    _, left_out = tool["convert"]("alexnet", state)
    assert left_out == ["classifier.6.weight", "classifier.6.bias"]
    weights, left_out = tool["convert"]("alexnet", state, trunk_only=True)
    assert len(left_out) == 6 and all(name.startswith("conv") for name in weights)
    assert len(weights) + len(left_out) == len(state)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda s: s.pop("features.3.bias"),
            r"mine\.pth is not the alexnet.*missing: features\.3\.bias",
        ),
        (lambda s: s.update(extra=torch.zeros(1)), "not expected: extra"),
        (
            lambda s: s.update({"features.0.weight": torch.zeros(64, 3, 7, 7)}),
            r"of another shape: features\.0\.weight is \(64, 3, 7, 7\) instead of \(64, 3, 11",
        ),
    ],
)
def test_a_checkpoint_of_another_model_is_refused_with_its_keys(tool, change, message):
    from torchvision.models import get_model

    with torch.device("meta"):
        state = get_model("alexnet", weights=None).state_dict()
    change(state)
    with pytest.raises(ValueError, match=message):
        tool["convert"]("alexnet", state, source="mine.pth")


def test_files_without_batch_counters_are_taken(tool):
    """torchvision's first ResNet files have none."""
    from torchvision.models import get_model

    state = get_model("resnet18", weights=None).state_dict()
    old = {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}
    assert (
        tool["convert"]("resnet18", old)[0].keys() == tool["convert"]("resnet18", state)[0].keys()
    )


def test_a_checkpoint_cannot_run_code(tool, tmp_path):
    class Malicious:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"features.0.weight": Malicious()}, tmp_path / "in.pth")
    with pytest.raises(ValueError, match=r"in\.pth: cannot be read as weights only"):
        tool["main"](["alexnet", str(tmp_path / "in.pth"), str(tmp_path / "out.pkl")])
    assert not (tmp_path / "ran").exists() and not (tmp_path / "out.pkl").exists()


def test_a_converted_trunk_trains_and_its_first_stages_stay_frozen(converted, tmp_path):
    from hypernet_d2.data import register_voc_style
    from hypernet_d2.engine import Trainer

    write_voc(tmp_path / "data")
    register_voc_style("converted_voc", tmp_path / "data", "all", ["square", "bar"])
    _, path = converted("vgg16")
    cfg = tiny_cfg(
        *TRUNK["vgg16"],
        "MODEL.WEIGHTS", path,
        "MODEL.BACKBONE.FREEZE_AT", 2,
        "MODEL.ROI_HEADS.NUM_CLASSES", 2,
        "DATASETS.TRAIN", ("converted_voc",),
        "DATASETS.TEST", (),
        "SOLVER.MAX_ITER", 3,
        "SOLVER.STEPS", (),
        "SOLVER.WARMUP_ITERS", 0,
        "OUTPUT_DIR", str(tmp_path),
    )  # fmt: skip
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=False)
    before = {k: v.clone() for k, v in trunk_weights(trainer.model).items()}
    trainer.train()
    changed = {k: not torch.equal(v, before[k]) for k, v in trunk_weights(trainer.model).items()}
    stages = {k.split(".")[2] for k in changed}
    assert stages == {"conv1", "conv2", "conv3", "conv4", "conv5"}
    for key, change in changed.items():
        assert change == (key.split(".")[2] not in ("conv1", "conv2")), key
