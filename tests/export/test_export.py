"""Export: what an exported model detects is what detectron2 detects."""

from __future__ import annotations

import importlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hypernet_d2.deploy import Detector
from tests.helpers import captures, tiny_cfg
from tests.modeling.backbone.test_backbones import build_patches

from .models import spread_outputs

pytestmark = [pytest.mark.detectron2, captures]

ROOT = Path(__file__).resolve().parents[2]
CONFIG = "BCCD-Detection/hypernet_R_18.yaml"
# Few windows, so that a graph is captured in a second.
FEW = [
    "MODEL.DEVICE", "cpu",
    "MODEL.HYPERNET.FEATURE.IN_FEATURES", "['stem', 'res2', 'res3']",
    "MODEL.HYPERNET.FEATURE.CHANNELS", "6",
    "MODEL.HYPERNET.FEATURE.KERNEL_SIZE", "3",
    "MODEL.HYPERNET.PROPOSALS.SIZES", "[16, 40]",
    "MODEL.HYPERNET.PROPOSALS.ASPECT_RATIOS", "[1.0]",
    "MODEL.HYPERNET.PROPOSALS.POOLER_RESOLUTION", "5",
    "MODEL.HYPERNET.PROPOSALS.FC_DIM", "16",
    "MODEL.RPN.PRE_NMS_TOPK_TEST", "60",
    "MODEL.RPN.POST_NMS_TOPK_TEST", "20",
    "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION", "5",
    "MODEL.ROI_BOX_HEAD.CONV_DIM", "8",
    "MODEL.ROI_BOX_HEAD.FC_DIM", "16",
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.1",
    "INPUT.MIN_SIZE_TEST", "64",
    "INPUT.MAX_SIZE_TEST", "96",
]  # fmt: skip
PAPER = [
    "MODEL.HYPERNET.PROPOSALS.POOLER_TYPE", "ROIPool",
    "MODEL.HYPERNET.BOX_HEAD.CONV_BEFORE_POOLING", "False",
    "MODEL.ROI_BOX_HEAD.POOLER_TYPE", "ROIPool",
    "MODEL.ROI_BOX_HEAD.NORM", "",
]  # fmt: skip
SP = ["MODEL.HYPERNET.PROPOSALS.CONV_BEFORE_POOLING", "True"]


@pytest.fixture(scope="module")
def tool() -> dict:
    return vars(importlib.import_module("hypernet_d2.cli.export"))


