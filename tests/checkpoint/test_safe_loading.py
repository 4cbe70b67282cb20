"""Checkpoints and proposal files that would run code when they are read, or are damaged."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

pytestmark = pytest.mark.detectron2


class Bomb:
    """Makes a folder when it is unpickled."""

    def __init__(self, file: Path):
        self.file = file

    def __reduce__(self):
        return os.mkdir, (str(self.file),)


@pytest.fixture
def bomb(tmp_path):
    """A Bomb; the test fails if the folder has been made."""
    made = tmp_path / "made by the bomb"
    yield Bomb(made)
    assert not made.exists()


def load_checkpoint(path) -> torch.nn.Module:
    from hypernet_d2.checkpoint import HyperNetCheckpointer

    model = torch.nn.Linear(2, 3)
    HyperNetCheckpointer(model).load(str(path))
    return model


def weights() -> dict:
    return {"weight": np.ones((3, 2), "float32"), "bias": np.arange(3, dtype="float32")}


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickles_of_arrays_load(tmp_path, protocol):
    content = {"model": weights(), "__author__": "test", "number": np.float32(2), "bytes": b"\xff"}
    path = tmp_path / "model.pkl"
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    assert load_checkpoint(path).bias.tolist() == [0, 1, 2]


def test_the_bomb_goes_off_in_a_stock_loader(tmp_path):
    pickle.loads(pickle.dumps(Bomb(tmp_path / "made")))
    assert (tmp_path / "made").is_dir()


@pytest.mark.parametrize("suffix", [".pkl", ".pth", ".pyth"])
@pytest.mark.parametrize("zipped", [True, False])
def test_a_checkpoint_that_would_run_code_is_refused(tmp_path, bomb, suffix, zipped):
    content = {"model": {**weights(), "extra": bomb}, "model_state": {"a": bomb}, "__author__": ""}
    path = tmp_path / f"model{suffix}"
    if suffix == ".pkl":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError, match=rf"model\{suffix}: cannot be read.*refused"):
        load_checkpoint(path)


@pytest.mark.parametrize(
    "code",
    [
        b"cbuiltins\neval\n(S'1'\ntR.",
        b"cnumpy\nsave\n.",
        b"cnumpy.core.multiarray\nfromfile\n.",
        b"cnumpy\nndarray.tofile\n.",
        b"\x80\x04\x8c\x05numpy\x94\x8c\x0edtype.__init__\x94\x93.",
    ],
)
def test_pickles_with_other_functions_are_refused(tmp_path, code):
    path = tmp_path / "model.pkl"
    path.write_bytes(code)
    with pytest.raises(ValueError, match=r"model\.pkl: cannot be read: .*refused"):
        load_checkpoint(path)


@pytest.mark.parametrize("suffix", [".pkl", ".pth"])
def test_a_damaged_checkpoint_is_named(tmp_path, suffix):
    whole = tmp_path / "whole"
    if suffix == ".pkl":
        whole.write_bytes(pickle.dumps({"model": weights(), "__author__": "test"}))
    else:
        torch.save({"model": {k: torch.from_numpy(v) for k, v in weights().items()}}, whole)
    content, path = whole.read_bytes(), tmp_path / f"model{suffix}"
    for damaged in (b"", content[: len(content) // 2], b"no pickle at all", content[7:]):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=rf"model\{suffix}: cannot be read"):
            load_checkpoint(path)


@pytest.mark.parametrize("content", [5, [1], {"model": [1]}, {"model": {"weight": [1.0]}}])
def test_a_checkpoint_without_weights_is_named(tmp_path, content):
    path = tmp_path / "model.pth"
    torch.save(content, path)
    with pytest.raises(ValueError, match=r"model\.pth"):
        load_checkpoint(path)


def test_a_weight_that_is_not_finite_is_named(tmp_path):
    path = tmp_path / "model.pth"
    torch.save({"model": {"weight": torch.full((3, 2), torch.nan), "bias": torch.ones(3)}}, path)
    with pytest.raises(ValueError, match=r"model\.pth: weight weight is not finite"):
        load_checkpoint(path)


def test_a_failed_load_does_not_break_the_next(tmp_path):
    from hypernet_d2.checkpoint import HyperNetCheckpointer

    bad, good = tmp_path / "bad.pkl", tmp_path / "good.pkl"
    bad.write_bytes(b"")
    good.write_bytes(pickle.dumps({"model": weights(), "__author__": "test"}))
    checkpointer = HyperNetCheckpointer(torch.nn.Linear(2, 3))
    with pytest.raises(ValueError, match="bad.pkl"):
        checkpointer.load(str(bad))
    checkpointer.load(str(good))
