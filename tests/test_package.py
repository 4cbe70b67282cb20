"""Packaging, .ci/run, and what the test suite does without detectron2."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import textwrap
import zipfile
from pathlib import Path

import pytest

import hypernet_d2

ROOT = Path(__file__).resolve().parents[1]
COMMIT = re.compile(r"\b[0-9a-f]{40}\b")


def run(*command, cwd: Path = ROOT, **env: str) -> subprocess.CompletedProcess:
    """Run with stdout and stderr together; ``env`` is added to an environment without our keys."""
    ours = ("DETECTRON2", "HYPERNET_D2_REQUIRE_DETECTRON2", "CONDA_PREFIX", "PYTEST_ADDOPTS")
    kept = {key: value for key, value in os.environ.items() if key not in ours}
    return subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env={**kept, **env},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
    )


def write(path: Path, text: str, mode: int = 0o644) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(textwrap.dedent(text))
    path.chmod(mode)


def copy_checkout(to: Path) -> Path:
    """What packaging and the set-up read, in a folder with a space in its name."""
    checkout = to / "a checkout"
    checkout.mkdir()
    files = ("setup.py", "hypernet_d2_cli.py", "pyproject.toml", "README.md", "LICENSE")
    for name in (*files, "MANIFEST.in"):
        shutil.copy(ROOT / name, checkout)
    ignore = shutil.ignore_patterns("__pycache__")
    for name in ("hypernet_d2", "configs", "tools"):
        shutil.copytree(ROOT / name, checkout / name, symlinks=True, ignore=ignore)
    return checkout


# Packaging


def test_wheel_holds_every_module_and_config(tmp_path):
    checkout = copy_checkout(tmp_path)
    built = run(sys.executable, "setup.py", "-q", "bdist_wheel", "-d", tmp_path, cwd=checkout)
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name.startswith(f"hypernet_d2-{hypernet_d2.__version__}-"), built.stdout
    names = set(zipfile.ZipFile(wheel).namelist())
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "hypernet_d2").rglob("*.py")}
    configs = {str(path.relative_to(ROOT)) for path in (ROOT / "configs").rglob("*.yaml")}
    assert modules | {"hypernet_d2_cli.py"} <= names
    assert "hypernet_d2/py.typed" in names
    assert {f"hypernet_d2/model_zoo/{name}" for name in configs} <= names
    assert "hypernet_d2/deploy/models/digits.onnx" in names
    assert "hypernet_d2/model_zoo/weights/BCCD-Detection_hypernet_lite0.pth" in names
    assert not [name for name in names if name.startswith(("tests/", "tools/", "demo/"))]


BROKEN = {  # detectron2/__init__.py, and the reason that is given
    "# hidden": "which is not installed",
    "raise ImportError('undefined symbol: stub\\nmore')": "ImportError: undefined symbol: stub. ",
    "import warnings; warnings.warn('stub'); raise OSError('libcudart: no')": "OSError: libcudart",
    "": "does not load: ModuleNotFoundError: No module named 'detectron2.",  # half installed
}


def test_a_detectron2_that_cannot_be_used_leaves_what_needs_none(tmp_path):
    for number, text in enumerate(BROKEN):
        write(tmp_path / str(number) / "detectron2" / "__init__.py", text)
    code = f"""
        import importlib, sys
        rooms = "checkpoint config engine evaluation export model_zoo modeling".split()
        for number, reason in enumerate({list(BROKEN.values())}):
            for name in list(sys.modules):
                if name.startswith(("detectron2", "hypernet_d2")):
                    del sys.modules[name]
            sys.path.insert(0, {str(tmp_path)!r} + f"/{{number}}")
            importlib.invalidate_caches()
            if number == 0:
                sys.modules["detectron2"] = None
            import hypernet_d2, hypernet_d2.layers, hypernet_d2.utils, hypernet_d2.deploy
            from hypernet_d2.data import generate_digits
            loads = [
                *(lambda r=r: importlib.import_module("hypernet_d2." + r) for r in rooms),
                *(lambda r=r: getattr(hypernet_d2, r) for r in rooms),
                lambda: hypernet_d2.add_hypernet_config,
                lambda: hypernet_d2.data.load_dataset,
            ]
            for load in loads:
                try:
                    load()
                except ImportError as error:
                    assert str(error).startswith("hypernet_d2 needs detectron2, "), error
                    assert reason in str(error), error
                    assert str(error).endswith(hypernet_d2.DETECTRON2_HELP), error
                    assert len(str(error).splitlines()) == 1, error
                else:
                    raise AssertionError("it loads without detectron2")
    """
    done = run(sys.executable, "-W", "always::UserWarning", "-c", textwrap.dedent(code),
               PYTHONPATH=str(ROOT))  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "")


def test_a_command_says_how_to_get_a_detectron2_that_loads(tmp_path):
    write(tmp_path / "detectron2" / "__init__.py", "raise OSError('libcudart: no')")
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    done = run(sys.executable, ROOT / "demo" / "demo.py", "--help", PYTHONPATH=path)
    assert done.returncode == 2
    (line,) = done.stdout.splitlines()
    assert line.startswith("hypernet_d2: error: hypernet_d2 needs detectron2, which is installed ")
    assert "OSError: libcudart: no. " in line and line.endswith(hypernet_d2.DETECTRON2_HELP)


@pytest.mark.detectron2
def test_loading_the_package_prints_nothing():
    done = run(sys.executable, "-c", "import hypernet_d2, hypernet_d2.engine", PYTHONPATH=str(ROOT))
    assert (done.returncode, done.stdout) == (0, "")


def test_one_commit_of_detectron2_is_named_everywhere():
    places = (hypernet_d2.DETECTRON2_HELP, (ROOT / "README.md").read_text())
    assert [set(COMMIT.findall(text)) for text in places] == [
        set(COMMIT.findall(hypernet_d2.DETECTRON2_HELP))
    ] * 2
    # tools/set_up reads it from the package, by the one line that has it.
    source = (ROOT / "hypernet_d2" / "__init__.py").read_text()
    assert len(re.findall(r"@[0-9a-f]{40}", source)) == 1


# .ci/run and tests/conftest.py


@pytest.mark.parametrize("failing", ["", "test-all", "test-plain"])
def test_ci_run_ends_with_the_last_line_and_the_status_of_the_tests(tmp_path, failing):
    summary = "===== the last line of pytest ====="
    write(
        tmp_path / "bin" / "make",
        f"""\
        #!/bin/sh
        [ "$HYPERNET_D2_REQUIRE_DETECTRON2" = 1 ] || exit 9
        echo "{summary} of $1"
        [ "$1" = "{failing}" ] || exit 0
        echo "make: *** [Makefile:1: $1] Error 1" >&2
        exit 2
        """,
        0o755,
    )
    search = os.pathsep.join([str(tmp_path / "bin"), os.environ["PATH"]])
    done = run(ROOT / ".ci" / "run", PATH=search)
    assert done.returncode == (2 if failing else 0), done.stdout
    assert done.stdout.splitlines()[-1] == f"{summary} of {failing or 'test-all'}"


@pytest.fixture
def tiny_suite(tmp_path):
    """A function that runs pytest on five tests with a copy of our conftest.py."""
    write(
        tmp_path / "tests" / "test_tiny.py",
        """\
        import pytest

        def test_plain():
            pass

        def test_unmarked():
            pytest.skip("unmarked")

        @pytest.mark.detectron2
        def test_skips_itself():
            pytest.skip("for no good reason")

        @pytest.mark.detectron2
        @pytest.mark.bccd
        def test_photographs(bccd_root):
            pass

        @pytest.mark.slow
        def test_slow():
            pass
        """,
    )
    shutil.copy(ROOT / "tests" / "conftest.py", tmp_path / "tests")
    shutil.copy(ROOT / "pyproject.toml", tmp_path)

    def call(*options: str, **env: str) -> subprocess.CompletedProcess:
        # DETECTRON2_DATASETS: a folder without BCCD.
        env = {"PYTHONPATH": str(ROOT), "DETECTRON2_DATASETS": str(tmp_path), **env}
        command = (sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--color=no")
        return run(*command, *options, cwd=tmp_path, **env)

    return call


def test_suite_names_what_it_left_out(tiny_suite):
    done = tiny_suite(DETECTRON2="none")
    assert done.returncode == 0, done.stdout
    assert "1 passed, 4 skipped" in done.stdout.splitlines()[-1]
    assert "left out: slow tests, which make test-all (pytest --slow) runs" in done.stdout
    left_out = done.stdout.partition("left out: no detectron2: DETECTRON2=none hides it")[2]
    assert "test_tiny.py: 2 tests\n" in left_out
    assert hypernet_d2.DETECTRON2_HELP in left_out
    assert "test_tiny.py: 1 test\n" in left_out.partition("left out: Skipped: unmarked")[2]


def test_suite_that_requires_detectron2_does_not_start_without(tiny_suite):
    done = tiny_suite(DETECTRON2="none", HYPERNET_D2_REQUIRE_DETECTRON2="1")
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert "detectron2 is missing" in done.stdout and "passed" not in done.stdout


@pytest.mark.detectron2
def test_suite_that_requires_detectron2_fails_a_skip_but_for_missing_data(tiny_suite):
    done = tiny_suite("--slow", HYPERNET_D2_REQUIRE_DETECTRON2="1")
    assert done.returncode == pytest.ExitCode.TESTS_FAILED, done.stdout
    assert "1 failed, 2 passed, 2 skipped" in done.stdout.splitlines()[-1]
    assert "test_skips_itself needs detectron2, which is here, but was skipped" in done.stdout
    assert "left out: no BCCD" in done.stdout
