"""Execution providers, runtimes, score thresholds of classes, and graphs that resize."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from hypernet_d2.deploy import Detector
from hypernet_d2.deploy.providers import find_providers

from . import toy
from .test_detector import image_of

AVAILABLE = ["CUDAExecutionProvider", "CPUExecutionProvider"]


def test_providers_by_name():
    assert find_providers(None, AVAILABLE) == ["CPUExecutionProvider"]
    assert find_providers(["cuda"], AVAILABLE) == AVAILABLE
    assert find_providers("cudaexecutionprovider", AVAILABLE) == AVAILABLE
    assert find_providers(["cpu", "cuda"], AVAILABLE) == AVAILABLE[::-1]
    with pytest.raises(ValueError, match="unknown provider 'gpu'; expected one of cpu, cuda"):
        find_providers(["gpu"], AVAILABLE)


def test_a_missing_provider_is_replaced_with_a_warning(caplog):
    assert find_providers(["coreml", "cuda"], AVAILABLE) == AVAILABLE
    (message,) = caplog.messages
    assert message.startswith("provider coreml: this onnxruntime does not have it")
    assert "falling back" in message


@pytest.fixture(scope="module")
def onnx_file(tmp_path_factory):
    for name in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(name)
    return toy.write_onnx(tmp_path_factory.mktemp("toy") / "toy.onnx")


def test_a_detector_without_its_provider_runs_on_the_cpu(onnx_file, caplog):
    detector = Detector(onnx_file, providers=["tensorrt"])
    assert len(detector(image_of(96, 128)).scores) == 2
    assert "provider tensorrt" in caplog.messages[0]
    with pytest.raises(ValueError, match="unknown provider 'gpu'"):
        Detector(onnx_file, providers=["gpu"])


def test_a_runtime_that_does_not_run_the_file_is_refused(onnx_file):
    with pytest.raises(ValueError, match="runtime is 'torch'; expected onnxruntime or openvino"):
        Detector(onnx_file, runtime="torch")
    with pytest.raises(ValueError, match="providers are onnxruntime's, but the runtime is open"):
        Detector(onnx_file, runtime="openvino", providers=["cpu"])


def test_openvino_finds_what_onnxruntime_does(onnx_file, tmp_path):
    pytest.importorskip("openvino", reason="OpenVINO is not installed")
    detectors = Detector(onnx_file), Detector(onnx_file, runtime="openvino", threads=1)
    for image in (image_of(96, 128), image_of(48, 50, red=0), image_of(30, 64, red=255)):
        one, other = (detector(image) for detector in detectors)
        for a, b in zip(one, other, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-4)
    (tmp_path / "text.onnx").write_text("no model")
    with pytest.raises(ValueError, match="text.onnx: expected an ONNX file that tools/export"):
        Detector(tmp_path / "text.onnx", runtime="openvino")


def test_score_thresholds_of_classes_are_the_default(tmp_path):
    # The toy's second object, of class 0, has a score of 0.15; the first, of class 1, has 0.502.
    image = image_of(96, 128)

    def scores(thresholds):
        info = dataclasses.replace(toy.INFO, score_thresholds=thresholds)
        detector = Detector(toy.write_torch(tmp_path / "toy.pt2", info.to_json()))
        found = detector(image), detector(image, score_threshold=0.1)
        return [one.scores.astype(float).round(3).tolist() for one in found]

    assert scores((0.1, 0.6)) == [[0.15], [0.502, 0.15]]
    assert scores((0.2, 0.5)) == [[0.502], [0.502, 0.15]]


def test_a_file_of_format_2_still_loads():
    values = json.loads(toy.INFO.to_json())
    for name in ("score_thresholds", "heads", "keypoint_margin", "resizes"):
        del values[name]
    text = json.dumps({**values, "format_version": 2})
    assert type(toy.INFO).from_json(text, "a.onnx") == toy.INFO
    with pytest.raises(ValueError, match="expected the metadata"):
        type(toy.INFO).from_json(json.dumps({**values, "format_version": 3}), "a.onnx")


@pytest.mark.detectron2
def test_a_graph_that_resizes_finds_the_same_in_images_of_any_size(onnx_file, tmp_path):
    onnx_ir = pytest.importorskip("onnx_ir")
    from hypernet_d2.deploy.metadata import KEY
    from hypernet_d2.export.onnx_resizing import add_resizing

    info = dataclasses.replace(toy.INFO, resizes=True)
    model = onnx_ir.load(onnx_file)
    model.metadata_props[KEY] = info.to_json()
    add_resizing(model, info)
    onnx_ir.save(model, tmp_path / "resizes.onnx")
    plain, resizes = Detector(onnx_file), Detector(tmp_path / "resizes.onnx")
    rng = np.random.default_rng(0)
    for size in [(96, 128), (48, 64), (7, 5), (61, 90), (200, 50), (30, 400)]:
        image = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
        assert resizes.inputs(image)["image"].shape == image.shape
        one, other = plain.stages(image), resizes.stages(image)
        np.testing.assert_allclose(one.proposals, other.proposals, atol=1e-3)
        np.testing.assert_allclose(one.detections.boxes, other.detections.boxes, atol=1e-3)
        np.testing.assert_allclose(one.detections.scores, other.detections.scores, atol=1e-3)
        assert np.abs(one.feature - other.feature).max() <= 1  # one gray level
