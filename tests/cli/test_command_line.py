"""The command hypernet-d2, and how a command reports a user's mistake."""

from __future__ import annotations

import os
import resource
import shlex
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

from hypernet_d2_cli import COMMANDS, main, run, user_message

ROOT = Path(__file__).resolve().parents[2]


def python(*words: str, **kwargs) -> subprocess.CompletedProcess:
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *words], capture_output=True, text=True, env=env, timeout=120, **kwargs
    )


def fails_with(error: BaseException):
    def command(argv: list[str]) -> None:
        raise error

    return command


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("a.json: no\n  images"), "a.json: no images"),
        (KeyError("no set 'x'"), "no set 'x'"),
        (FileNotFoundError(2, "No such file or directory", "a.xml"), "a.xml: No such file or "),
        (FloatingPointError("loss_cls is nan"), "loss_cls is nan"),
        (ImportError("needs detectron2"), "needs detectron2"),
        (AssertionError("Dataset 'x' is empty!"), "Dataset 'x' is empty!"),
        (
            ValueError(
                "Caught ValueError in DataLoader worker process 0.\nOriginal Traceback (most "
                'recent call last):\n  File "x.py", line 1, in f\nValueError: b.jpg: truncated\n'
            ),
            "b.jpg: truncated",
        ),
    ],
)
def test_a_users_mistake_is_one_line(error, line, capsys):
    assert run(fails_with(error), []) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith(f"hypernet_d2: error: {line}") and err.count("\n") == 1
    with pytest.raises(type(error)):
        run(fails_with(error), ["KEY", "1", "--debug"])


def test_debug_does_not_reach_the_command_and_its_status_is_returned():
    seen = []
    assert run(lambda argv: seen.append(argv), ["a", "--debug", "b"]) == 0
    assert seen == [["a", "b"]]
    assert run(lambda argv: 3, []) == 3
    assert run(fails_with(KeyboardInterrupt()), []) == 130


@pytest.mark.parametrize(
    "error",
    [
        TypeError("a fault"),
        AssertionError(),
        RuntimeError("a fault"),
        KeyError("res2"),
        IndexError("list index out of range"),
    ],
)
def test_a_fault_of_the_program_keeps_its_traceback(error):
    with pytest.raises(type(error)):
        run(fails_with(error), [])


def fail_in_child(rank: int, error: type, message: str) -> None:
    raise error(message)


@pytest.mark.parametrize(
    ("error", "message", "expected"),
    [
        (ValueError, "b.json: not\nsorted", "b.json: not sorted"),
        (KeyError, "no set 'x'", "no set 'x'"),
        (TypeError, "a fault", None),
    ],
)
def test_an_error_of_a_child_process_is_one_line(error, message, expected):
    import torch.multiprocessing as mp

    with pytest.raises(mp.ProcessRaisedException) as raised:
        mp.start_processes(fail_in_child, (error, message), nprocs=1, start_method="fork")
    assert user_message(raised.value) == expected


def test_help_is_light_and_names_every_command():
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = python("-m", "hypernet_d2_cli", "--help")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0 and all(f"\n    {name}" in done.stdout for name in COMMANDS)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.5


@pytest.mark.detectron2
def test_detectron2_warns_of_nothing_in_a_command():
    done = python("-W", "default", "-c", "import hypernet_d2_cli, detectron2.modeling")
    assert done.returncode == 0 and "torch.jit.script" not in done.stderr


@pytest.mark.detectron2
@pytest.mark.parametrize("name", COMMANDS)
def test_help_has_an_example_whose_arguments_exist(name, capsys, monkeypatch):
    from hypernet_d2.cli.arguments import find_config

    monkeypatch.setattr(sys, "argv", list(sys.argv))  # which main changes
    with pytest.raises(SystemExit) as stopped:
        main([name, "--help"])
    assert stopped.value.code == 0
    text, _, example = capsys.readouterr().out.partition("\nexample:\n")
    words = shlex.split(example)
    assert words[:2] == ["hypernet-d2", name] and "--debug" in text
    if name != "benchmark":  # whose subcommands have arguments of their own
        assert all(word in text for word in words if word.startswith("--"))
    assert all(find_config(c) for o, c in pairwise(words) if o in ("--config", "--against"))


def test_an_unknown_command_is_refused(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["trian"])
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and error.startswith("hypernet_d2: error: ")
    assert "'trian'" in error and error.count("\n") == 1
