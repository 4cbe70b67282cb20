"""Detection in many pictures: the tables of a worker, and whole jobs on two processes of Ray."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hypernet_d2.deploy import DIGITS_MODEL, Detections, Detector
from tests.deploy.toy import INFO

for _package in ("fsspec", "pyarrow"):
    pytest.importorskip(_package, reason='the pipeline needs the extra "ray"')

import fsspec  # noqa: E402
import pyarrow as pa  # noqa: E402
import pyarrow.parquet as pq  # noqa: E402

from hypernet_d2.deploy import pipeline  # noqa: E402
from hypernet_d2.deploy.pipeline import Options, detect_pictures, list_pictures  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
DEADLY, FIRST = 13, 14  # widths of pictures


class Whole:
    """Finds one object in a picture: the picture.

    Its process is killed by each picture of width `DEADLY`, and by the first one of width `FIRST`.
    """

    info = INFO

    def __init__(self, path: Path):
        self.content = path.read_bytes()

    def __call__(self, image: np.ndarray, **options) -> Detections:
        height, width = image.shape[:2]
        marker = Path(os.environ.get("KILLED_ONCE", ""))
        if width == DEADLY or (width == FIRST and not marker.exists()):
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if width == 15:
            raise FloatingPointError("not finite")
        boxes = np.array([[0, 0, width, height]], np.float32)
        return Detections(boxes, np.array([0.5], np.float32), np.array([1]))


@pytest.fixture
def pictures(tmp_path) -> Path:
    """A folder with four pictures, two of which can be detected in."""
    folder = tmp_path / "pictures"
    (folder / "deep/er").mkdir(parents=True)
    Image.new("RGB", (8, 6)).save(folder / "a.png")
    Image.new("RGB", (9, 6)).save(folder / "deep/er/B.JPG")
    Image.new("RGB", (15, 6)).save(folder / "c.png")
    (folder / "d.png").write_bytes((folder / "a.png").read_bytes()[:40])
    (folder / "notes.txt").write_text("no picture")
    return folder


def table(output: Path, name: str) -> list[dict]:
    files = sorted((output / name).glob("*.parquet"))
    return [row for file in files for row in pq.read_table(file).to_pylist()]


@pytest.fixture
def worker(tmp_path):
    """A function that makes a worker, which writes to the folder ``out``."""
    fs = fsspec.filesystem("file")

    def make(folder: Path = tmp_path / "out", **options) -> pipeline._Worker:
        return pipeline._Worker(b"model", Whole, fs, fs, str(folder), Options(**options))

    return make


def test_a_worker_writes_two_tables(worker, pictures, tmp_path):
    _, paths = list_pictures(str(pictures))
    counts = worker(max_pixels=100)(pa.table({"path": [*paths, "/no/file.png"]})).to_pylist()
    assert counts == [{"detected": 2, "failed": 3, "error": ""}]
    assert table(tmp_path / "out", "detections") == [
        {
            "path": str(pictures / name),
            "width": width,
            "height": 6,
            "boxes": [[0, 0, width, 6]],
            "scores": [0.5],
            "classes": ["bright"],
        }
        for name, width in (("a.png", 8), ("deep/er/B.JPG", 9))
    ]
    failed = {Path(row["path"]).name: row["error"] for row in table(tmp_path / "out", "failed")}
    assert failed["c.png"] == "FloatingPointError: not finite"
    assert "FileNotFoundError" in failed["file.png"] and set(failed) == {
        "c.png", "d.png", "file.png",
    }  # fmt: skip
    worker(tmp_path / "small", max_pixels=47)(pa.table({"path": paths[:1]}))
    (row,) = table(tmp_path / "small", "failed")
    assert row["error"] == "ValueError: 8 x 6 pixels; at most 47"


def test_a_part_that_is_done_again_replaces_itself(worker, pictures, tmp_path):
    _, paths = list_pictures(str(pictures))
    for _ in range(2):
        worker()(pa.table({"path": paths}))
    assert len(table(tmp_path / "out", "detections")) == 2
    files = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert [path.suffix for path in files] == [".parquet"] * 2


def test_a_part_that_ends_its_workers_is_left_and_a_picture_is_a_failure(
    worker, pictures, tmp_path
):
    _, paths = list_pictures(str(pictures))
    begun = tmp_path / "out/begun"
    begun.mkdir(parents=True)
    for part in (paths, paths[:1]):
        (begun / pipeline._name(part)).write_text(str(pipeline.ATTEMPTS))
    nothing, one = (worker()(pa.table({"path": part})).to_pylist() for part in (paths, paths[:1]))
    assert nothing == [{"detected": 0, "failed": 0, "error": ""}]
    assert one == [{"detected": 0, "failed": 1, "error": ""}]
    assert table(tmp_path / "out", "failed") == [{"path": paths[0], "error": pipeline.WORKER_DIED}]
    (begun / pipeline._name(paths)).write_text(str(pipeline.ATTEMPTS - 1))
    assert worker()(pa.table({"path": paths})).to_pylist()[0]["detected"] == 2


def test_a_disk_that_cannot_be_written_is_the_end_of_the_job(worker, pictures, tmp_path):
    (tmp_path / "file").write_text("")
    _, paths = list_pictures(str(pictures))
    (counts,) = worker(tmp_path / "file")(pa.table({"path": paths})).to_pylist()
    assert "file: cannot be written: " in counts["error"]


@pytest.mark.parametrize("pattern", ["", "/*.png", "/a.png", "/**/*.JPG"])
def test_pictures_of_a_folder_a_pattern_and_a_file(pictures, pattern):
    fs, paths = list_pictures(f"file://{pictures}{pattern}")
    assert all(fs.exists(path) for path in paths)
    names = [Path(path).name for path in paths]
    expected = {"": 4, "/*.png": 3, "/a.png": 1, "/**/*.JPG": 1}
    assert len(names) == expected[pattern] and "notes.txt" not in names


def test_a_folder_without_pictures_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=f"{tmp_path}: no picture"):
        list_pictures(str(tmp_path))


def test_an_output_of_another_model_or_other_options_is_refused(pictures, tmp_path):
    output, fs = str(tmp_path / "out"), fsspec.filesystem("file")
    pipeline._check_run(fs, output, b"model", Options(tile=64))
    assert json.loads((tmp_path / "out/run.json").read_text())["tile"] == 64
    pipeline._check_run(fs, output, b"model", Options(tile=64))
    with pytest.raises(ValueError, match="out: was written with tile 64, not None"):
        pipeline._check_run(fs, output, b"model", Options())
    with pytest.raises(ValueError, match="was written with model_sha256"):
        pipeline._check_run(fs, output, b"other", Options(tile=64))


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    """A Ray of two processes."""
    ray = pytest.importorskip("ray", reason='the pipeline needs the extra "ray"')
    marker = tmp_path_factory.mktemp("ray") / "killed"
    path = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), str(ROOT)]))
    env = {"PYTHONPATH": path, "KILLED_ONCE": str(marker), "RAY_USAGE_STATS_ENABLED": "0"}
    with pytest.MonkeyPatch.context() as patch:
        for key, value in env.items():
            patch.setenv(key, value)
        ray.init(
            num_cpus=2, object_store_memory=10**8, include_dashboard=False, log_to_driver=False
        )
        yield marker
        ray.shutdown()


@pytest.mark.slow
def test_a_job_survives_killed_workers_and_is_continued(two_processes, pictures, tmp_path):
    for name, width in (("e", DEADLY), ("f", FIRST), ("g", 20), ("h", 21), ("i", 22)):
        Image.new("RGB", (width, 6)).save(pictures / f"{name}.png")
    arguments = (DIGITS_MODEL, str(pictures), str(tmp_path / "out"))

    def run() -> list[pipeline.Progress]:
        return list(detect_pictures(*arguments, workers=2, part=2, build=Whole))

    assert sum(progress.detected for progress in run()) == 6
    assert two_processes.exists()  # a worker was killed, and its part done again
    found = table(tmp_path / "out", "detections")
    assert sorted(row["width"] for row in found) == [8, 9, 14, 20, 21, 22]
    failed = {Path(row["path"]).name: row["error"] for row in table(tmp_path / "out", "failed")}
    assert set(failed) == {"c.png", "d.png", "e.png"}
    assert failed["e.png"] == pipeline.WORKER_DIED
    assert run() == []
    Image.new("RGB", (30, 6)).save(pictures / "new.png")
    assert run() == [pipeline.Progress(1, 0)]


@pytest.mark.slow
def test_a_job_detects_as_the_detector_does(two_processes, tmp_path):
    folder = ROOT / "docs/walkthrough"
    list(detect_pictures(DIGITS_MODEL, f"{folder}/1_image.jpg", str(tmp_path / "out")))
    (row,) = table(tmp_path / "out", "detections")
    boxes, scores, classes = Detector(DIGITS_MODEL, threads=1)(folder / "1_image.jpg")
    assert len(scores)
    np.testing.assert_array_equal(np.float32(row["boxes"]), boxes)
    np.testing.assert_array_equal(np.float32(row["scores"]), scores)
    assert row["classes"] == [str(index) for index in classes]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--workers", "0"], "--workers 0: expected 1 or more"),
        (["--tile-overlap", "3"], "--tile-overlap needs --tile"),
    ],
)
def test_a_wrong_option_is_one_line(words, message, capsys):
    from hypernet_d2.cli.detect_engine import main

    required = ["--engine", "ray", "--model", "m", "--input", "i", "--output", "o"]
    with pytest.raises(SystemExit):
        main([*required, *words])
    assert message in capsys.readouterr().err
    with pytest.raises(ValueError, match="--engine spark: expected detectron2 or ray"):
        main(["--engine", "spark"])
