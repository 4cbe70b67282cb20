"""tools/visualize_data.py and tools/suggest_windows.py on small sets with known oddities."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from tests.helpers import tiny_cfg, write_voc

pytestmark = pytest.mark.detectron2

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def visualize() -> dict:
    return vars(importlib.import_module("hypernet_d2.cli.inspect_data"))


@pytest.fixture(scope="module")
def windows() -> dict:
    return vars(importlib.import_module("hypernet_d2.cli.suggest_windows"))


@pytest.fixture(scope="module")
def data_file(tmp_path_factory) -> str:
    """A user's Python file for --data; the set "shapes_all" is in VOC layout."""
    folder = tmp_path_factory.mktemp("shapes")
    write_voc(folder)
    file = folder / "my_data.py"
    file.write_text(
        "from hypernet_d2.data import register_voc_style\n"
        f"register_voc_style('shapes_all', {str(folder)!r}, 'all', ['square', 'bar'])\n"
    )
    return str(file)


def record(*boxes: tuple, size: tuple[int, int] = (100, 200), labels: list[int] | None = None):
    from detectron2.structures import BoxMode

    labels = labels or [0] * len(boxes)
    return {
        "file_name": "x.jpg",
        "height": size[0],
        "width": size[1],
        "annotations": [
            {"bbox": list(box), "bbox_mode": BoxMode.XYXY_ABS, "category_id": label}
            for box, label in zip(boxes, labels, strict=True)
        ],
    }


@pytest.mark.parametrize(
    ("box", "what"),
    [
        ((10, 10, 10, 30), "no area"),
        ((150, 10, 220, 40), "outside the image"),
        ((10, 10, 13, 30), "a side below 4 pixels"),
        ((10, 10, 110, 18), "longer than 10 times its width"),
        ((1, 1, 199, 99), "almost the whole image"),
    ],
)
def test_an_odd_box_is_suspicious_and_others_are_not(visualize, box, what):
    fine = (20, 20, 60, 50)
    assert visualize["suspicions"](record(fine, box), {}) == {1: what}


def test_a_box_drawn_twice_and_one_of_another_size_are_suspicious(visualize):
    twice = record((20, 20, 60, 50), (20, 20, 60, 50.5))
    assert visualize["suspicions"](twice, {}) == {1: "the same place as another box"}

    rng = np.random.default_rng(0)
    records = [record((10, 10, 10 + side, 10 + side)) for side in rng.uniform(35, 45, 30)]
    usual = visualize["usual_sides"](records)
    assert usual[0][0] < 35 and usual[0][1] > 45
    assert not any(visualize["suspicions"](r, usual) for r in records)
    odd = record((10, 10, 20, 20), (100, 5, 190, 95), (20, 20, 60, 60))
    assert visualize["suspicions"](odd, usual) == {
        0: "far smaller than others of its class",
        1: "far larger than others of its class",
    }


def test_visualize_draws_and_counts(visualize, data_file, tmp_path, capsys):
    visualize["main"](
        ["--data", data_file, "--dataset", "shapes_all", "--output", str(tmp_path)]
        + ["--num-images", "4"]
    )
    pictures = sorted(tmp_path.iterdir())
    assert len(pictures) == 4
    assert cv2.imread(str(pictures[0])).shape == (640, 800, 3)
    printed = capsys.readouterr().out
    assert "shapes_all: 6 images, 0 without boxes" in printed
    table = [[cell.strip() for cell in line.split("|")[1:-1]] for line in printed.splitlines()]
    assert ["square", "6", "6", "0", "0", "16"] in table
    assert ["bar", "6", "6", "0", "0", "17"] in table


def test_visualize_draws_suspicious_images_first(visualize):
    records = [record((10, 10, 40, 40)) for _ in range(9)]
    assert visualize["choose"](records, {7: {0: "no area"}}, 3) == [7, 0, 8]
    assert visualize["choose"](records, {7: {}, 8: {}}, 1) == [7]


