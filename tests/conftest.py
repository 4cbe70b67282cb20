"""Shared by all tests: which detectron2 is used, slow tests, data, seeds and threads.

Nothing here imports detectron2 at module level. A test that needs it carries
``pytest.mark.detectron2`` and imports it inside the test; where detectron2 cannot be used the test
is skipped, and the summary names it, the reason, and how to install detectron2. A test that takes
long carries ``pytest.mark.slow`` and runs with ``--slow`` only. Environment variables:

``DETECTRON2=none``
    Hides detectron2 even if it is installed.
``DETECTRON2=plain``
    Hides its compiled part, ``detectron2._C``, as on a machine where it was not compiled.
``HYPERNET_D2_REQUIRE_DETECTRON2=1``
    A missing detectron2 is an error, and each skip of a test that needs it is a failure, unless
    the test also needs data or a device that this machine does not have.
"""

from __future__ import annotations

import importlib
import os
import random
import sys
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
REQUIRE_DETECTRON2 = os.environ.get("HYPERNET_D2_REQUIRE_DETECTRON2", "") not in ("", "0")

DATA = {"bccd": "BCCD", "coco_sample": "coco_sample"}  # marker: folder
PACKAGES = ("sahi", "trackers", "gradio")  # markers; the set-up does not install them

_missing = pytest.StashKey[dict]()


def _why_no_detectron2() -> str | None:
    """None if detectron2 can be imported, otherwise the reason in one line.

    Its compiled part is optional. A detectron2 that is hidden or does not load is made
    unimportable for the session, so that the package under test behaves as without detectron2.
    """
    form = os.environ.get("DETECTRON2")
    if form == "plain":
        sys.modules["detectron2._C"] = None
    if form == "none":
        reason = "DETECTRON2=none hides it"
    elif importlib.util.find_spec("detectron2") is None:
        reason = "it is not installed"
    else:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                for name in ("data", "engine", "evaluation", "modeling"):
                    importlib.import_module(f"detectron2.{name}")
            return None
        except Exception as error:  # detectron2 of another PyTorch raises more than ImportError
            reason = f"it is installed but does not load: {next(iter(str(error).splitlines()), '')}"
    for name in [m for m in sys.modules if m.partition(".")[0] == "detectron2"]:
        del sys.modules[name]
    sys.modules["detectron2"] = None
    return reason


def _find_data(folder: str) -> Path | None:
    """A data set's folder in ``$DETECTRON2_DATASETS``, or in ``../shared/datasets``."""
    root = os.environ.get("DETECTRON2_DATASETS") or ROOT.parent / "shared" / "datasets"
    found = Path(root) / folder
    return found if found.is_dir() else None


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="also run the tests marked slow")


def pytest_configure(config: pytest.Config) -> None:
    os.environ.setdefault("MPLBACKEND", "Agg")
    torch.set_num_threads(1)  # on models this small, more threads only add waiting
    missing = {}
    reason = _why_no_detectron2()
    if reason is not None:
        if REQUIRE_DETECTRON2:
            raise pytest.UsageError(
                f"HYPERNET_D2_REQUIRE_DETECTRON2 is set, but detectron2 is missing: {reason}. "
                f"{_how_to_get_detectron2()}"
            )
        missing["detectron2"] = f"no detectron2: {reason}"
    for marker, folder in DATA.items():
        if _find_data(folder) is None:
            missing[marker] = f"no {folder} in $DETECTRON2_DATASETS nor in ../shared/datasets"
    if not torch.cuda.is_available():
        missing["cuda"] = "no CUDA device"
    for package in PACKAGES:
        if importlib.util.find_spec(package) is None:
            missing[package] = f"no {package}: pip install {package}"
    if not config.getoption("--slow"):
        missing["slow"] = "slow tests, which make test-all (pytest --slow) runs"
    config.stash[_missing] = missing


def pytest_report_header(config: pytest.Config) -> str:
    if "detectron2" in config.stash[_missing]:
        return config.stash[_missing]["detectron2"]
    try:
        importlib.import_module("detectron2._C")
    except Exception as error:
        return f"detectron2: plain Python ({next(iter(str(error).splitlines()), '')})"
    return "detectron2: with its compiled part"


def _how_to_get_detectron2() -> str:
    from hypernet_d2 import DETECTRON2_HELP

    return DETECTRON2_HELP


def _reasons(item: pytest.Item) -> list[str]:
    missing = item.config.stash[_missing]
    return [reason for marker, reason in missing.items() if item.get_closest_marker(marker)]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        reasons = _reasons(item)
        if reasons:
            item.add_marker(pytest.mark.skip(reason="; ".join(reasons)))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo):
    report = yield
    if (
        REQUIRE_DETECTRON2
        and report.skipped
        and not hasattr(report, "wasxfail")
        and item.get_closest_marker("detectron2")
        and not _reasons(item)
    ):
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid} needs detectron2, which is here, but was skipped"
    return report


def pytest_terminal_summary(terminalreporter, config: pytest.Config) -> None:
    """Name what was left out, by reason and file, and how to bring it in."""
    missing = config.stash[_missing]
    counts = {reason: Counter() for reason in missing.values()}
    for report in terminalreporter.stats.get("skipped", []):
        keywords = getattr(report, "keywords", ())  # a module that is left out has none
        reasons = [reason for marker, reason in missing.items() if marker in keywords]
        for reason in reasons or [report.longrepr[2]]:
            counts.setdefault(reason, Counter())[report.nodeid.partition("::")[0]] += 1
    for reason, files in counts.items():
        if not files:
            continue
        terminalreporter.section(f"left out: {reason}")
        for name, count in sorted(files.items()):
            terminalreporter.line(f"{name}: {count} test{'s' if count > 1 else ''}")
        if reason == missing.get("detectron2"):
            terminalreporter.line(_how_to_get_detectron2())


@pytest.fixture(scope="session", autouse=True)
def datasets(tmp_path_factory: pytest.TempPathFactory):
    """``DETECTRON2_DATASETS`` for the session: a temporary folder, with links to data if found.

    What the tests generate must not land among the user's data, nor come from an older version's.
    """
    folder = tmp_path_factory.mktemp("datasets")
    for name in DATA.values():
        found = _find_data(name)
        if found is not None:
            (folder / name).symlink_to(found.resolve())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DETECTRON2_DATASETS", str(folder))
        yield folder


@pytest.fixture(autouse=True)
def seed() -> int:
    """Seeds Python, NumPy and PyTorch before each test, and returns the seed."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    return 0


@pytest.fixture(scope="session")
def bccd_root(datasets: Path) -> Path:
    """The folder BCCD with ``Annotations``, ``ImageSets`` and ``JPEGImages``."""
    if not (datasets / "BCCD").is_dir():
        pytest.skip("no BCCD in $DETECTRON2_DATASETS nor in ../shared/datasets")
    return datasets / "BCCD"


@pytest.fixture
def catalog():
    """Names that a test registers; they are removed after it."""
    from detectron2.data import DatasetCatalog, MetadataCatalog

    names: list[str] = []
    yield names
    for name in names:
        DatasetCatalog.pop(name, None)
        MetadataCatalog.pop(name, None)


@pytest.fixture
def register(tmp_path: Path, catalog: list[str]):
    """A function that registers the content of a json, in COCO's format."""
    from detectron2.data.datasets import register_coco_instances

    from tests.evaluation.sets import write_coco

    def call(content: dict, name: str = "own", **metadata) -> str:
        json_file = write_coco(tmp_path / name, content)
        register_coco_instances(name, metadata, str(json_file), str(tmp_path / name))
        catalog.append(name)
        return name

    return call
