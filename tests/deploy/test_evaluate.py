"""The model that ships, and AP of exported models."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hypernet_d2.deploy import DIGITS_MODEL, Detections, Detector
from hypernet_d2.deploy.evaluate import evaluate, load_set, main

from . import toy

EXPECTED = ("AP", "AP50", "AP75", "APs", "APm", "APl")


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
    assert tuple(found) == EXPECTED
    assert found["AP50"] == pytest.approx(50, abs=0.6) and found["APs"] is None
    assert capsys.readouterr().out.startswith("2 images: AP 50")
    assert Image.open(sheet).width == 4 * 480


def test_no_detection_at_all_is_an_ap_of_zero(toy_set, model):
    coco = load_set(toy_set[0], Detector(model))
    none = Detections(np.zeros((0, 4)), np.zeros(0), np.zeros(0, int))
    assert evaluate(coco, {5: none, 6: none}) == dict.fromkeys(EXPECTED, 0.0)


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
        assert main([str(model), str(tmp_path / name), str(images)]) == 2
        assert message in capsys.readouterr().err


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
