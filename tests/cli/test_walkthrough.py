"""demo/walkthrough.py, on a tiny model with random weights."""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from tests.helpers import tiny_cfg

pytestmark = pytest.mark.detectron2

ROOT = Path(__file__).resolve().parents[2]
STAGES = [
    "overview", "image", "trunk", "hyper_feature", "windows", "objectness", "proposals", "regions",
    "detections", "hypercolumns",
]  # fmt: skip


@pytest.fixture(scope="module")
def walkthrough() -> dict:
    from hypernet_d2.cli import walkthrough

    return vars(walkthrough)


@pytest.fixture(scope="module")
def words(tmp_path_factory) -> list[str]:
    """The words that name a tiny model and its one labelled image, 60 x 85 pixels."""
    from detectron2.modeling import build_model

    folder = tmp_path_factory.mktemp("model")
    cfg = tiny_cfg("INPUT.MIN_SIZE_TEST", 48, "DATASETS.TEST", ("walk_val",))
    torch.save({"model": build_model(cfg).state_dict()}, folder / "model.pth")
    cfg.MODEL.WEIGHTS = str(folder / "model.pth")
    (folder / "config.yaml").write_text(cfg.dump())
    image = np.random.default_rng(0).integers(0, 255, (60, 85, 3), dtype=np.uint8)
    cv2.imwrite(str(folder / "x.png"), image)
    names = ["RBC", "WBC", "Platelets"]
    coco = {
        "images": [{"id": 1, "file_name": "x.png", "height": 60, "width": 85}],
        "categories": [{"id": i, "name": name} for i, name in enumerate(names)],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 1, "bbox": [5, 5, 30, 20], "area": 600,
             "iscrowd": 0}
        ],
    }  # fmt: skip
    (folder / "val.json").write_text(json.dumps(coco))
    (folder / "data.py").write_text(
        "from detectron2.data import DatasetCatalog\n"
        "from detectron2.data.datasets import register_coco_instances\n"
        "if 'walk_val' not in DatasetCatalog:\n"
        "    register_coco_instances(\n"
        f"        'walk_val', {{}}, {str(folder / 'val.json')!r}, {str(folder)!r}\n"
        "    )\n"
    )
    return ["--config-file", str(folder / "config.yaml"), "--data", str(folder / "data.py")]


@pytest.fixture(scope="module")
def seen(walkthrough, words):
    """The model, and what the image left in it."""
    args = walkthrough["parse_args"]([*words, "--output", "out", "--threshold", "0"])
    predictor = walkthrough["load"](args)
    path, record = walkthrough["find_image"](args, predictor.cfg)
    image = cv2.imread(str(path))
    return predictor, image, record, walkthrough["trace"](predictor, image)


def test_pictures_of_every_stage_and_a_page_that_shows_them(walkthrough, words, tmp_path, capsys):
    args = [*words, "--output", str(tmp_path / "out"), "--threshold", "0"]
    walkthrough["main"](args)
    index = tmp_path / "out" / "index.md"
    assert capsys.readouterr().out.splitlines()[-1] == str(index)
    text = index.read_text()
    files = re.findall(r"\]\((.*)\)", text)
    assert files == [f"{i}_{name}.png" for i, name in enumerate(STAGES)]
    for file in files:
        picture = np.asarray(Image.open(tmp_path / "out" / file).convert("L"))
        assert picture.shape[1] > 900 and picture.std() > 5
    assert len(re.findall(r"^Section 3", text, re.MULTILINE)) == len(STAGES)
    assert "(18, 12, 17)" in text and "(10, 4)" in text  # the hyper feature and the proposals


