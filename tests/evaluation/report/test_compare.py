"""The comparison of models by their detections."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from tests.evaluation.report.cases import make_set

pytestmark = pytest.mark.detectron2

BOXES = [[0, 0, 40, 40], [60, 0, 40, 40], [0, 60, 40, 40]]
OBJECTS = {0: [("owl", box) for box in BOXES], 1: [("owl", BOXES[0])]}


@pytest.fixture
def run(tmp_path):
    """A function that gives what `read_run` gives, for detections {image: entries}."""
    pytest.importorskip("matplotlib")
    from hypernet_d2.evaluation.report.advice import RunFiles
    from hypernet_d2.evaluation.report.analysis import analyze
    from hypernet_d2.evaluation.report.training import Training

    for i in range(2):
        Image.fromarray(np.zeros((200, 200, 3), np.uint8)).save(tmp_path / f"{i}.png")
    files = {i: str(tmp_path / f"{i}.png") for i in range(2)}

    def call(detections, objects=OBJECTS):
        data = make_set(objects, detections, images=2, files=files)
        return analyze(data), RunFiles(None, Training({}), None, None)

    return call


def test_what_each_model_finds_and_where_they_differ(run):
    from hypernet_d2.evaluation.report import comparison_sections
    from hypernet_d2.evaluation.report.page import Picture, Table

    good = [("owl", box, 0.9) for box in BOXES]
    models = {"A": run({0: good}), "B": run({0: good[:1], 1: [("owl", BOXES[0], 0.9)]})}
    sections = {section.title: section.blocks for section in comparison_sections(models)}
    (table,) = [b for b in sections["Objects that each model finds"] if isinstance(b, Table)]
    assert table.rows == [["A", "3", "2"], ["B", "2", "1"], ["any model", "4", ""]]
    pictures = [b for b in sections["Images that differ most"] if isinstance(b, Picture)]
    assert [picture.caption.split("/")[-1] for picture in pictures] == [
        "0.png: errors of A 0, B 2", "1.png: errors of A 1, B 0"
    ]  # fmt: skip
    (table,) = [b for b in sections["Errors by kind"] if isinstance(b, Table)]
    assert table.rows[-1][::2] == ["missed", "1", "2"]


def test_other_objects_are_refused(run):
    from hypernet_d2.evaluation.report import comparison_sections

    good = {0: [("owl", BOXES[0], 0.9)]}
    with pytest.raises(ValueError, match="B: evaluated on 'set' with 1 objects.* with 4"):
        comparison_sections({"A": run(good), "B": run(good, {0: [("owl", BOXES[0])]})})
