"""Arguments that become a config: --data FILE and KEY VALUE pairs."""

from __future__ import annotations

import argparse

import pytest

pytestmark = pytest.mark.detectron2


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("data.json", "{}", "data.json: expected a Python file"),
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
