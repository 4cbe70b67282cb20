"""The data set's tab of hypernet-d2 web: filters, drawing, and where detections come from."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytestmark = pytest.mark.detectron2

CLASSES = ["cat", "dog"]
# image: objects as (class, x, y, side)
OBJECTS = {1: [(0, 10, 10, 20), (1, 50, 10, 40)], 2: [(0, 10, 10, 20), (0, 60, 50, 20)], 3: []}
# image: detections as (class, x, y, side, score)
FOUND = {
    1: [(0, 10, 10, 20, 0.9), (0, 50, 10, 40, 0.7)],  # right; the dog taken for a cat
    2: [(0, 10, 10, 20, 0.6)],  # right; one is missed
    3: [(1, 0, 0, 30, 0.4)],  # background
}


def write_images(folder: Path) -> dict[int, str]:
    files = {}
    for i in OBJECTS:
        files[i] = str(folder / f"{i}.png")
        Image.fromarray(np.full((100, 100, 3), 60 * i, np.uint8)).save(files[i])
    return files


def as_coco(objects: dict) -> list[dict]:
    entries = []
    for image, boxes in objects.items():
        for label, x, y, side, *score in boxes:
            entry = {"image_id": image, "category_id": label + 1, "bbox": [x, y, side, side]}
            more = {"score": score[0]} if score else {"area": side**2, "iscrowd": 0}
            entries.append({**entry, **more, "id": len(entries) + 1})
    return entries


def make_pictures(folder: Path, labeled: bool = True):
    from hypernet_d2.cli.web.picture_set import PictureSet

    content = {
        "images": [
            {"id": i, "file_name": f"{i}.png", "width": 100, "height": 100} for i in OBJECTS
        ],
        "categories": [{"id": i + 1, "name": name} for i, name in enumerate(CLASSES)],
    }
    if labeled:
        content["annotations"] = as_coco(OBJECTS)
    return PictureSet("pets", content, write_images(folder), CLASSES)


def make_explorer(folder: Path, labeled: bool = True):
    from hypernet_d2.cli.web.explorer import Explorer

    (folder / "inference").mkdir()
    results = folder / "inference" / "pets_instances_results.json"
    results.write_text(json.dumps(as_coco(FOUND)))
    pictures = make_pictures(folder, labeled)
    return Explorer(pictures.read_detections(folder), labeled)


@pytest.fixture
def explorer(tmp_path):
    return make_explorer(tmp_path)


@pytest.mark.parametrize(
    ("values", "names"),
    [
        ({}, [1, 2, 3]),  # most errors first: one of classification, one missed, none
        ({"threshold": 0.3}, [1, 2, 3]),
        ({"kind": "classification"}, [1]),
        ({"kind": "missed"}, [2]),
        ({"kind": "missed", "threshold": 0.95}, [1, 2]),
        ({"kind": "right"}, [1, 2]),
        ({"kind": "background"}, []),
        ({"kind": "background", "threshold": 0.3}, [3]),
        ({"classes": ("dog",)}, [1]),
        ({"classes": ("dog",), "threshold": 0.3}, [1, 3]),
        ({"most": 0.65}, [2]),
        ({"size": "large"}, [1]),
        ({"size": "small", "kind": "right"}, [1, 2]),
    ],
)
def test_filters_choose_images(explorer, values, names):
    from hypernet_d2.cli.web.explorer import Filters

    choice = explorer.choose(Filters(**values))
    assert [explorer.data.images[i]["id"] for i in choice.images] == names


def test_precision_recall_and_errors_are_those_of_the_threshold(explorer):
    from hypernet_d2.cli.web.explorer import Filters

    text = explorer.summary(Filters(), explorer.choose(Filters()))
    assert "precision **67%**, recall **50%** (2 of 4 objects)" in text
    assert text.endswith("Errors: classification 1, missed 1.")
    high = Filters(threshold=0.8)
    text = explorer.summary(high, explorer.choose(high))
    assert "precision **100%**, recall **25%** (1 of 4 objects)" in text
    assert explorer.caption(1, explorer.choose(high)) == "2.png: 0 right, 0 wrong, 2 missed"


def test_boxes_have_the_colors_of_their_kinds(explorer):
    from hypernet_d2.cli.web.explorer import COLORS, FADED, Filters

    def colors(picture):
        codes = picture.astype(int) @ [65536, 256, 1]
        named = {c: np.dot(c, [65536, 256, 1]) for c in (FADED, *COLORS.values())}
        return {color for color, code in named.items() if (codes == code).any()}

    choice = explorer.choose(Filters())
    green, red, violet = COLORS["right"], COLORS["missed"], COLORS["classification"]
    assert colors(explorer.thumbnail(0, choice)) == {green, violet}
    assert colors(explorer.thumbnail(1, choice)) == {green, red}
    truth, detections = np.split(explorer.detail(0, choice), 2, axis=1)
    assert colors(truth[30:]) == colors(detections[30:]) == {green, violet}  # below the titles
    choice = explorer.choose(Filters(kind="missed"))
    assert colors(explorer.thumbnail(1, choice)) == {FADED, red}


def test_without_ground_truth_there_are_no_errors(tmp_path):
    from hypernet_d2.cli.web.explorer import Filters

    explorer = make_explorer(tmp_path, labeled=False)
    choice = explorer.choose(Filters())
    assert explorer.kinds == ["any"] and len(choice.images) == 3
    text = explorer.summary(Filters(), choice)
    assert text.endswith("Detections at this threshold: **3**. No ground truth.")
    assert explorer.caption(0, choice) == "1.png: 2 detections"
    assert explorer.detail(0, choice).shape[0] == explorer.detail(0, choice).shape[1]


def test_an_image_that_is_gone_is_gray(explorer, tmp_path):
    from hypernet_d2.cli.web.explorer import Filters

    (tmp_path / "3.png").unlink()
    picture = explorer.thumbnail(2, explorer.choose(Filters()))
    assert np.ptp(picture) == 0 and picture.shape == (360, 360, 3)


class Model:
    """Detects a dog in the upper left corner; its classes have another order than the set's."""

    name, classes, least_score = "toy", ["bird", "dog", "cat"], 0.1

    def detect(self, image, threshold):
        from hypernet_d2.deploy import Detections

        boxes = np.array([[0, 0, 30, 30], [1, 2, 3, 4]], np.float32)
        return Detections(boxes, np.array([0.8, 0.7]), np.array([1, 0]))


