"""``train --data FOLDER``: one command from labeled images to a model, and what follows it."""

from __future__ import annotations

import logging
import os
import shutil
from argparse import Namespace

import pytest
import yaml

from tests.helpers import TINY, write_voc

pytestmark = pytest.mark.detectron2


@pytest.fixture
def forget():
    """A function that makes this process forget the data, as a new command would."""
    from detectron2.data import DatasetCatalog, MetadataCatalog

    def remove():
        for role in ("all", "train", "val", "test"):
            for catalog in (DatasetCatalog, MetadataCatalog):
                catalog.pop(f"my_{role}", None)

    loggers = [logging.getLogger(name) for name in ("detectron2", "hypernet_d2", "fvcore")]
    handlers = [list(logger.handlers) for logger in loggers]
    yield remove
    remove()
    for logger, before in zip(loggers, handlers, strict=True):
        logger.handlers[:] = before


@pytest.fixture
def shapes(tmp_path, monkeypatch):
    """A folder in VOC layout, as the working directory's ``shapes``."""
    write_voc(tmp_path / "shapes", count=6)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("hypernet_d2.cli.own_data.choose.find_spec", lambda name: None)
    return tmp_path / "shapes"


def tiny_words() -> list[str]:
    """Options of a model that trains in milliseconds, without the values that are chosen."""
    pairs = zip(TINY[::2], TINY[1::2], strict=True)
    left_out = ("INPUT.", "MODEL.RPN.POST", "TEST.")
    return [str(x) for key, value in pairs if not key.startswith(left_out) for x in (key, value)]


def test_one_command_from_a_folder_to_a_model(shapes, forget, capsys):
    from hypernet_d2.cli import train

    words = ["--data", "shapes"]
    train.main([*words, "SOLVER.MAX_ITER", "2", "TEST.DETECTIONS_PER_IMAGE", "7", *tiny_words()])
    output = shapes.parent / "output/shapes"
    printed = capsys.readouterr().out
    assert "windows: SIZES" in printed and "DETECTIONS_PER_IMAGE 7 as given" in printed
    assert (
        "my_val: bbox AP" in printed and "hypernet-d2 detect --config-file output/shapes" in printed
    )
    config = yaml.safe_load((output / "config.yaml").read_text())
    assert config["MODEL"]["ROI_HEADS"]["NUM_CLASSES"] == 2
    assert config["MODEL"]["HYPERNET"]["DATA"]["PATH"] == str(shapes)
    assert config["TEST"]["DETECTIONS_PER_IMAGE"] == 7
    assert config["SOLVER"]["MAX_ITER"] == 2
    assert (output / "data.jpg").is_file() and (output / "choices.txt").is_file()
    split = {name: (output / f"split/{name}.txt").read_text() for name in ("train", "val")}
    assert [len(text.splitlines()) for text in split.values()] == [5, 1]

    forget()
    with pytest.raises(FileExistsError, match="earlier run"):
        train.main([*words, *tiny_words()])

    # Another command finds the data and the same split by the config alone.
    forget()
    lines = split["train"].splitlines()
    swapped = {"train": [*lines[1:], *split["val"].splitlines()], "val": lines[:1]}
    for name, images in swapped.items():
        (output / f"split/{name}.txt").write_text("\n".join(images))
    weights = ["MODEL.WEIGHTS", str(output / "model_final.pth")]
    results = train.main(["--eval-only", "--config-file", str(output / "config.yaml"), *weights])
    assert results is None
    from hypernet_d2.data import load_dataset

    (record,) = load_dataset("my_val")
    assert os.path.relpath(record["file_name"], shapes) == lines[0]


def test_data_that_has_gone_is_named_where_it_is_needed(shapes, forget, tmp_path, caplog):
    from hypernet_d2.cli import train
    from hypernet_d2.engine import setup_cfg

    train.main(["--data", "shapes", "SOLVER.MAX_ITER", "1", *tiny_words()])
    shutil.move(tmp_path / "output/shapes", tmp_path / "moved")
    forget()
    setup_cfg(Namespace(config_file="moved/config.yaml", opts=[]))  # the split lies beside it
    forget()
    shutil.rmtree(shapes)
    with pytest.raises(KeyError, match="no data set is called 'my_val'.*--data PATH"):
        train.main(
            ["--eval-only", "--config-file", "moved/config.yaml"]
            + ["MODEL.WEIGHTS", "moved/model_final.pth"]
        )
    assert "DATA.PATH" in caplog.text and "shapes" in caplog.text