def test_visualize_names_an_unknown_set_a_broken_image_and_a_wrong_size(visualize, tmp_path):
    with pytest.raises(KeyError, match="'nowhere' .--dataset.; .*--data PATH"):
        visualize["load"]("nowhere")
    wrong = record((10, 10, 40, 40))
    wrong["file_name"] = str(tmp_path / "x.png")
    with pytest.raises(ValueError, match="x.png: cannot be read"):
        visualize["draw"](wrong, {}, None)
    cv2.imwrite(wrong["file_name"], np.zeros((50, 60, 3), np.uint8))
    with pytest.raises(ValueError, match="is 60 x 50 .* says 200 x 100"):
        visualize["draw"](wrong, {}, None)


def test_check_images_lists_all_bad_files(visualize, tmp_path, capsys):
    words = ["--dataset", "shapes_broken", "--check-images"]
    write_voc(tmp_path)
    register = tmp_path / "broken.py"
    register.write_text(
        "from hypernet_d2.data import register_voc_style\n"
        f"register_voc_style('shapes_broken', {str(tmp_path)!r}, 'all', ['square', 'bar'])\n"
    )
    assert visualize["main"]([*words, "--data", str(register)]) == 0
    images = tmp_path / "JPEGImages"
    (images / "001.jpg").write_bytes((images / "001.jpg").read_bytes()[:-500])
    (images / "002.jpg").write_bytes(b"not an image")
    cv2.imwrite(str(images / "004.jpg"), np.zeros((10, 20, 3), np.uint8))
    capsys.readouterr()
    assert visualize["main"](words) == 1
    printed = capsys.readouterr().out
    assert "shapes_broken: 3 of 6 images cannot be used" in printed
    for name in ("001.jpg", "002.jpg"):
        assert f"- {images / name}: cannot be read as an image" in printed
    assert f"- {images / '004.jpg'} is 20 x 10" in printed


def test_the_data_file_of_the_user_must_exist(visualize):
    with pytest.raises(FileNotFoundError, match="--data nowhere.py"):
        visualize["main"](["--data", "nowhere.py", "--dataset", "x", "--output", "x"])


def test_boxes_are_resized_as_the_config_says(windows, data_file):
    from hypernet_d2.engine import register_data

    register_data(data_file)
    cfg = tiny_cfg("INPUT.MIN_SIZE_TEST", 128, "INPUT.MAX_SIZE_TEST", 1000)
    images = windows["load_boxes"](cfg, "shapes_all")  # of 64 x 80 pixels
    assert [size for size, _ in images] == [(128, 160)] * 6
    sides = torch.cat([boxes[:, 2:] - boxes[:, :2] for _, boxes in images])
    assert sides.tolist() == [[32.0, 32.0], [60.0, 20.0]] * 6


