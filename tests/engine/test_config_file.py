"""Config files and options with mistakes: what is named."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

pytestmark = pytest.mark.detectron2

CONFIG = Path(__file__).resolve().parents[2] / "configs/BCCD-Detection/hypernet_R_18.yaml"


def setup(config_file, *opts):
    from hypernet_d2.engine import setup_cfg

    return setup_cfg(argparse.Namespace(config_file=str(config_file), opts=list(opts)))


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (["MODEL.HYPERNET.FEATURE.CHANELS", "8"], "CHANELS'; did you mean '.*FEATURE.CHANNELS'"),
        (["SOLVER.NUM_CLASSES", "8"], "did you mean 'MODEL.[A-Z_]*.NUM_CLASSES'"),
        (["SEED.X", "8"], "unknown configuration key 'SEED.X'"),
        (["MODEL.HYPERNET.FEATURE.CHANNELS", "many"], "many"),
        (["MODEL.HYPERNET.FEATURE.CHANNELS"], "pairs KEY VALUE; got 1"),
    ],
)
def test_a_wrong_option_is_named(opts, message):
    with pytest.raises(ValueError, match=message):
        setup(CONFIG, *opts)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "MODEL:\n  MASK_ON: False\nSEED: 1\nMODEL:\n  DEVICE: cpu\n",
            "'MODEL' stands in line 1 and again in line 4",
        ),
        (
            "SEED: 1\nMODEL:\n  HYPERNET:\n    TRUNKS: x\n",
            r", line 4: unknown .*'MODEL.HYPERNET.TRUNKS'; did you mean 'MODEL.HYPERNET.TRUNK'\?",
        ),
        ("SOLVER:\n  BASE_LR: 0.1\n SEED: 1\n", "not valid yaml"),
        ("", "no configuration keys"),
        ("- a\n", "no configuration keys"),
    ],
)
@pytest.mark.parametrize("in_base", [False, True])
def test_a_mistake_in_a_file_or_its_base_is_named(tmp_path, text, message, in_base):
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text(text)
    main = wrong
    if in_base:
        (tmp_path / "middle.yaml").write_text("_BASE_: wrong.yaml\n")
        main = tmp_path / "main.yaml"
        main.write_text("_BASE_: [middle.yaml]\nSEED: 2\n")
    with pytest.raises(ValueError, match=rf"wrong\.yaml.*{message}"):
        setup(main)


def test_a_value_of_another_type_is_named_with_its_file(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("SEED: one\n")
    with pytest.raises(ValueError, match=r"mine\.yaml: .*SEED"):
        setup(path)


def test_a_file_of_another_encoding_is_named(tmp_path):
    path = tmp_path / "wide.yaml"
    path.write_text("SEED: 1\n", encoding="utf-16")
    with pytest.raises(ValueError, match="wide.yaml: not UTF-8"):
        setup(path)


def test_a_missing_file_or_base_is_named_with_its_neighbour():
    with pytest.raises(FileNotFoundError, match=r"R_81\.yaml'; did you mean '.*hypernet_R_18"):
        setup(CONFIG.with_name("hypernet_R_81.yaml"))


def test_a_missing_base_is_named_with_the_file_that_names_it(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("_BASE_: Base.yaml\n")
    with pytest.raises(FileNotFoundError, match=r"Base\.yaml' \(_BASE_ of .*mine\.yaml\)"):
        setup(path)
    path.write_text("_BASE_: mine.yaml\n")
    with pytest.raises(ValueError, match=r"mine\.yaml: it is its own _BASE_"):
        setup(path)


def test_every_shipped_config_is_accepted():
    folder = CONFIG.parents[1]
    files = sorted(folder.rglob("*.yaml"))
    assert len(files) > 20
    for path in files:
        setup(path)
