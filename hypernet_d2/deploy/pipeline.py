"""Detects in any number of pictures with Ray Data: a pool of detectors, and Parquet files out.

The paths are cut into parts. A worker process reads the pictures of a part, detects in them, and
writes two files at once: ``detections/PART.parquet`` has a row for each picture that was read, and
``failed/PART.parquet`` the path of each other one with the reason. What a file of either table
names is not done again, so that a job that ended early is continued by the same command.

Ray starts a worker that ended again, with the same part, without end. A picture that ends each of
its workers would therefore stop the job: `ATTEMPTS` limits this.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import fsspec
import pyarrow as pa
import pyarrow.parquet
from PIL import Image

from hypernet_d2.utils.images import IMAGE_FORMATS, IMAGE_SUFFIXES, bgr_array

from .detector import Detector

__all__ = ["DETECTIONS", "FAILED", "Options", "Progress", "detect_pictures", "list_pictures"]

DETECTIONS = pa.schema(
    {
        "path": pa.string(),
        "width": pa.int32(),
        "height": pa.int32(),
        "boxes": pa.list_(pa.list_(pa.float32(), 4)),  # x1 y1 x2 y2 in pixels
        "scores": pa.list_(pa.float32()),
        "classes": pa.list_(pa.string()),
    }
)
FAILED = pa.schema({"path": pa.string(), "error": pa.string()})
TABLES = {"detections": DETECTIONS, "failed": FAILED}
# How often a part is begun. Its pictures then are parts of their own.
ATTEMPTS = 2
WORKER_DIED = "the worker process ended: it had too little memory, or a library failed"
READERS = 4  # threads of a worker that read the next pictures of its part


@dataclass(frozen=True)
class Options:
    """The arguments of `Detector`, and the most pixels of a picture."""

    score_threshold: float | None = None
    num_proposals: int | None = None
    tile: int | None = None
    overlap: int | None = None
    max_pixels: int = 100_000_000


class Progress(NamedTuple):
    """How many pictures a part had."""

    detected: int
    failed: int


def list_pictures(url: str) -> tuple[fsspec.AbstractFileSystem, list[str]]:
    """The file system of a URL, and the paths of the pictures in it, sorted.

    Args:
        url: a folder, whose pictures at any depth are taken, a pattern such as ``s3://a/*/*.jpg``,
            or one picture; of any file system of fsspec.

    Raises:
        FileNotFoundError: there is none.
    """
    fs, path = fsspec.core.url_to_fs(url)
    if any(character in path for character in "*?["):
        found = fs.glob(path)
    else:
        found = fs.find(path)  # of a file: itself
    paths = sorted(name for name in found if name.lower().endswith(IMAGE_SUFFIXES))
    if not paths:
        raise FileNotFoundError(f"{url}: no picture ({', '.join(IMAGE_SUFFIXES)})")
    return fs, paths


def detect_pictures(
    model: str | os.PathLike,
    url: str,
    output: str,
    options: Options | None = None,
    *,
    workers: int = 1,
    part: int = 200,
    build: Callable[[Path], Callable] | None = None,
) -> Iterator[Progress]:
    """Detect in the pictures of ``url`` that ``output`` does not have yet, on the Ray that runs.

    A picture that cannot be read or detected in is a row of the table ``failed``; so is one that
    ends its worker process.

    Args:
        model: an exported model, which is sent to the workers.
        url: see `list_pictures`; the workers read from it.
        output: URL of a folder; the workers write into it.
        options: the same as in an earlier run of this ``output``.
        workers: processes, each with one detector and one CPU.
        part: pictures of a task. It is what is lost when a process ends.
        build: makes the detector from the path of a copy of the model; default: `Detector`, with
            one thread.

    Yields:
        The number of pictures of each part as it is written.

    Raises:
        FileNotFoundError, ValueError: no such model or pictures, or ``output`` was written with
            another model or other options.
        OSError: a part cannot be written.
    """
    options = options or Options()
    content = Path(model).read_bytes()
    fs, paths = list_pictures(url)
    out_fs, folder = fsspec.core.url_to_fs(output)
    _check_run(out_fs, folder, content, options)
    if out_fs.exists(f"{folder}/begun"):  # of a job that ended early
        out_fs.rm(f"{folder}/begun", recursive=True)
    build = build or partial(Detector, threads=1)
    worker = {"model": content, "build": build, "fs": fs, "out_fs": out_fs, "folder": folder}
    worker["options"] = options
    yield from _run(_remaining(paths, out_fs, folder), part, workers, worker)
    # What is left belongs to parts whose worker ended. Picture by picture, one of them is found.
    yield from _run(_remaining(paths, out_fs, folder), 1, workers, worker)


def _run(paths: Sequence[str], part: int, workers: int, worker: dict) -> Iterator[Progress]:
    """Detect in parts of the paths."""
    if not paths:
        return
    import ray

    parts = [pa.table({"path": paths[k : k + part]}) for k in range(0, len(paths), part)]
    results = ray.data.from_arrow(parts).map_batches(
        _Worker,
        batch_size=None,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(size=min(workers, len(parts))),
        fn_constructor_kwargs=worker,
        num_cpus=1,
    )
    for row in results.iter_rows():
        if row["error"]:
            raise OSError(row["error"])
        yield Progress(row["detected"], row["failed"])


class _Worker:
    """Detects in the pictures of a part and writes them."""

    def __init__(self, model: bytes, build: Callable, fs, out_fs, folder: str, options: Options):
        self.fs, self.out_fs, self.folder, self.options = fs, out_fs, folder, options
        with tempfile.TemporaryDirectory() as temporary:
            path = Path(temporary) / "model"
            path.write_bytes(model)
            self.detector = build(path)
        self.readers = ThreadPoolExecutor(READERS)

    def __call__(self, part: pa.Table) -> pa.Table:
        paths = part["path"].to_pylist()
        rows, error = {"detections": [], "failed": []}, ""
        try:
            marker = f"{self.folder}/begun/{_name(paths)}"
            # Empty, if the process ended while it wrote it.
            begun = int(self.out_fs.cat_file(marker) or 0) if self.out_fs.exists(marker) else 0
            if begun < ATTEMPTS:
                self.out_fs.makedirs(f"{self.folder}/begun", exist_ok=True)
                self.out_fs.pipe_file(marker, str(begun + 1).encode())
                for path, result in zip(paths, map(self.detect, self.read(paths)), strict=True):
                    table = "failed" if "error" in result else "detections"
                    rows[table].append({"path": path, **result})
            elif len(paths) == 1:
                rows["failed"] = [{"path": paths[0], "error": WORKER_DIED}]
            for table, values in rows.items():
                _write(self.out_fs, self.folder, table, values)
            self.out_fs.rm_file(marker)
        except Exception as failure:
            error = f"{self.folder}: cannot be written: {failure}"
        counts = {"detected": [len(rows["detections"])], "failed": [len(rows["failed"])]}
        return pa.table({**counts, "error": [error]})

    def read(self, paths: Sequence[str]) -> Iterator[bytes | Exception]:
        """The content of each file, read a few files ahead."""
        ahead = [self.readers.submit(self.fs.cat_file, path) for path in paths[:READERS]]
        for index in range(len(paths)):
            future = ahead.pop(0)
            if index + READERS < len(paths):
                ahead.append(self.readers.submit(self.fs.cat_file, paths[index + READERS]))
            yield future.exception() or future.result()

    def detect(self, content: bytes | Exception) -> dict:
        """A row of ``detections``, or the ``error``, without the path."""
        options = asdict(self.options)
        most = options.pop("max_pixels")
        try:
            if isinstance(content, Exception):
                raise content
            with Image.open(io.BytesIO(content), formats=IMAGE_FORMATS) as image:
                if image.width * image.height > most:
                    raise ValueError(f"{image.width} x {image.height} pixels; at most {most}")
                pixels = bgr_array(image)
            boxes, scores, classes = self.detector(pixels, **options)[:3]
        except Exception as error:  # damaged files make Pillow raise errors of every kind
            return {"error": f"{type(error).__name__}: {error}"}
        return {
            "width": pixels.shape[1],
            "height": pixels.shape[0],
            "boxes": boxes.tolist(),
            "scores": scores.tolist(),
            "classes": [self.detector.info.classes[index] for index in classes],
        }


def _write(fs: fsspec.AbstractFileSystem, folder: str, table: str, rows: list[dict]) -> None:
    """Write rows as one file of a table, entirely or not at all."""
    if not rows:
        return
    # A part that is done again, as its process ended before the end of the task, replaces itself.
    name = _name([row["path"] for row in rows])
    fs.makedirs(f"{folder}/{table}", exist_ok=True)
    with fs.transaction, fs.open(f"{folder}/{table}/{name}.parquet", "wb") as file:
        pa.parquet.write_table(pa.Table.from_pylist(rows, TABLES[table]), file)


def _name(paths: Sequence[str]) -> str:
    """The name of a part or of the file of some of its pictures."""
    return hashlib.sha256("\n".join(paths).encode()).hexdigest()[:32]


def _remaining(paths: Iterable[str], fs: fsspec.AbstractFileSystem, folder: str) -> list[str]:
    """The paths that neither table has."""
    done = set()
    for table in TABLES:
        for name in fs.glob(f"{folder}/{table}/*.parquet"):
            with fs.open(name, "rb") as file:
                done |= set(pa.parquet.read_table(file, columns=["path"])["path"].to_pylist())
    return [path for path in paths if path not in done]


def _check_run(fs: fsspec.AbstractFileSystem, folder: str, model: bytes, options: Options) -> None:
    """Store what a run depends on, or compare it with what an earlier run has stored."""
    run = {"model_sha256": hashlib.sha256(model).hexdigest(), **asdict(options)}
    path = f"{folder}/run.json"
    if not fs.exists(path):
        fs.makedirs(folder, exist_ok=True)
        with fs.transaction, fs.open(path, "wb") as file:
            file.write(json.dumps(run, indent=2).encode())
        return
    before = json.loads(fs.cat_file(path))
    different = sorted(key for key in run if run[key] != before.get(key))
    if different:
        key = different[0]
        raise ValueError(
            f"{folder}: was written with {key} {before.get(key)}, not {run[key]}: give another "
            "output"
        )
