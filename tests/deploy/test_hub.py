"""Publishing exported models, with a folder as the Hub, and reading them back."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from hypernet_d2.deploy import DIGITS_MODEL, Detector
from hypernet_d2.deploy.hub import push_to_hub

hub = pytest.importorskip("huggingface_hub", reason='publishing needs the extra "hub"')
pytest.importorskip("yaml", reason='publishing needs the extra "hub"')

CONFIG = """\
DATASETS: {TRAIN: [digits_train], TEST: [digits_val]}
MODEL:
  BACKBONE: {NAME: build_hyper_backbone}
  HYPERNET: {TRUNK: build_resnet_backbone, DATA: {PATH: /home/someone/digits}}
  PROPOSAL_GENERATOR: {NAME: HyperNetProposals}
  ROI_HEADS: {NAME: HyperNetROIHeads}
SOLVER: {MAX_ITER: 900, IMS_PER_BATCH: 4, BASE_LR: 0.01}
"""
RESULTS = {
    "digits_val": {"bbox": {"AP": 55.2145, "AP50": 75.18, "APl": float("nan"), "AP-0": 60.0}}
}


class FolderHub:
    """``huggingface_hub.HfApi``, with a folder for the Hub."""

    def __init__(self, folder: Path):
        self.folder, self.private = folder, {}

    def create_repo(self, repo_id: str, *, private: bool, exist_ok: bool) -> None:
        (self.folder / repo_id).mkdir(parents=True, exist_ok=exist_ok)
        self.private.setdefault(repo_id, private)

    def upload_folder(self, *, repo_id: str, folder_path: Path, commit_message: str) -> str:
        shutil.copytree(folder_path, self.folder / repo_id, dirs_exist_ok=True)
        return f"https://hub/{repo_id}/commit/1"


@pytest.fixture
def run(tmp_path) -> Path:
    """The output folder of a training."""
    folder = tmp_path / "run"
    (folder / "report").mkdir(parents=True)
    (folder / "report/curves.png").write_bytes(b"png")
    (folder / "config.yaml").write_text(CONFIG)
    (folder / "results.json").write_text(json.dumps(RESULTS))
    (folder / "model_final.pth").write_bytes(b"weights")
    return folder


@pytest.fixture
def push(tmp_path):
    """A function that runs the command, and returns the folder that it writes."""
    from hypernet_d2.cli.push import main

    def call(*words: str | Path) -> Path:
        main([*map(str, words), "--license", "apache-2.0", "--output", str(tmp_path / "digits")])
        return tmp_path / "digits"

    return call


def test_a_pushed_model_detects_as_before(push, run, tmp_path):
    folder = push(DIGITS_MODEL, "--run", run)
    assert sorted(path.name for path in folder.iterdir()) == [
        "README.md", "config.yaml", "digits.onnx", "report", "results.json",
    ]  # fmt: skip
    api = FolderHub(tmp_path / "hub")
    assert push_to_hub(folder, "me/digits", private=True, api=api).endswith("me/digits/commit/1")
    assert api.private == {"me/digits": True}
    picture = Path(__file__).parents[2] / "docs/walkthrough/1_image.jpg"
    found = Detector.from_pretrained(tmp_path / "hub/me/digits", threads=1)(picture)
    expected = Detector(DIGITS_MODEL, threads=1)(picture)
    assert len(found.scores)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_card_tells_license_data_results_and_training(push, run):
    card = hub.ModelCard.load(
        push(DIGITS_MODEL, "--run", run, "--data", "scikit-learn", "--data-license", "BSD")
        / "README.md"
    )
    assert card.data.license == "apache-2.0"
    assert card.data.pipeline_tag == "object-detection" and card.data.library_name == "hypernet_d2"
    values = {(r.dataset_name, r.metric_name): r.metric_value for r in card.data.eval_results}
    assert values == {("digits_val", "bbox AP"): 55.21, ("digits_val", "bbox AP50"): 75.18}
    for text in (
        "10 classes, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9,",
        "| `digits.onnx` | 5.3 MB |",
        "- trained on: `digits_train`\n- tested on: `digits_val`\n- `--data digits`\n"
        "- source: scikit-learn\n- license of the data: BSD\n",
        "| digits_val | bbox | 55.2 | 75.2 |  |  |  |  |",
        "| backbone | build_hyper_backbone of build_resnet_backbone |",
        "| iterations | 900 |",
        "hypernet-d2 train --config-file config.yaml",
    ):
        assert text in card.text
    assert "/home/someone" not in card.content


def test_without_a_training_the_card_has_neither_results_nor_command(push):
    card = hub.ModelCard.load(push(DIGITS_MODEL) / "README.md")
    assert card.data.eval_results is None
    assert "## Results" not in card.text and "## Training" not in card.text


def test_one_of_several_models_is_named(push, tmp_path):
    other = shutil.copy(DIGITS_MODEL, tmp_path / "other.onnx")
    folder = push(DIGITS_MODEL, other)
    with pytest.raises(ValueError, match="several models, digits.onnx, other.onnx: name one"):
        Detector.from_pretrained(folder)
    assert Detector.from_pretrained(folder, file="other.onnx").info.max_detections > 0
    with pytest.raises(FileNotFoundError, match="has no file third.onnx"):
        Detector.from_pretrained(folder, file="third.onnx")


def test_a_repository_is_read_from_the_cache_of_the_hub(tmp_path, monkeypatch):
    monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", True)
    repo, commit = tmp_path / "models--me--digits", "1" * 40
    (repo / "snapshots" / commit).mkdir(parents=True)
    (repo / "refs").mkdir()
    (repo / "refs/main").write_text(commit)
    shutil.copy(DIGITS_MODEL, repo / "snapshots" / commit)
    assert Detector.from_pretrained("me/digits").info.classes[9] == "9"
    with pytest.raises(OSError, match="offline|cache"):
        Detector.from_pretrained("me/letters")


@pytest.mark.parametrize("source", ["missing", "a/b/c", "/no/folder"])
def test_what_is_neither_folder_nor_repository_is_named(source):
    with pytest.raises(FileNotFoundError, match=f"{source}: neither a folder nor OWNER/NAME"):
        Detector.from_pretrained(source)


def test_mistakes_are_named_before_anything_is_written(push, run, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"digits/config.yaml: no such config"):
        push(DIGITS_MODEL, "--run", tmp_path / "digits")
    (run / "results.json").write_text("{")
    with pytest.raises(ValueError, match="results.json: cannot be read"):
        push(DIGITS_MODEL, "--run", run)
    assert not (tmp_path / "digits").exists()
    (tmp_path / "digits").mkdir()
    (tmp_path / "digits/mine.txt").write_text("")
    with pytest.raises(ValueError, match="expected a new or empty folder"):
        push(DIGITS_MODEL)