def build(*opts: str):
    """A random model whose boxes and scores are spread as a trained one's, and its config."""
    from detectron2.modeling import build_model

    torch.manual_seed(0)
    cfg = tiny_cfg(*FEW, *opts)
    return spread_outputs(build_model(cfg).eval()), cfg


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A function: options -> file of the weights of `build`."""
    folder, done = tmp_path_factory.mktemp("weights"), {}

    def write(*opts: str) -> str:
        if opts not in done:
            done[opts] = folder / f"{len(done)}.pth"
            torch.save({"model": build(*opts)[0].state_dict()}, done[opts])
        return str(done[opts])

    return write


@pytest.fixture(scope="module")
def photographs(tmp_path_factory) -> Path:
    """Images of several shapes, (width, height), with smooth noise. All fit the canvas."""
    folder = tmp_path_factory.mktemp("photographs")
    rng = np.random.default_rng(0)
    for i, size in enumerate([(96, 64), (120, 90), (64, 96), (133, 95), (500, 40), (70, 70)]):
        noise = Image.fromarray(rng.integers(0, 256, (12, 15, 3), dtype=np.uint8))
        noise.resize(size, Image.Resampling.BICUBIC).save(folder / f"{i}{'.PNG' if i else '.png'}")
    return folder


def export(tool, weights, output: Path, *arguments: str, opts: tuple[str, ...] = ()) -> int:
    words = ["--config-file", str(ROOT / "configs" / CONFIG), "--output", str(output)]
    opts = (*FEW, *opts, "MODEL.WEIGHTS", weights(*opts))
    return tool["main"]([*words, *arguments, *opts])


SLOW_CASES = [((), "torch_export"), (PAPER, "torch_export"), (SP, "onnx")]


def needs_onnx(format: str) -> None:
    if format == "onnx":
        for name in ("onnx", "onnxscript", "onnxruntime"):
            pytest.importorskip(name)


@pytest.mark.parametrize(
    ("opts", "format"),
    [
        ((), "onnx"),
        (PAPER, "onnx"),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in SLOW_CASES),
    ],
    ids=["align-onnx", "paper-onnx", "align-torch", "paper-torch", "sp-onnx"],
)
def test_detections_are_those_of_detectron2(
    tool, weights, photographs, tmp_path, capsys, opts, format
):
    needs_onnx(format)
    arguments = ("--format", format, "--check", str(photographs))
    assert export(tool, weights, tmp_path, *arguments, opts=tuple(opts)) == 0
    out = capsys.readouterr().out
    assert "6 images, 0 with a difference above 0.001" in out
    counts = [line.split(": ")[1] for line in out.splitlines() if "detectron2" in line]
    assert len(counts) == 6
    assert all(int(line.split()[0]) > 2 for line in counts), counts
    (file,) = tmp_path.iterdir()
    info = Detector(file).info
    assert info.classes == ("RBC", "WBC", "Platelets")
    assert (info.canvas, info.size_divisibility) == ((96, 96), 8)
    assert (info.min_size, info.max_size) == (64, 96)
    assert b"/tests/" not in file.read_bytes() and b"site-packages" not in file.read_bytes()


def test_a_picture_that_does_not_fit_the_canvas_is_named(
    tool, weights, photographs, tmp_path, capsys
):
    arguments = ("--size", "64", "96", "--format", "torch_export", "--check", str(photographs))
    assert export(tool, weights, tmp_path, *arguments) == 1
    out = capsys.readouterr().out
    (line,) = [line for line in out.splitlines() if "DIFFERS" in line]
    assert line.startswith(str(photographs / "2.PNG")) and line.endswith(
        "DIFFERS: detectron2 resizes it to 96 x 64 (height x width), which does not fit the canvas "
        "of 64 x 96: the file resizes it to 64 x 43; export with a larger --size"
    )
    assert "6 images, 1 with a difference above 0.001" in out


def test_detections_that_differ_are_told():
    from hypernet_d2.cli.export_checks import difference
    from hypernet_d2.deploy import Detections

    def detections(*rows):
        boxes = np.array([row[:4] for row in rows], np.float32).reshape(-1, 4)
        scores = np.array([row[4] for row in rows], np.float32)
        return Detections(boxes, scores, np.array([row[5] for row in rows], np.int64))

    rows = [(0, 0, 9, 9, 0.9, 1), (5, 5, 9, 9, 0.8, 0)]
    some = detections(*rows)
    assert difference(some, detections(*reversed(rows))) == 0
    assert difference(some, detections((0, 0, 9, 9, 0.9, 1))) == float("inf")  # another class
    assert difference(detections(), some) == 0 and difference(some, detections()) == float("inf")
    moved = detections((0, 0, 9, 9.5, 0.9, 1), (5, 5, 9, 9, 0.7, 0))
    assert difference(some, moved) == pytest.approx(0.5)


# The graph itself

CANVAS = (64, 96)
# Of images that fit the canvas: full size, both orientations, not multiples of anything, tiny.
SIZES = [(64, 96), (64, 80), (50, 37), (33, 95), (64, 1), (3, 80), (1, 1)]
NODE = "MODEL.HYPERNET"
MODELS = {
    "align": [],
    "paper": PAPER,
    "sp-align": SP,
    "sp-pool": [*SP, f"{NODE}.PROPOSALS.POOLER_TYPE", "ROIPool"],
    "deconv-gn": [f"{NODE}.FEATURE.UPSAMPLING", "deconv", f"{NODE}.FEATURE.NORM", "GN"],
    "conv-last": [f"{NODE}.FEATURE.CONV_FIRST", "False", f"{NODE}.FEATURE.STRIDE", "8"],
    "vgg": [
        f"{NODE}.TRUNK", "build_vgg_backbone",
        f"{NODE}.FEATURE.IN_FEATURES", "['conv1', 'conv2', 'conv3']",
    ],
    "alexnet": [
        f"{NODE}.TRUNK", "build_alexnet_backbone",
        f"{NODE}.FEATURE.IN_FEATURES", "['conv1', 'conv2', 'conv3']",
    ],
    "fpn": [
        f"{NODE}.TRUNK", "build_resnet_fpn_backbone",
        f"{NODE}.FEATURE.IN_FEATURES", "['p2', 'p3', 'p4']",
        "MODEL.FPN.IN_FEATURES", "['res2', 'res3', 'res4', 'res5']",
        "MODEL.FPN.OUT_CHANNELS", "8",
        "MODEL.RPN.IN_FEATURES", "['hyper']",
    ],
}  # fmt: skip


def photograph(*size: int) -> torch.Tensor:
    """Smooth noise, (h, w, 3) uint8."""
    noise = torch.rand(1, 3, 9, 9) * 255
    return torch.nn.functional.interpolate(noise, size)[0].permute(1, 2, 0).byte()


def padded(image: torch.Tensor, divisor: int) -> torch.Tensor:
    """The image with padding of a value that the graph has to ignore."""
    h, w = image.shape[:2]
    return torch.nn.functional.pad(image, (0, 0, 0, -w % divisor, 0, -h % divisor), value=77)


def by_detectron2(model, image: torch.Tensor):
    """The detections of the stock path, in pixels of the network's input."""
    with torch.no_grad():
        inputs = [{"image": image.permute(2, 0, 1)}]
        return model.inference(inputs, do_postprocess=False)[0]


