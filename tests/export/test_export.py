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
    model = build_model(cfg).eval()
    scorer, predictor = model.proposal_generator.scorer, model.roi_heads.box_predictor
    spread = {
        scorer.objectness: 1.0,
        scorer.deltas: 0.3,
        predictor.cls_score: 2.0,
        predictor.bbox_pred: 2.0,
    }

    def scale(layer, _, output):
        factor = spread[layer] / output.std()
        layer.weight.data.mul_(factor)
        return (output - layer.bias) * factor + layer.bias

    hooks = [layer.register_forward_hook(scale) for layer in spread]
    with torch.no_grad():
        image = torch.rand(3, 64, 80) * 255
        feature = model.backbone(((image - model.pixel_mean) / model.pixel_std)[None])["hyper"]
        boxes = [scorer.grid.boxes(feature.shape[2:])]
        scorer.forward_boxes(feature, boxes)
        model.inference([{"image": image}])
    for hook in hooks:
        hook.remove()
    return model, cfg


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
    """Three images: smooth noise, one as large as the canvas, the others larger."""
    folder = tmp_path_factory.mktemp("photographs")
    rng = np.random.default_rng(0)
    for i, size in enumerate([(80, 64), (160, 128), (200, 160)]):
        noise = Image.fromarray(rng.integers(0, 256, (12, 15, 3), dtype=np.uint8))
        noise.resize(size, Image.Resampling.BICUBIC).save(folder / f"{i}.png")
    return folder


def export(tool, weights, output: Path, *arguments: str, opts: tuple[str, ...] = ()) -> int:
    words = ["--config-file", str(ROOT / "configs" / CONFIG), "--output", str(output)]
    opts = (*FEW, *opts, "MODEL.WEIGHTS", weights(*opts))
    return tool["main"]([*words, "--size", "64", "80", *arguments, *opts])


def needs_onnx(format: str) -> None:
    if format == "onnx":
        for name in ("onnx", "onnxscript", "onnxruntime"):
            pytest.importorskip(name)


@pytest.mark.parametrize(
    ("opts", "format"),
    [
        ((), "onnx"),
        ((), "torch_export"),
        (PAPER, "onnx"),
        (PAPER, "torch_export"),
        (SP, "onnx"),
    ],
    ids=["align-onnx", "align-torch", "paper-onnx", "paper-torch", "sp-onnx"],
)
def test_detections_are_those_of_detectron2(
    tool, weights, photographs, tmp_path, capsys, opts, format
):
    needs_onnx(format)
    arguments = ("--format", format, "--check", str(photographs))
    assert export(tool, weights, tmp_path, *arguments, opts=tuple(opts)) == 0
    counts = [line for line in capsys.readouterr().out.splitlines() if "detectron2" in line]
    assert len(counts) == 3
    assert all(int(line.split()[1]) > 2 for line in counts), counts
    (file,) = tmp_path.iterdir()
    info = Detector(file).info
    assert info.classes == ("RBC", "WBC", "Platelets")
    assert (info.canvas, info.min_size, info.max_size) == ((64, 80), 64, 96)
    assert b"/tests/" not in file.read_bytes() and b"site-packages" not in file.read_bytes()


def test_detections_that_differ_are_told(tool):
    from hypernet_d2.deploy import Detections

    def detections(*rows):
        boxes = np.array([row[:4] for row in rows], np.float32).reshape(-1, 4)
        scores = np.array([row[4] for row in rows], np.float32)
        return Detections(boxes, scores, np.array([row[5] for row in rows], np.int64))

    difference = tool["difference"]
    rows = [(0, 0, 9, 9, 0.9, 1), (5, 5, 9, 9, 0.8, 0)]
    some = detections(*rows)
    assert difference(some, detections(*reversed(rows))) == 0
    assert difference(some, detections((0, 0, 9, 9, 0.9, 1))) == float("inf")  # another class
    assert difference(detections(), some) == 0 and difference(some, detections()) == float("inf")
    moved = detections((0, 0, 9, 9.5, 0.9, 1), (5, 5, 9, 9, 0.7, 0))
    assert difference(some, moved) == pytest.approx(0.5)


# The graph itself


