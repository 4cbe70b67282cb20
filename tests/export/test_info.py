"""Score thresholds of a file, smaller files, and what their commands refuse."""

from __future__ import annotations

import json

import numpy as np
import pytest

from hypernet_d2.deploy import Detector
from tests.helpers import captures

from . import models
from .test_export import needs_onnx, photograph

pytestmark = pytest.mark.detectron2


def test_score_thresholds_are_read_by_class_name(tmp_path):
    from hypernet_d2.export import read_score_thresholds

    path = tmp_path / "score_thresholds.json"
    path.write_text(json.dumps({"bar": 0.7, "dot": 0.01}))
    # A class that the file does not name, and a threshold below the model's, have the model's.
    assert read_score_thresholds(path, ("square", "bar", "dot"), 0.05) == (0.05, 0.7, 0.05)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "cannot be read as json"),
        ("[0.5]", "expected {class name: score threshold}"),
        ('{"cat": 0.5}', "'cat' is no class of the model, .'square', 'bar'."),
        ('{"bar": 1.5}', "the threshold of 'bar' is 1.5; expected 0 to 1"),
        ('{"bar": true}', "the threshold of 'bar' is True; expected 0 to 1"),
    ],
)
def test_wrong_score_thresholds_name_file_and_entry(tmp_path, content, message):
    from hypernet_d2.export import read_score_thresholds

    path = tmp_path / "score_thresholds.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=f"score_thresholds.json: {message}"):
        read_score_thresholds(path, ("square", "bar"), 0.05)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--quantize", "int8"], "--quantize int8 and --calibration FOLDER go together"),
        (["--calibration", "photos"], "--quantize int8 and --calibration FOLDER go together"),
        (["--format", "torch_export", "--quantize", "float16"], "are for --format onnx"),
        (["--format", "torch_export", "--resize-in-file"], "are for --format onnx"),
    ],
)
def test_options_of_onnx_that_do_not_go_together_are_refused(words, message, capsys):
    from hypernet_d2.cli.export import parse_args

    format = [] if "--format" in words else ["--format", "onnx"]
    with pytest.raises(SystemExit):
        parse_args(["--config", "BCCD-Detection/hypernet_R_18", "--output", "x", *format, *words])
    assert message in capsys.readouterr().err


@captures
@pytest.mark.slow
def test_smaller_files_detect_nearly_the_same(tmp_path):
    from hypernet_d2.export import (
        ExportableDetector,
        capture,
        describe,
        quantize_int8,
        write_onnx,
    )

    needs_onnx("onnx")
    model, cfg = models.build("c4")
    detector = ExportableDetector(model, (64, 96))
    info = describe(cfg, detector, classes=("a", "b", "c"), config="c4")
    path = write_onnx(capture(detector), info, tmp_path / "full")
    half = write_onnx(capture(detector), info, tmp_path / "half", half_weights=True)
    assert half.stat().st_size < 0.6 * path.stat().st_size
    images = [np.ascontiguousarray(photograph(64, 96).numpy()) for _ in range(8)]
    quantize_int8(path, tmp_path / "int8.onnx", images)
    assert (tmp_path / "int8.onnx").stat().st_size < 0.5 * path.stat().st_size
    with pytest.raises(ValueError, match="no calibration image"):
        quantize_int8(path, tmp_path / "none.onnx", [])
    full = Detector(path, threads=1)
    for name, least in (("half.onnx", 0.9), ("int8.onnx", 0.5)):
        smaller = Detector(tmp_path / name, threads=1)
        assert smaller.info == full.info
        logits, others = (x.stages(images[0]).feature for x in (full, smaller))
        assert np.corrcoef(logits.ravel(), others.ravel())[0, 1] > least