def assert_same(outputs, expected) -> None:
    boxes, scores, classes = outputs[:3]
    found = scores > 0
    assert found.sum() == len(expected)
    torch.testing.assert_close(boxes[found], expected.pred_boxes.tensor, atol=1e-3, rtol=0)
    torch.testing.assert_close(scores[found], expected.scores, atol=1e-5, rtol=0)
    assert torch.equal(classes[found], expected.pred_classes)


@pytest.mark.parametrize("opts", MODELS.values(), ids=MODELS)
def test_an_image_of_any_shape_gives_what_detectron2_gives(opts):
    from hypernet_d2.export import ExportableDetector, size_divisibility

    model, _ = build(*opts)
    divisor = size_divisibility(model)
    detector = ExportableDetector(model, tuple(-(-side // divisor) * divisor for side in CANVAS))
    counts = []
    for size in SIZES[:-1] if "GN" in opts else SIZES:  # PyTorch's GroupNorm refuses one cell
        image = photograph(*size)
        expected = by_detectron2(model, image)
        outputs = detector(padded(image, divisor), torch.tensor(size), torch.tensor(20))
        assert_same(outputs, expected)
        counts.append(len(expected))
    assert min(counts[:4]) > 3, counts


def test_a_backbone_with_square_input_gets_images_padded_to_the_square(monkeypatch):
    from detectron2.modeling import BACKBONE_REGISTRY, SimpleFeaturePyramid

    from hypernet_d2.export import ExportableDetector, size_divisibility

    def build_vitdet(cfg, input_shape):
        net, scales = build_patches(input_shape.channels), (4.0, 2.0, 1.0)
        return SimpleFeaturePyramid(net, "last", 8, scales, square_pad=96)

    monkeypatch.setitem(BACKBONE_REGISTRY._obj_map, "build_vitdet", build_vitdet)
    maps = ["MODEL.HYPERNET.FEATURE.IN_FEATURES", "['p2', 'p3', 'p4']"]
    model, _ = build("MODEL.HYPERNET.TRUNK", "build_vitdet", *maps)
    assert size_divisibility(model) == 96
    detector = ExportableDetector(model, (96, 96))
    for size in [(50, 37), (96, 64)]:
        image = photograph(*size)
        outputs = detector(padded(image, 96), torch.tensor(size), torch.tensor(20))
        assert_same(outputs, by_detectron2(model, image))


def test_the_shipped_models_architecture_gives_what_detectron2_gives():
    from detectron2.modeling import build_model

    from hypernet_d2 import model_zoo
    from hypernet_d2.export import ExportableDetector, size_divisibility

    cfg = model_zoo.get_config("Digits-Detection/hypernet_tiny.yaml")
    cfg.MODEL.DEVICE = "cpu"
    torch.manual_seed(0)
    model = spread_outputs(build_model(cfg).eval())
    divisor = size_divisibility(model)
    detector = ExportableDetector(model, (240, 320))
    for size in [(240, 320), (240, 167), (99, 318)]:
        image = photograph(*size)
        expected = by_detectron2(model, image)
        assert len(expected) > 3
        outputs = detector(padded(image, divisor), torch.tensor(size), torch.tensor(100))
        assert_same(outputs, expected)


@pytest.mark.parametrize("opts", [[], PAPER], ids=["align", "paper"])
def test_proposals_windows_and_feature_are_those_of_detectron2(opts):
    from detectron2.structures import ImageList

    from hypernet_d2.export import ExportableDetector, size_divisibility

    model, _ = build(*opts)
    size, image = (50, 37), photograph(50, 37)
    x = padded(image, size_divisibility(model))
    outputs = ExportableDetector(model, CANVAS)(x, torch.tensor(size), torch.tensor(20))
    proposals, objectness, windows, feature = outputs[3:]
    with torch.no_grad():
        normalized = (image.permute(2, 0, 1).float() - model.pixel_mean) / model.pixel_std
        images = ImageList.from_tensors([normalized], model.backbone.size_divisibility)
        features = model.backbone(images.tensor)
        (expected,), _ = model.proposal_generator(images, features)
    valid = objectness.isfinite()
    torch.testing.assert_close(feature, features["hyper"][0])
    torch.testing.assert_close(proposals[valid], expected.proposal_boxes.tensor)
    torch.testing.assert_close(objectness[valid], expected.objectness_logits)
    grid, map_size = model.proposal_generator.scorer.grid, feature.shape[1:]
    inside = grid.boxes(map_size)[grid.inside(map_size, size)]
    assert {tuple(w) for w in windows[valid].tolist()} <= {tuple(w) for w in inside.tolist()}


def test_fewer_proposals_are_the_best_ones():
    from hypernet_d2.export import ExportableDetector

    model, _ = build()
    image = photograph(64, 80)
    detector = ExportableDetector(model, CANVAS)
    few = detector(image, torch.tensor((64, 80)), torch.tensor(3))
    many = detector(image, torch.tensor((64, 80)), torch.tensor(20))
    assert few[4].isfinite().sum() == 3
    assert torch.equal(few[3][:3], many[3][:3])
    model.proposal_generator.post_nms_topk[False] = 3
    assert_same(few, by_detectron2(model, image))


@pytest.mark.parametrize("kept", [0, 1, 2, 5])
def test_nms_of_any_number_of_boxes(kept):
    from hypernet_d2.export.operations import nms_in_order

    boxes = torch.tensor([[0.0, 0, 10, 10]]).repeat(6, 1)
    boxes[:kept] += 20 * torch.arange(kept)[:, None]
    boxes[kept:] = boxes[0]  # of the first place, which the first one holds
    valid = torch.ones(6, dtype=torch.bool) if kept else torch.zeros(6, dtype=torch.bool)
    boxes[-1] = torch.nan
    valid[-1] = False
    index, real = nms_in_order(boxes, valid, 0.5, 6)
    assert index[real].tolist() == list(range(kept))


@pytest.mark.slow
def test_a_graph_takes_an_image_without_any_detection(tool, weights, tmp_path):
    opts = ("MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.999", "MODEL.RPN.NMS_THRESH", "0.0")
    assert export(tool, weights, tmp_path, "--format", "torch_export", opts=opts) == 0
    (file,) = tmp_path.iterdir()
    stages = Detector(file).stages(np.zeros((64, 80, 3), np.uint8))
    assert len(stages.detections.scores) == 0 and 1 <= len(stages.proposals) < 20


# A user's mistakes


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (["MODEL.META_ARCHITECTURE", "ProposalNetwork"], "MODEL.META_ARCHITECTURE is Proposal"),
        (
            [
                "MODEL.ROI_HEADS.NAME",
                "CascadeROIHeads",
                "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG",
                True,
            ],
            "MODEL.ROI_HEADS.NAME is CascadeROI",
        ),
    ],
)
def test_what_cannot_be_exported_is_refused(opts, message):
    from hypernet_d2.export import ExportableDetector

    with pytest.raises(ValueError, match=message):
        ExportableDetector(build_stock(*opts), CANVAS)


def build_stock(*opts):
    from detectron2.modeling import build_model

    return build_model(tiny_cfg(*FEW, *opts))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--format", "torchscript"],
            "torchscript: TorchScript is deprecated in PyTorch; use torch_export",
        ),
        (["--format", "torch_export", "--time", "3"], "--time needs an image: --check IMAGE"),
    ],
)
def test_arguments_that_do_not_go_together_are_refused(
    tool, weights, tmp_path, capsys, arguments, message
):
    with pytest.raises(SystemExit):
        export(tool, weights, tmp_path, *arguments)
    assert message in capsys.readouterr().err


def test_a_pytorch_that_cannot_capture_is_refused(tool, weights, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(torch, "__version__", type(torch.__version__)("2.4.1"))
    with pytest.raises(SystemExit):
        export(tool, weights, tmp_path, "--format", "onnx")
    assert "PyTorch 2.4.1 cannot capture a detector" in capsys.readouterr().err


def test_missing_weights_classes_and_images_are_named(tool, weights, tmp_path):
    words = ["--config-file", str(ROOT / "configs" / CONFIG), "--format", "torch_export"]
    words += ["--output", str(tmp_path)]
    with pytest.raises(ValueError, match="MODEL.WEIGHTS is '': expected a trained model's file"):
        tool["main"]([*words, *FEW])
    opts = [*FEW, "MODEL.WEIGHTS", weights(), "DATASETS.TEST", "('digits_val',)"]
    with pytest.raises(ValueError, match="digits_val', of 10 classes, but .*NUM_CLASSES is 3"):
        tool["main"]([*words, *opts])
    with pytest.raises(ValueError, match="--check .*: no .*.jpg, .png.* in this folder"):
        tool["main"]([*words, "--check", str(tmp_path), *opts])