def test_best_iou_is_that_with_the_models_own_windows(windows):
    """A window of the grid reaches an IoU of 1; the windows are those the model scores."""
    from detectron2.modeling import build_model

    cfg = tiny_cfg()
    scorer = build_model(cfg).proposal_generator.scorer
    size = (96, 128)
    grid = scorer.grid.boxes((size[0] // 4, size[1] // 4))
    inside = grid[scorer.grid.inside((size[0] // 4, size[1] // 4), size)]
    keys = cfg.MODEL.HYPERNET.PROPOSALS
    picked = inside[:: len(inside) // 20]
    found = windows["fit"](cfg, [(size, picked)], keys.SIZES, keys.ASPECT_RATIOS)
    assert found.num_windows == len(inside)
    assert found.best_iou.tolist() == pytest.approx([1.0] * len(picked))
    assert found.recall(0.7) == 1.0
    x0, y0, x1, y1 = inside[0].tolist()
    half = torch.tensor([[x0, y0, x1, y0 + (y1 - y0) / 1000]])
    assert windows["fit"](cfg, [(size, half)], keys.SIZES, keys.ASPECT_RATIOS).recall(0.45) == 0


def test_the_suggestion_fits_better_within_the_number_of_windows(windows, data_file, tmp_path):
    cfg = tiny_cfg("MODEL.HYPERNET.PROPOSALS.SIZES", [100, 200])
    config, plot = tmp_path / "config.yaml", tmp_path / "windows.png"
    config.write_text(cfg.dump())
    images = windows["load_boxes"](cfg, "shapes_all")
    now = windows["fit"](cfg, images, [100, 200], cfg.MODEL.HYPERNET.PROPOSALS.ASPECT_RATIOS)
    best = windows["suggest"](cfg, images, 1000, 500)
    assert best.num_windows <= 500
    assert best.recall(0.5) > now.recall(0.5)
    assert 8 <= min(best.sizes) <= 17 and 16 <= max(best.sizes) <= 18
    with pytest.raises(ValueError, match="--max-windows 1:"):
        windows["suggest"](cfg, images, 1000, 1)
    words = ["--config-file", str(config), "--data", data_file, "--dataset", "shapes_all"]
    windows["main"]([*words, "--output", str(plot), "--max-windows", "500"])
    assert cv2.imread(str(plot)).shape[1] > 1000


def test_what_is_printed_can_be_pasted(windows, data_file, tmp_path, capsys):
    import yaml

    config = tmp_path / "config.yaml"
    config.write_text(tiny_cfg().dump())
    words = ["--config-file", str(config), "--data", data_file, "--dataset", "shapes_all"]
    windows["main"](words)
    printed = capsys.readouterr().out
    keys = yaml.safe_load(printed[printed.index("MODEL:") :])["MODEL"]["HYPERNET"]["PROPOSALS"]
    cfg = tiny_cfg("MODEL.HYPERNET.PROPOSALS.SIZES", keys["SIZES"])
    assert cfg.MODEL.HYPERNET.PROPOSALS.SIZES == keys["SIZES"]
    assert all(ratio > 0 for ratio in keys["ASPECT_RATIOS"])


def test_windows_of_another_proposal_generator_are_refused(windows, tmp_path):
    config = tmp_path / "config.yaml"
    config.write_text(tiny_cfg(config="BCCD-Detection/faster_rcnn_R_18_C4.yaml").dump())
    with pytest.raises(ValueError, match="only 'HyperNetProposals' has windows"):
        windows["main"](["--config-file", str(config)])


def test_more_classes_than_the_roi_heads_have_are_named_before_training(tmp_path):
    from detectron2.data import DatasetCatalog, MetadataCatalog
    from detectron2.data.datasets import register_coco_instances

    from hypernet_d2.engine import Trainer

    cv2.imwrite(str(tmp_path / "x.png"), np.zeros((64, 64, 3), np.uint8))
    box = {"id": 1, "image_id": 1, "category_id": 5, "bbox": [8, 8, 20, 20], "area": 400}
    (tmp_path / "x.json").write_text(
        json.dumps(
            {
                "images": [{"id": 1, "file_name": "x.png", "height": 64, "width": 64}],
                "annotations": [{**box, "iscrowd": 0}],
                "categories": [{"id": 5 + i, "name": f"cell {i}"} for i in range(4)],
            }
        )
    )
    register_coco_instances("cells", {}, str(tmp_path / "x.json"), str(tmp_path))
    try:
        cfg = tiny_cfg("DATASETS.TRAIN", ("cells",), "DATASETS.TEST", ("cells",))
        for build in (
            lambda: Trainer.build_train_loader(cfg),
            lambda: Trainer.build_test_loader(cfg, "cells"),
        ):
            with pytest.raises(ValueError, match="NUM_CLASSES is 3, but .*'cells' has 4: cell 0,"):
                build()
    finally:
        DatasetCatalog.remove("cells")
        MetadataCatalog.remove("cells")