def by_detectron2(model, image: torch.Tensor, size: tuple[int, int]):
    """Detections and proposals of the stock path for an image padded to a canvas (H, W, 3)."""
    from detectron2.structures import ImageList

    x = (image.permute(2, 0, 1).float() - model.pixel_mean) / model.pixel_std
    x[:, size[0] :], x[:, :, size[1] :] = 0, 0
    images = ImageList(x[None], [size])
    with torch.no_grad():
        features = model.backbone(images.tensor)
        proposals, _ = model.proposal_generator(images, features)
        detections, _ = model.roi_heads(images, features, proposals)
    return detections[0], proposals[0], features["hyper"][0]


@pytest.mark.parametrize("size", [(64, 80), (50, 37), (3, 80)])
def test_an_image_on_a_larger_canvas_is_one_of_a_padded_batch(size):
    from hypernet_d2.export import ExportableDetector

    model, _ = build()
    image = torch.randint(0, 256, (64, 80, 3), dtype=torch.uint8)
    expected, expected_proposals, hyper = by_detectron2(model, image, size)
    detector = ExportableDetector(model)
    outputs = detector(image, torch.tensor(size), torch.tensor(20))
    boxes, scores, classes, proposals, objectness, windows, feature = outputs
    found = scores > 0
    assert found.sum() == len(expected) > 0
    torch.testing.assert_close(boxes[found], expected.pred_boxes.tensor)
    torch.testing.assert_close(scores[found], expected.scores)
    assert torch.equal(classes[found], expected.pred_classes)
    real = objectness.isfinite()
    torch.testing.assert_close(proposals[real], expected_proposals.proposal_boxes.tensor)
    torch.testing.assert_close(objectness[real], expected_proposals.objectness_logits)
    torch.testing.assert_close(feature, hyper)
    scorer = model.proposal_generator.scorer
    inside = scorer.grid.inside(feature.shape[1:], size)
    assert {tuple(w) for w in windows[real].tolist()} <= {
        tuple(w) for w in scorer.grid.boxes(feature.shape[1:])[inside].tolist()
    }


def test_fewer_proposals_are_the_best_ones():
    from hypernet_d2.export import ExportableDetector

    model, _ = build()
    image = torch.randint(0, 256, (64, 80, 3), dtype=torch.uint8)
    detector = ExportableDetector(model)
    few = detector(image, torch.tensor((64, 80)), torch.tensor(3))
    many = detector(image, torch.tensor((64, 80)), torch.tensor(20))
    assert few[4].isfinite().sum() == 3
    assert torch.equal(few[3][:3], many[3][:3])
    model.proposal_generator.post_nms_topk[False] = 3
    expected = by_detectron2(model, image, (64, 80))[0]
    torch.testing.assert_close(few[0][few[1] > 0], expected.pred_boxes.tensor)


@pytest.mark.parametrize("kept", [0, 1, 2, 5])
def test_suppression_of_any_number_of_boxes(kept):
    from hypernet_d2.export.exportable import _suppress

    boxes = torch.tensor([[0.0, 0, 10, 10]]).repeat(6, 1)
    boxes[:kept] += 20 * torch.arange(kept)[:, None]
    boxes[kept:] = boxes[0]  # of the first place, which the first one holds
    valid = torch.ones(6, dtype=torch.bool) if kept else torch.zeros(6, dtype=torch.bool)
    boxes[-1] = torch.nan
    valid[-1] = False
    index, real = _suppress(boxes, valid, 0.5, 6)
    assert index[real].tolist() == list(range(kept))


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
        (["MODEL.MASK_ON", True], "MODEL.MASK_ON or MODEL.KEYPOINT_ON is True"),
        (["MODEL.META_ARCHITECTURE", "ProposalNetwork"], "MODEL.META_ARCHITECTURE is Proposal"),
        (["MODEL.ROI_HEADS.NAME", "StandardROIHeads"], "MODEL.ROI_HEADS.NAME is StandardROI"),
    ],
)
def test_what_cannot_be_exported_is_refused(opts, message):
    from hypernet_d2.export import ExportableDetector

    with pytest.raises(ValueError, match=message):
        ExportableDetector(build_stock(*opts))


def build_stock(*opts):
    from detectron2.modeling import build_model

    return build_model(tiny_cfg(*FEW, *opts))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--format", "torchscript"], "torchscript: PyTorch gave TorchScript up"),
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
    with pytest.raises(ValueError, match="digits_val, of 10 classes, but .*NUM_CLASSES is 3"):
        tool["main"]([*words, *opts])
    with pytest.raises(ValueError, match="no .jpg, .jpeg or .png in this folder"):
        tool["main"]([*words, "--check", str(tmp_path), *opts])
