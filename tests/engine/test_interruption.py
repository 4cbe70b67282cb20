"""Interrupted training resumes exactly, and complete files are never damaged."""

from __future__ import annotations

import shutil
import signal
from itertools import islice
from pathlib import Path

import pytest
import torch

from tests.reliability import small_run

pytestmark = pytest.mark.detectron2


@pytest.fixture(scope="module", autouse=True)
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("small_data")
    small_run.write_data(root)
    small_run.register(root)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> list[dict]:
    """The losses of an uninterrupted run."""
    output = tmp_path_factory.mktemp("uninterrupted")
    small_run.train(output)
    return small_run.losses(output)


def assert_same(rows: list[dict], expected: list[dict]) -> None:
    assert len(rows) == len(expected)
    differences = map(small_run.difference, rows, expected)
    assert max(differences) <= 1e-5


SLOW = pytest.mark.slow


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=SLOW), pytest.param(2, marks=SLOW)])
def test_a_resumed_run_has_the_losses_of_an_uninterrupted_one(uninterrupted, tmp_path, workers):
    """SIGTERM after iterations 4 and 7, also to the worker processes of the loader."""
    opts = ("DATALOADER.NUM_WORKERS", workers)
    for iteration in (4, 7):
        with pytest.raises(SystemExit) as left:
            small_run.train(tmp_path, *opts, at={iteration: small_run.sigterm})
        assert left.value.code == 143
        assert (tmp_path / "last_checkpoint").read_text() == f"model_{iteration:07}.pth"
    small_run.train(tmp_path, *opts)
    assert_same(small_run.losses(tmp_path), uninterrupted)
    assert len({row["total_loss"] for row in uninterrupted}) == len(uninterrupted)


def test_losses_depend_on_the_seed_only(uninterrupted, tmp_path):
    for name, seed in (("same", 7), ("other", 8)):
        with pytest.raises(SystemExit):
            small_run.train(tmp_path / name, "SEED", seed, at={2: small_run.sigterm})
    same, other = (small_run.losses(tmp_path / name) for name in ("same", "other"))
    assert_same(same, uninterrupted[:3])
    assert small_run.difference(other[0], uninterrupted[0]) > 1e-3


def test_batches_are_those_of_the_stock_loader():
    from detectron2.data import build_detection_train_loader

    from hypernet_d2.data.loader import build_train_loader

    cfg = small_run.config("DATALOADER.NUM_WORKERS", 0, "SOLVER.IMS_PER_BATCH", 3)
    stock = build_detection_train_loader(cfg, mapper=dict)
    names = [[image["file_name"] for image in batch] for batch in islice(stock, 12)]
    ours = build_train_loader(cfg, dict)
    ours.batch_sampler.start = 5
    assert [[image["file_name"] for image in batch] for batch in islice(ours, 7)] == names[5:]
    tall = [["tall" in name for name in batch] for batch in names]
    assert {len(set(batch)) for batch in tall} == {1}  # wide and tall ones do not mix


def checkpoints(folder):
    return sorted(path.name for path in folder.glob("*.pth"))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run with the checkpoints of iterations 2, 5 and the last."""
    folder = tmp_path_factory.mktemp("finished")
    small_run.train(folder, "SOLVER.MAX_ITER", 7)
    assert checkpoints(folder) == ["model_0000002.pth", "model_0000005.pth", "model_final.pth"]
    return folder


@pytest.fixture
def copy(finished, tmp_path):
    """A copy of it, to damage."""
    return shutil.copytree(finished, tmp_path / "copy")


def resumed_from(folder) -> str:
    from hypernet_d2.checkpoint import HyperNetCheckpointer

    return Path(HyperNetCheckpointer(torch.nn.Linear(1, 1), str(folder)).get_checkpoint_file()).name


def damage(path, how: str) -> None:
    content = path.read_bytes()
    half = len(content) // 2
    damaged = {"cut": content[:half], "empty": b"", "flipped": bytearray(content)}[how]
    if how == "flipped":
        damaged[half] ^= 1
    path.write_bytes(damaged)


@pytest.mark.parametrize("how", ["cut", "empty", "flipped"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_taken(copy, caplog, how):
    damage(copy / "model_final.pth", how)
    assert resumed_from(copy) == "model_0000005.pth"
    assert "model_final.pth is damaged" in caplog.text
    damage(copy / "model_0000005.pth", how)
    assert resumed_from(copy) == "model_0000002.pth"


@pytest.mark.parametrize(
    ("content", "message", "taken"),
    [
        ("", "last_checkpoint names no checkpoint", "model_final.pth"),
        ("model_0000004.pth", "model_0000004.pth does not exist", "model_0000002.pth"),
    ],
)
def test_a_wrong_last_checkpoint_file_is_named_and_the_newest_checkpoint_before_is_taken(
    copy, caplog, content, message, taken
):
    (copy / "last_checkpoint").write_text(content)
    (copy / "model_init.pth").write_bytes((copy / "model_final.pth").read_bytes())
    assert resumed_from(copy) == taken
    assert message in caplog.text


def test_checkpoints_of_an_earlier_longer_run_are_not_taken(copy):
    (copy / "last_checkpoint").write_text("model_0000005.pth")
    damage(copy / "model_0000005.pth", "cut")
    assert resumed_from(copy) == "model_0000002.pth"


def test_without_a_complete_checkpoint_all_damaged_ones_are_named(copy):
    for path in copy.glob("*.pth"):
        damage(path, "cut")
    with pytest.raises(ValueError, match="model_final.pth is damaged; .*model_0000002.pth is dam"):
        resumed_from(copy)


def test_a_full_disk_is_named_and_the_last_checkpoint_is_kept(finished, tmp_path):
    """A limit of the file size acts as a full disk does: a part of the file is written."""
    output = shutil.copytree(finished, tmp_path / "copy")
    resource = pytest.importorskip("resource")  # which Windows lacks
    before = checkpoints(output)
    size = (output / "model_final.pth").stat().st_size
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, hard))
    try:
        with pytest.raises(OSError, match=r"File too large.*copy/model_0000008\.pth"):
            small_run.train(output)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    assert checkpoints(output) == before
    assert not list(output.glob("*.part"))
    assert resumed_from(output) == "model_final.pth"


def test_a_missing_image_is_named_and_the_run_can_be_resumed_from_there(uninterrupted, tmp_path):
    """The checkpoint is of the iteration before the error: every third one has its own."""
    from detectron2.data import DatasetCatalog

    folder = Path(DatasetCatalog.get("small_tall")[0]["file_name"]).parent
    moved = folder.with_name("moved")
    try:
        with pytest.raises(ValueError, match=r"tall/JPEGImages/00\d\.jpg.*No such file"):
            small_run.train(tmp_path, at={6: lambda: folder.rename(moved)})
    finally:
        moved.rename(folder)
    completed = len(small_run.losses(tmp_path))
    assert resumed_from(tmp_path) == f"model_{completed - 1:07}.pth" != "model_0000005.pth"
    small_run.train(tmp_path)
    assert_same(small_run.losses(tmp_path), uninterrupted)


def test_sigterm_ends_an_evaluation_of_a_single_process(tmp_path, monkeypatch):
    from hypernet_d2.engine import Trainer

    monkeypatch.setattr(Trainer, "test", lambda *_: small_run.sigterm() or pytest.fail("went on"))
    with pytest.raises(SystemExit) as left:
        small_run.train(tmp_path, "TEST.EVAL_PERIOD", 2)
    assert left.value.code == 143
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000001.pth"
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
