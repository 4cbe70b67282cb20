"""The model that ships, and AP of exported models."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hypernet_d2.deploy import DIGITS_MODEL, Detections, Detector
from hypernet_d2.deploy.evaluate import METRICS, contact_sheet, evaluate, load_set, main
from hypernet_d2_cli import run

from . import toy


@pytest.fixture(scope="module")
def toy_set(tmp_path_factory) -> tuple[Path, Path]:
    """(annotations, folder): a red and a black image, the whole of each being the object."""
    pytest.importorskip("pycocotools")
    folder = tmp_path_factory.mktemp("set")
    for name, red in (("a.png", 200), ("b.png", 40)):
        pixels = np.zeros((48, 64, 3), np.uint8)
        pixels[:, :, 0] = red
        Image.fromarray(pixels).save(folder / name)
    box = {"bbox": [0, 0, 64, 48], "area": 64 * 48, "iscrowd": 0}
    content = {
        "images": [
            {"id": i + 5, "file_name": name, "height": 48, "width": 64}
            for i, name in enumerate(("a.png", "b.png"))
        ],
        "annotations": [
            {"id": 1, "image_id": 5, "category_id": 9, **box},
            {"id": 2, "image_id": 6, "category_id": 9, **box},
        ],
        "categories": [{"id": 9, "name": "bright"}, {"id": 3, "name": "dark"}],
    }
    path = folder / "set.json"
    path.write_text(json.dumps(content))
    return path, folder


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return toy.write_torch(tmp_path_factory.mktemp("models") / "toy.pt2")


def test_ap_counts_right_and_wrong_detections(toy_set, model, tmp_path, capsys):
    path, folder = toy_set
    # The toy finds the bright image bright and the dark one dark, where "bright" was asked for.
    arguments = [str(model), str(path), str(folder)]
    numbers, sheet = tmp_path / "ap.json", tmp_path / "new" / "sheet.png"
    assert main([*arguments, "--json", str(numbers), "--sheet", str(sheet)]) == 0
    found = json.loads(numbers.read_text())
    assert list(found) == list(METRICS)
    assert found["AP50"] == pytest.approx(50, abs=0.6) and found["APs"] is None
    assert capsys.readouterr().out.startswith("2 images: AP 50")
    assert Image.open(sheet).width >= 4 * 480


def test_no_detection_at_all_is_zero_where_there_are_objects_and_else_undefined(toy_set, model):
    coco = load_set(toy_set[0], Detector(model))
    none = Detections(np.zeros((0, 4)), np.zeros(0), np.zeros(0, int))
    metrics = evaluate(coco, {5: none, 6: none})  # of two objects of medium size
    undefined = [name for name, value in metrics.items() if np.isnan(value)]
    assert undefined == ["APs", "APl"]
    assert {value for name, value in metrics.items() if name not in undefined} == {0.0}


def test_metrics_are_those_of_pycocotools(toy_set, model):
    from pycocotools.cocoeval import COCOeval

    coco = load_set(toy_set[0], Detector(model))
    boxes = np.array([[0, 0, 64, 48], [0, 0, 50, 48], [5, 5, 20, 20.0]])
    scores = np.array([0.9, 0.7, 0.8])
    found = {5: Detections(boxes, scores, np.array([1, 1, 0])),
             6: Detections(boxes[1:], scores[1:], np.array([1, 1]))}  # fmt: skip
    results = [
        {"image_id": key, "category_id": (3, 9)[label], "score": score,
         "bbox": [x1, y1, x2 - x1, y2 - y1]}
        for key, one in found.items()
        for (x1, y1, x2, y2), score, label in zip(*(x.tolist() for x in one), strict=True)
    ]  # fmt: skip
    stock = COCOeval(coco, coco.loadRes(results), "bbox")
    for step in (stock.evaluate, stock.accumulate, stock.summarize):
        step()
    expected = [100 * value if value >= 0 else np.nan for value in stock.stats[:6]]
    np.testing.assert_allclose(list(evaluate(coco, found).values()), expected)


def test_two_hundred_objects_of_an_image_count(tmp_path, model):
    pytest.importorskip("pycocotools")
    boxes = [[x * 10, y * 10, 8, 8] for x in range(20) for y in range(10)]
    content = {
        "images": [{"id": 1, "file_name": "a.png", "height": 100, "width": 200}],
        "annotations": [
            {"id": i + 1, "image_id": 1, "category_id": 1, "bbox": box, "area": 64, "iscrowd": 0}
            for i, box in enumerate(boxes)
        ],
        "categories": [{"id": 1, "name": "dark"}, {"id": 2, "name": "bright"}],
    }
    (tmp_path / "set.json").write_text(json.dumps(content))
    coco = load_set(tmp_path / "set.json", Detector(model))
    corners = np.array(boxes, float)
    corners[:, 2:] += corners[:, :2]
    found = Detections(corners, np.linspace(0.5, 1, 200), np.zeros(200, int))
    metrics = evaluate(coco, {1: found})
    assert metrics["AP"] == metrics["AP50"] == metrics["APs"] == pytest.approx(100)


@pytest.mark.parametrize("change", ["resized", "turned"])
def test_an_image_of_another_size_than_the_annotations_state_is_refused(
    toy_set, model, tmp_path, capsys, change
):
    path, folder = toy_set
    shutil.copytree(folder, tmp_path / "images")
    with Image.open(folder / "b.png") as image:
        if change == "resized":
            image.resize((32, 24)).save(tmp_path / "images" / "b.png")
        else:
            exif = Image.Exif()
            exif[274] = 6
            image.save(tmp_path / "images" / "b.png", exif=exif)
    size = {"resized": "32 x 24", "turned": "48 x 64"}[change]
    assert run(main, [str(model), str(path), str(tmp_path / "images")]) == 2
    err = capsys.readouterr().err
    assert f"b.png: its size is {size} pixels" in err and "state 64 x 48" in err
    coco = load_set(path, Detector(model))
    none = Detections(np.zeros((0, 4)), np.zeros(0), np.zeros(0, int))
    with pytest.raises(ValueError, match="b.png: its size is"):
        contact_sheet(coco, {5: none, 6: none}, tmp_path / "images", ("dark", "bright"), 0.5)


def test_what_is_wrong_with_a_set_is_told(toy_set, model, tmp_path, capsys):
    path, folder = toy_set
    content = json.loads(path.read_text())
    content["categories"][0]["name"] = "blue"
    (tmp_path / "other.json").write_text(json.dumps(content))
    (tmp_path / "broken.json").write_text("{")
    shutil.copy(path, tmp_path / "set.json")
    for name, images, message in (
        ("none.json", folder, "none.json: no such annotations"),
        ("broken.json", folder, "broken.json: expected COCO's json"),
        ("other.json", folder, "the categories are ['dark', 'blue'], but the model's classes"),
        ("set.json", tmp_path, "a.png: no such image"),
    ):
        assert run(main, [str(model), str(tmp_path / name), str(images)]) == 2
        err = capsys.readouterr().err
        assert message in err and err.count("\n") == 1


def test_the_model_that_ships_reads_digits(tmp_path):
    for module in ("onnxruntime", "pycocotools", "sklearn"):
        pytest.importorskip(module)
    from hypernet_d2.data import generate_digits

    assert DIGITS_MODEL.stat().st_size <= 6e6
    detector = Detector(DIGITS_MODEL, threads=1)
    folder = generate_digits(tmp_path, "val", num_images=8)
    coco = load_set(folder / "annotations.json", detector)
    detections = {key: detector(folder / image["file_name"]) for key, image in coco.imgs.items()}
    assert evaluate(coco, detections)["AP"] > 40
    stated = json.loads((DIGITS_MODEL.parent / "digits.json").read_text())
    assert f"**{stated['AP']:.1f}**" in (DIGITS_MODEL.parent / "README.md").read_text()
