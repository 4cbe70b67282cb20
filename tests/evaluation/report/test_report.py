"""The report's files, from what a training leaves."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

from tests.evaluation.sets import BOXES, coco_content, write_coco
from tests.helpers import tiny_cfg

pytestmark = pytest.mark.detectron2


@pytest.fixture
def output_dir(tmp_path, catalog):
    """OUTPUT_DIR of a model that finds the owls and a place without an object, in two images."""
    pytest.importorskip("matplotlib")
    from detectron2.data.datasets import register_coco_instances

    content = coco_content()
    path = write_coco(tmp_path / "set", content)
    register_coco_instances("report_set", {}, str(path), str(path.parent))
    catalog.append("report_set")
    folder = tmp_path / "out & <b>"
    (folder / "inference").mkdir(parents=True)
    cfg = tiny_cfg("DATASETS.TRAIN", ("report_set",), "DATASETS.TEST", ("report_set",))
    (folder / "config.yaml").write_text(cfg.dump())
    rows = [{"iteration": i, "total_loss": 2.0 - i / 20, "loss_cls": 1.0} for i in range(0, 20, 5)]
    rows.append({"iteration": 19, "bbox/AP": 30.0, "validation_loss": 1.5})
    (folder / "metrics.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_detections(
        folder,
        [
            {"image_id": 1, "category_id": 1, "bbox": BOXES["owl"], "score": 0.9},
            {"image_id": 2, "category_id": 1, "bbox": BOXES["owl"], "score": 0.7},
            {"image_id": 2, "category_id": 3, "bbox": [50, 0, 9, 9], "score": 0.6},
        ],
    )
    return folder


def write_detections(folder, detections):
    (folder / "inference/report_set_instances_results.json").write_text(json.dumps(detections))


def table(markdown: str, title: str) -> list[list[str]]:
    section = markdown.split(f"\n## {title}")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]


def test_the_figures(output_dir):
    from hypernet_d2.evaluation.report import write_report

    write_report(output_dir)
    text = (output_dir / "report.md").read_text()
    header, _, row = table(text, "Result")
    assert dict(zip(header, row, strict=True)) == {
        "set": "report_set", "images": "2", "objects": "6", "AP": "33.3", "AP50": "33.3",
        "AP75": "33.3", "AR": "33.3", "found": "2 (33 %)", "wrong": "1",
    }  # fmt: skip
    assert [row[:3] for row in table(text, "AP by class")[2:]] == [
        ["owl", "2", "100.0"], ["dog", "2", "0.0"], ["cat", "2", "0.0"]
    ]  # fmt: skip
    errors = {row[0]: row[1:3] for row in table(text, "Errors by kind")[2:]}
    assert errors["missed"][1] == "4"
    assert errors["background"] == ["0.0", "1"]
    assert json.loads((output_dir / "score_thresholds.json").read_text()) == {"owl": 0.7}


def test_the_html_is_one_file_and_the_markdown_has_pictures(output_dir):
    from PIL import Image

    from hypernet_d2.evaluation.report import write_report

    (output_dir / "report").mkdir()
    (output_dir / "report/worst_99.jpg").write_bytes(b"of an earlier report")
    text = write_report(output_dir).read_text()
    sources = re.findall(r'src="([^"]*)"', text)
    assert len(sources) >= 10
    assert all(source.startswith("data:image/") for source in sources)
    assert "://" not in text
    assert "<b>" not in text and "out &amp; &lt;b&gt;" in text
    names = re.findall(r"\]\((report/[^)]*)\)", (output_dir / "report.md").read_text())
    assert {f"report/{path.name}" for path in (output_dir / "report").iterdir()} == set(names)
    assert len(names) == len(sources)
    for name in names:
        with Image.open(output_dir / name) as picture:
            assert min(picture.size) > 50


def test_a_model_without_detections(output_dir):
    from hypernet_d2.evaluation.report import write_report

    write_detections(output_dir, [])
    (output_dir / "metrics.json").unlink()
    write_report(output_dir)
    text = (output_dir / "report.md").read_text()
    assert table(text, "Result")[2][3:] == ["0.0", "0.0", "0.0", "0.0", "0 (0 %)", "0"]
    assert "no curves of a training" in text
    assert json.loads((output_dir / "score_thresholds.json").read_text()) == {}


def test_what_is_missing_is_named(output_dir):
    from hypernet_d2.evaluation.report import write_report

    with pytest.raises(KeyError, match="'other_set'.*--data"):
        write_report(output_dir, "other_set")
    write_detections(output_dir, [{"image_id": 7, "category_id": 1, "bbox": [0] * 4, "score": 1}])
    with pytest.raises(ValueError, match="1 images .*'report_set'.*: 7"):
        write_report(output_dir)
    (output_dir / "inference/report_set_instances_results.json").write_text("[")
    with pytest.raises(ValueError, match="report_set_instances_results.json"):
        write_report(output_dir)
    (output_dir / "inference/report_set_instances_results.json").unlink()
    with pytest.raises(FileNotFoundError, match="hypernet-d2 eval"):
        write_report(output_dir)
    (output_dir / "config.yaml").unlink()
    with pytest.raises(FileNotFoundError, match="config.yaml"):
        write_report(output_dir)


def test_rows_of_an_earlier_run_are_left_out(tmp_path):
    from hypernet_d2.evaluation.report.training import read_training

    rows = [(0, 9.0), (20, 8.0), (40, 7.0), (0, 3.0), (20, 2.0)]
    lines = [json.dumps({"iteration": i, "total_loss": loss}) for i, loss in rows]
    (tmp_path / "metrics.json").write_text("\n".join([*lines, '{"iteration": 4']))
    iterations, losses = read_training(tmp_path).curves["total_loss"]
    assert iterations.tolist() == [0, 20]
    assert losses.tolist() == [3.0, 2.0]


class TestAdvice:
    """Each rule names its figures, and is silent where they are good."""

    def advice(
        self, objects, detections, *opts, images: int = 1, curves=None, counts=None, trained=None
    ):
        from hypernet_d2.evaluation.report.advice import RunFiles, give_advice
        from hypernet_d2.evaluation.report.analysis import analyze
        from hypernet_d2.evaluation.report.training import Training
        from tests.evaluation.report.cases import make_set

        cfg = tiny_cfg("INPUT.MIN_SIZE_TEST", 200, "INPUT.MAX_SIZE_TEST", 400, *opts)
        points = {k: (np.array(x), np.array(y)) for k, (x, y) in (curves or {}).items()}
        run = RunFiles(cfg, Training(points), counts, None, trained)
        return " ".join(give_advice(analyze(make_set(objects, detections, images=images)), run))

    def grid(self, side: int, count: int = 120):
        """One object of ``side`` pixels in each of ``count`` images."""
        return {i: [("owl", [20, 20, side + i % 3, side])] for i in range(count)}

    def found(self, objects, every: int = 1):
        kept = {i: entries for i, entries in objects.items() if i % every == 0}
        return {i: [(name, box, 0.9) for name, box in entries] for i, entries in kept.items()}

    def test_nothing_to_say(self):
        objects = self.grid(20)
        assert self.advice(objects, self.found(objects), images=120) == ""

    def test_few_passes(self):
        objects = self.grid(20)
        schedule = ("SOLVER.MAX_ITER", 300, "SOLVER.IMS_PER_BATCH", 2)
        few, enough = (
            self.advice(objects, self.found(objects), *schedule, images=120, trained=number)
            for number in (400, 75)
        )
        assert "each of 400 images 1.5 times" in few and "MAX_ITER 1600 or more (now 300)" in few
        assert enough == ""

    def test_small_objects_are_missed(self):
        objects = self.grid(6)
        text = self.advice(objects, self.found(objects, 2), images=120)
        assert "100 % of the 60 objects that are not found are under 10 pixels" in text
        assert "INPUT.MIN_SIZE_TEST (now 200)" in text
        # Twice the input: they have 12 pixels.
        double = ("INPUT.MIN_SIZE_TEST", 400)
        assert "under 10 pixels" not in self.advice(
            objects, self.found(objects, 2), *double, images=120
        )

    def test_few_objects(self):
        objects = self.grid(20, 30)
        assert "only 30 objects in 30 images" in self.advice(
            objects, self.found(objects), images=30
        )

    def test_objects_without_a_label(self):
        objects = self.grid(20)
        detections = self.found(objects)
        detections[7] += [("owl", [100, 20 * i, 15, 15], 0.95) for i in range(6)]
        text = self.advice(objects, detections, images=120)
        assert "6 of the 6 wrong detections have a score of at least 0.8" in text
        assert "most in 7.png (6)" in text
        unsure = [(name, box, min(score, 0.7)) for name, box, score in detections[7]]
        assert "without a label, most" not in self.advice(
            objects, {**detections, 7: unsure}, images=120
        )

    def test_overfitting_and_too_short_a_training(self):
        objects = self.grid(20)
        curves = {
            "validation_loss": ([99, 199, 299], [1.0, 0.8, 1.2]),
            "bbox/AP": ([99, 199, 299], [10.0, 20.0, 30.0]),
        }
        text = self.advice(objects, self.found(objects), images=120, curves=curves)
        assert "least (0.80) at iteration 200 and is 1.20 at the end" in text
        assert "AP still rises: 20.0" in text

    def test_confused_classes(self):
        objects = self.grid(20)
        detections = self.found(objects)
        for i in range(0, 120, 4):
            detections[i] = [("dog", *detections[i][0][1:])]
        text = self.advice(objects, detections, images=120)
        assert "30 of 120 objects of class owl (25 %) are detected as dog" in text

    def test_more_objects_than_detections(self):
        boxes = [[9 * (i % 20), 9 * (i // 20), 8, 8] for i in range(130)]
        objects = [("owl", box) for box in boxes]
        detections = [("owl", box, 0.9) for box in boxes]
        text = self.advice(objects, detections, "TEST.DETECTIONS_PER_IMAGE", 100)
        assert "130 objects, but TEST.DETECTIONS_PER_IMAGE is 100" in text


def test_the_worst_image_comes_first(output_dir):
    from hypernet_d2.evaluation.report.pictures import worst_images
    from hypernet_d2.evaluation.report.write import read_run

    analysis, _ = read_run(output_dir)
    # Image 2 (index 1) lacks two objects and has a wrong detection; image 1 lacks two.
    assert worst_images(analysis, 5) == [1, 0]
