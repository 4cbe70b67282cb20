"""An OUTPUT_DIR with a registered path handler, as clusters with an object store have."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.helpers import tiny_cfg, write_voc

pytestmark = pytest.mark.detectron2


@pytest.fixture
def store(tmp_path, monkeypatch):
    """The local folder behind the prefix ``store://``."""
    from detectron2.utils.file_io import PathHandler, PathManager

    folder = tmp_path / "behind the handler"
    folder.mkdir()

    class Handler(PathHandler):
        def _get_supported_prefixes(self):
            return ["store://"]

        def _get_local_path(self, path, force=False, **kwargs):
            return str(folder / path.removeprefix("store://"))

        def _open(self, path, mode="r", buffering=-1, **kwargs):
            return open(self._get_local_path(path), mode)

        def _exists(self, path, **kwargs):
            return os.path.exists(self._get_local_path(path))

        def _isfile(self, path, **kwargs):
            return os.path.isfile(self._get_local_path(path))

        def _isdir(self, path, **kwargs):
            return os.path.isdir(self._get_local_path(path))

        def _ls(self, path, **kwargs):
            return os.listdir(self._get_local_path(path))

        def _mkdirs(self, path, **kwargs):
            os.makedirs(self._get_local_path(path), exist_ok=True)

        def _rm(self, path, **kwargs):
            os.remove(self._get_local_path(path))

    PathManager.register_handler(Handler(), allow_override=True)
    monkeypatch.chdir(tmp_path)  # where a folder "store:" would be made by mistake
    return folder


@pytest.fixture
def cfg(tmp_path):
    from detectron2.data import DatasetCatalog, MetadataCatalog

    from hypernet_d2.data import register_voc_style

    write_voc(tmp_path / "data", count=2)
    register_voc_style("stored", tmp_path / "data", "all", ["square", "bar"])
    yield tiny_cfg(
        "DATASETS.TRAIN", ("stored",), "DATASETS.TEST", (), "MODEL.ROI_HEADS.NUM_CLASSES", 2,
        "SOLVER.MAX_ITER", 2, "SOLVER.CHECKPOINT_PERIOD", 1, "OUTPUT_DIR", "store://run",
    )  # fmt: skip
    DatasetCatalog.pop("stored")
    MetadataCatalog.pop("stored")


def test_a_run_is_written_to_and_resumed_from_it(store, cfg, tmp_path):
    from hypernet_d2.engine import Trainer

    Trainer(cfg).train()
    files = {path.name for path in (store / "run").iterdir()}
    assert {"model_0000000.pth", "model_final.pth", "last_checkpoint", "metrics.json"} <= files
    assert not (tmp_path / "store:").exists()

    (store / "run/model_final.pth").write_bytes(b"damaged")
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=True)
    assert trainer.start_iter == 2  # from model_0000001.pth


def test_the_alternating_schedule_writes_and_resumes_there(store, cfg, tmp_path, monkeypatch):
    from hypernet_d2.engine import Trainer, train_alternating

    unified = train_alternating(cfg)
    assert unified.MODEL.WEIGHTS == "store://run/model_final.pth"
    assert (store / "run/model_final.pth").is_file()
    assert (store / "run/step2_proposals/proposals_train_stored.pkl").is_file()
    assert not Path("store:").exists()
    monkeypatch.setattr(Trainer, "train", lambda self: pytest.fail("a finished step is repeated"))
    train_alternating(cfg, resume=True)


def test_the_results_of_an_evaluation_are_written_there(store, cfg, monkeypatch):
    from detectron2.engine import DefaultTrainer

    from hypernet_d2.engine import Trainer

    monkeypatch.setattr(DefaultTrainer, "test", lambda *_: {"bbox": {"AP": 1.0}})
    cfg.merge_from_list(["DATASETS.TEST", ("stored",)])
    Trainer.test(cfg, None)
    assert '"AP": 1.0' in (store / "run/results.json").read_text()
