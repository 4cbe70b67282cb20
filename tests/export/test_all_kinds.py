"""Baselines, masks, parts and keypoints: an exported model predicts what detectron2 does."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hypernet_d2.deploy import Detector
from tests.helpers import captures

from . import models
from .test_export import CANVAS, assert_same, needs_onnx, padded, photograph

pytestmark = [pytest.mark.detectron2, captures]

# Of images that fill the canvas, and that do not: both orientations, odd sizes.
SIZES = [(64, 96), (50, 37), (33, 95), (64, 17)]
FIELDS = {
    "masks": "pred_masks",
    "part_masks": "pred_part_masks",
    "keypoint_heat_maps": "pred_keypoint_heatmaps",
}


def exportable(model):
    from hypernet_d2.export import ExportableDetector, size_divisibility

    divisor = size_divisibility(model)
    canvas = tuple(-(-side // divisor) * divisor for side in CANVAS)
    return ExportableDetector(model, canvas), divisor


@pytest.mark.parametrize("name", models.CONFIGS)
def test_the_graph_gives_what_detectron2_gives(name):
    model, _ = models.build(name)
    detector, divisor = exportable(model)
    counts = []
    for size in SIZES:
        image = photograph(*size)
        with torch.no_grad():
            inputs = [{"image": image.permute(2, 0, 1)}]
            expected = model.inference(inputs, do_postprocess=False)[0]
        outputs = detector(padded(image, divisor), torch.tensor(size), torch.tensor(20))
        assert_same(outputs, expected)
        for head, maps in zip(detector.heads.outputs, outputs[7:], strict=True):
            wanted = expected.get(FIELDS[head])
            torch.testing.assert_close(maps[: len(expected)], wanted, atol=1e-4, rtol=1e-4)
        counts.append(len(expected))
    assert min(counts) > 2 or name == "vgg"
    assert max(counts) <= 30


def test_a_file_with_masks_and_keypoints_gives_what_detectron2_gives(tmp_path):
    """Through torch.export and NumPy, in pixels of the image, which is resized."""
    check_file("fpn with masks and keypoints", "torch_export", tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("format", ["torch_export", "onnx"])
@pytest.mark.parametrize("name", models.CONFIGS)
def test_a_file_of_each_kind_gives_what_detectron2_gives(name, format, tmp_path):
    check_file(name, format, tmp_path)


def check_file(name: str, format: str, folder) -> None:
    from detectron2.engine import DefaultPredictor

    from hypernet_d2.cli.export_checks import by_detectron2, differences
    from hypernet_d2.export import capture, describe, write_onnx, write_torch

    needs_onnx(format)
    model, cfg = models.build(name)
    cfg.MODEL.WEIGHTS = ""  # of the predictor, which gets the model
    detector, _ = exportable(model)
    classes = tuple(map(str, range(cfg.MODEL.ROI_HEADS.NUM_CLASSES)))
    info = describe(cfg, detector, classes=classes, config=name)
    write = write_onnx if format == "onnx" else write_torch
    file = Detector(write(capture(detector), info, folder / "model"), threads=1)
    predictor = DefaultPredictor(cfg)
    predictor.model = model
    for size in ((128, 192), (60, 70), (33, 97)):
        image = np.ascontiguousarray(photograph(*size).numpy())
        expected = by_detectron2(predictor, image)
        found = file.instances(image)
        assert len(expected.detections.scores) > 2 or name == "vgg"
        largest, pixels = differences(expected, found)
        assert largest < 2e-3 and pixels < 0.02
        for one, other in zip(found[1:], expected[1:], strict=True):
            assert (one is None) == (other is None)
            assert one is None or (one.shape, one.dtype) == (other.shape, other.dtype)
