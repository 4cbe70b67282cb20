"""Arguments that become a config: --data PATH and KEY VALUE pairs."""

from __future__ import annotations

import argparse

import pytest

from tests.helpers import write_voc

pytestmark = pytest.mark.detectron2


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("data.csv", "{}", "data.csv: expected a Python file, YOLO.s data.yaml, COCO.s json, or"),
        ("data.json", "{}", "data.json: .images. is empty or missing"),
        ("data.py", "x = 1\ny = (", "data.py, line 2: '.' was never closed"),
        ("data.py", "def f():\n    x\n\nf()", "data.py, line 2: NameError: name 'x'"),
        ("data.py", "raise ValueError('my own')", "^my own$"),
    ],
)
def test_an_error_of_the_data_file_is_named(tmp_path, name, text, message):
    from hypernet_d2.engine import register_data

    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        register_data(str(tmp_path / name))


def test_an_argument_after_the_options_is_named():
    from hypernet_d2.engine import setup_cfg

    opts = ["SOLVER.MAX_ITER", "3", "--data", "data.py"]
    with pytest.raises(ValueError, match="--data follows KEY VALUE pairs"):
        setup_cfg(argparse.Namespace(config_file="", opts=opts))


@pytest.fixture
def own_data(tmp_path):
    """A folder in VOC layout, whose sets are removed from the catalogs after the test."""
    from detectron2.data import DatasetCatalog, MetadataCatalog

    write_voc(tmp_path / "own")
    yield str(tmp_path / "own")
    for role in ("all", "train", "val"):
        for catalog in (DatasetCatalog, MetadataCatalog):
            catalog.pop(f"my_{role}", None)


def test_data_sets_the_config_unless_options_do(own_data, capsys):
    from hypernet_d2.engine import register_data, setup_cfg
    from hypernet_d2.model_zoo import get_config_file

    file = get_config_file("BCCD-Detection/hypernet_R_18.yaml")
    for data in (own_data, own_data, register_data(own_data)):
        cfg = setup_cfg(argparse.Namespace(config_file=file, opts=[], data=data))
        assert (cfg.DATASETS.TRAIN, cfg.DATASETS.TEST) == (("my_train",), ("my_val",))
        assert cfg.MODEL.ROI_HEADS.NUM_CLASSES == 2
    assert "own: VOC, 2 classes: my_train with 5 image(s), my_val with 1" in capsys.readouterr().out
    opts = ["MODEL.ROI_HEADS.NUM_CLASSES", "7", "DATASETS.TEST", "('my_train',)"]
    cfg = setup_cfg(argparse.Namespace(config_file=file, opts=opts, data=own_data))
    assert (cfg.DATASETS.TRAIN, cfg.DATASETS.TEST) == (("my_train",), ("my_train",))
    assert cfg.MODEL.ROI_HEADS.NUM_CLASSES == 7


def test_inspect_data_takes_the_training_set_of_a_folder(own_data, tmp_path, capsys):
    from hypernet_d2.cli.inspect_data import main

    assert main(["--data", own_data, "--output", str(tmp_path / "look"), "--num-images", "1"]) == 0
    assert "my_train: 5 images" in capsys.readouterr().out
    with pytest.raises(ValueError, match="expected --dataset NAME, --data"):
        main(["--output", str(tmp_path / "look")])
    config = tmp_path / "config.yaml"
    config.write_text(
        f"DATASETS: {{TRAIN: [my_val]}}\nMODEL: {{HYPERNET: {{DATA: {{PATH: {own_data!r}}}}}}}"
    )
    assert main(["--config-file", str(config), "--output", str(tmp_path / "look")]) == 0
    assert "my_val: 1 images" in capsys.readouterr().out