def test_a_model_detects_where_no_evaluation_has(tmp_path):
    pictures = make_pictures(tmp_path)
    assert pictures.read_detections(tmp_path) is None
    data, note = pictures.detect(Model())
    assert [data.classes[i] for i in data.labels] == ["dog"] * 3 and note == ""
    data, note = pictures.detect(Model(), limit=2)
    assert [image["id"] for image in data.images] == [1, 3] and note == "2 of 3 images"


def test_a_model_without_a_class_of_the_set_is_refused(tmp_path):
    class Other(Model):
        classes = ["dog"]

    with pytest.raises(ValueError, match="'cat' cannot be matched by name"):
        make_pictures(tmp_path).detect(Other())


def test_detections_of_another_set_are_not_used(tmp_path):
    make_explorer(tmp_path)
    results = tmp_path / "inference" / "pets_instances_results.json"
    results.write_text(json.dumps([{**one, "image_id": 9} for one in as_coco(FOUND)]))
    assert make_pictures(tmp_path).read_detections(tmp_path) is None


def test_a_folder_of_images_has_the_models_classes(tmp_path):
    from hypernet_d2.cli.web.picture_set import read_folder

    write_images(tmp_path)
    pictures = read_folder(tmp_path)
    assert not pictures.labeled and sorted(pictures.files) == [0, 1, 2]
    data, _ = pictures.detect(Model())
    assert data.classes == Model.classes and len(data.scores) == 6
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(ValueError, match=f"--images {empty}: holds no images"):
        read_folder(empty)
    with pytest.raises(FileNotFoundError, match="no such folder"):
        read_folder(tmp_path / "missing")


@pytest.mark.gradio
def test_look_through_a_set_in_a_browser(serve, explorer, tmp_path):
    from playwright.sync_api import expect

    from hypernet_d2.cli.web.models import ExportedModel
    from hypernet_d2.cli.web.page import build_page
    from tests.deploy import toy

    model = ExportedModel(toy.write_torch(tmp_path / "toy.pt2"))
    page = serve(build_page([model], {model.name: (explorer, "")}))
    summary, title = page.locator("#summary"), page.locator("#detail-title")
    expect(summary).to_contain_text("pets: 3 of 3 images. At this threshold: precision 67%")
    expect(page.locator("#gallery img")).to_have_count(3)
    expect(title).to_contain_text("1.png: 1 right, 1 wrong, 0 missed")
    page.locator("#gallery .thumbnail-item").nth(1).click()
    expect(title).to_contain_text("2.png: 1 right, 0 wrong, 1 missed")
    expect(page.locator("#detail img")).to_be_visible()
    page.locator("#threshold input[type=range]").fill("0.3")
    expect(summary).to_contain_text("background 1")
    expect(title).to_contain_text("2.png")  # what is shown stays
    page.locator("#kind input").click()
    page.get_by_role("option", name="background").click()
    expect(summary).to_contain_text("1 of 3 images. The filters choose detections: 1, objects: 0")
    expect(title).to_contain_text("3.png: 0 right, 1 wrong, 0 missed")
    page.screenshot(path=os.environ.get("HYPERNET_D2_SCREENSHOT") or tmp_path / "page.png")
    assert page.elsewhere == []