def test_the_trace_has_what_the_model_computed(seen):
    predictor, image, record, trace = seen
    assert record["annotations"][0]["category_id"] == 1
    assert trace.image.shape == (48, 68, 3) and trace.padded_size == (48, 80)
    assert trace.hyper.shape == (18, 12, 17) and trace.map_size == (12, 20)
    assert {n: tuple(x.shape[2:]) for n, x in trace.maps.items()} == {
        "res2": (12, 17), "res3": (6, 9), "res4": (3, 5)
    }  # fmt: skip
    grid = predictor.model.proposal_generator.scorer.grid
    assert trace.objectness.shape == (grid.num_windows(trace.map_size),)
    assert len(trace.proposals) == len(trace.regions) == len(trace.probabilities) == 10
    assert trace.probabilities.sum(dim=1).numpy() == pytest.approx(1)


def test_a_windows_objectness_is_shown_at_its_center(seen):
    from hypernet_d2.cli.walkthrough import stages

    predictor, _, _, trace = seen
    grid = predictor.model.proposal_generator.scorer.grid
    boxes = grid.boxes(trace.map_size)
    sizes = stages.shapes_by_size(predictor.cfg, grid)
    assert sorted(i for indices in sizes.values() for i in indices) == list(range(grid.num_shapes))
    counts = [ny * nx for ny, nx in grid.counts(trace.map_size)]
    size, indices = next(iter(sizes.items()))
    first = sum(counts[: indices[-1]])  # of the last shape of the smallest size
    window = first + counts[indices[-1]] // 2
    objectness = torch.zeros(len(boxes))
    objectness[window] = 0.7
    heat = stages.objectness_maps(predictor, trace._replace(objectness=objectness))[size]
    x, y = ((boxes[window, :2] + boxes[window, 2:]) / 2 / grid.feature_stride).tolist()
    rows, columns = np.nonzero(heat == np.float32(0.7))
    assert abs(rows + 0.5 - y).max() <= 0.5 * max(s[0] for s in grid.strides) + 0.5
    assert rows.mean() + 0.5 == pytest.approx(y, abs=0.51)
    assert columns.mean() + 0.5 == pytest.approx(x, abs=0.51)
    assert set(np.unique(heat)) <= {np.float32(-1), np.float32(0), np.float32(0.7)}


def test_an_image_of_no_set_has_no_ground_truth(walkthrough, words, seen, tmp_path):
    predictor, image, record, _ = seen
    cv2.imwrite(str(tmp_path / "y.png"), image)
    of_set = argparse.Namespace(image=Path(record["file_name"]))
    assert walkthrough["find_image"](of_set, predictor.cfg)[1] == record
    alone = argparse.Namespace(image=tmp_path / "y.png")
    assert walkthrough["find_image"](alone, predictor.cfg) == (tmp_path / "y.png", None)
    assert list(walkthrough["draw_results"](predictor, image, None)) != []
    assert len(walkthrough["draw_results"](predictor, image, record)) == 2


def test_what_is_missing_is_named(walkthrough, words, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for args, message in [
        (["--output", "out"], "`make demo` trains it"),
        ([*words, "--output", "out", "--image", "no.png"], "no.png: no such file"),
        ([*words, "--output", "out", "--threshold", "2"], "from 0 to 1"),
    ]:
        with pytest.raises(SystemExit):
            walkthrough["parse_args"](args)
        assert message in capsys.readouterr().err


def test_another_kind_of_model_is_refused(walkthrough, tmp_path):
    from detectron2.modeling import build_model

    cfg = tiny_cfg(config="BCCD-Detection/faster_rcnn_R_18_C4.yaml")
    torch.save({"model": build_model(cfg).state_dict()}, tmp_path / "model.pth")
    cfg.MODEL.WEIGHTS = str(tmp_path / "model.pth")
    (tmp_path / "config.yaml").write_text(cfg.dump())
    args = ["--config-file", str(tmp_path / "config.yaml"), "--output", "out"]
    with pytest.raises(ValueError, match="MODEL.BACKBONE.NAME builds a ResNet.*HyperBackbone"):
        walkthrough["load"](walkthrough["parse_args"](args))
