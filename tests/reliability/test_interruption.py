"""Training that is interrupted goes on as if it had not been, and what is whole stays so."""

from __future__ import annotations

import signal

import pytest

from . import small_run

pytestmark = pytest.mark.detectron2


@pytest.fixture(scope="module", autouse=True)
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("small_data")
    small_run.write_data(root)
    small_run.register(root)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory) -> list[dict]:
    """The losses of a run from beginning to end."""
    output = tmp_path_factory.mktemp("unbroken")
    small_run.train(output)
    return small_run.losses(output)


def assert_same(rows: list[dict], expected: list[dict]) -> None:
    assert len(rows) == len(expected)
    differences = map(small_run.difference, rows, expected)
    assert max(differences) <= 1e-5


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_an_interrupted_run_has_the_losses_of_an_unbroken_one(unbroken, tmp_path, workers):
    """SIGTERM after iterations 4 and 7; the number of workers changes nothing either."""
    opts = ("DATALOADER.NUM_WORKERS", workers)
    for iteration in (4, 7):
        with pytest.raises(SystemExit) as left:
            small_run.train(tmp_path, *opts, at={iteration: signal.SIGTERM})
        assert left.value.code == 143
        assert (tmp_path / "last_checkpoint").read_text() == f"model_{iteration:07}.pth"
    small_run.train(tmp_path, *opts)
    assert_same(small_run.losses(tmp_path), unbroken)
    assert len({row["total_loss"] for row in unbroken}) == len(unbroken)
