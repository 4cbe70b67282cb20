"""Writes the report on a trained model."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import yaml
from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetCatalog
from detectron2.structures import BoxMode

from hypernet_d2.config import add_hypernet_config
from hypernet_d2.data import load_dataset
from hypernet_d2.evaluation.proposal_recall import recall_file
from hypernet_d2.utils.files import atomic_write, similar_files

from . import sections
from .advice import RunFiles
from .analysis import Analysis, analyze
from .evaluated_set import read_evaluated_set
from .page import write_page
from .training import read_training

__all__ = ["THRESHOLDS_FILE", "read_run", "write_report"]

THRESHOLDS_FILE = "score_thresholds.json"


def write_report(
    output_dir: str | os.PathLike, dataset_name: str | None = None, *, num_worst: int = 20
) -> Path:
    """Write ``report.html``, ``report.md`` and ``score_thresholds.json`` of a trained model.

    They are written from the files of a training or evaluation: ``config.yaml``,
    ``inference/DATASET_instances_results.json``, and, if they are there, ``metrics.json`` and
    ``proposal_recall_DATASET.json``. ``report.html`` holds its pictures; those of ``report.md`` are
    in the folder ``report``. ``score_thresholds.json`` is {class name: score threshold with the
    largest F1 at IoU 0.5}; classes without a right detection are missing in it.

    Args:
        output_dir: ``OUTPUT_DIR`` of the training.
        dataset_name: the evaluated set, registered; by default the first of ``DATASETS.TEST``.
        num_worst: number of the images with the most errors that are shown.

    Returns:
        The path of ``report.html``.

    Raises:
        FileNotFoundError: the config or the detections are missing.
        KeyError: the set is not registered.
        ValueError: the detections are of another set, or the set has no objects.
        ImportError: matplotlib is not installed.
    """
    output_dir = Path(output_dir)
    analysis, run = read_run(output_dir, dataset_name)
    data = analysis.data
    train_name, records = _training_records(run.cfg)
    sides = {data.name: np.sqrt(data.areas[data.objects])}
    counts = {data.name: np.array([curve.objects for curve in analysis.curves])}
    if train_name is not None:
        sides = {train_name: _sides(records), **sides}
        counts = {train_name: run.training_objects, **counts}
    shown = records if train_name is not None else load_dataset(data.name)
    models = {output_dir.name or "model": analysis}
    parts = [
        sections.summary_section(analysis, run),
        sections.data_section(analysis, train_name, shown, sides, counts),
        sections.training_section({"model": run}, data.name),
        sections.class_section(models),
        sections.size_section(models),
        sections.threshold_section(models),
        sections.confusion_section(analysis),
        sections.error_section(models),
        sections.worst_section(analysis, num_worst),
    ]
    if run.recall is not None:
        parts.append(sections.proposal_section({"model": run.recall}))
    with atomic_write(output_dir / THRESHOLDS_FILE, "wb") as file:
        text = json.dumps(_thresholds(analysis), indent=2, ensure_ascii=False)
        file.write(f"{text}\n".encode())
    title = f"{output_dir.resolve().name} on {data.name}"
    return write_page(output_dir, title, parts)


def read_run(output_dir: Path, dataset_name: str | None = None) -> tuple[Analysis, RunFiles]:
    """The figures of a trained model, from the files in its folder; see `write_report`."""
    cfg = _read_config(output_dir)
    name = dataset_name or next(iter(cfg.DATASETS.TEST), None)
    if name is None:
        raise ValueError(f"{output_dir / 'config.yaml'}: DATASETS.TEST is empty; give --dataset")
    if name not in DatasetCatalog:
        raise KeyError(
            f"data set {name!r} of {output_dir / 'config.yaml'} is not registered; give the --data "
            "of the training"
        )
    analysis = analyze(read_evaluated_set(output_dir, name, cfg))
    classes = len(analysis.data.classes)
    train_name, records = _training_records(cfg)
    counts = None
    if train_name is not None:
        labels = [a["category_id"] for r in records for a in _objects(r)]
        counts = np.bincount(np.array(labels, dtype=int), minlength=classes)[:classes]
    path = recall_file(output_dir, name)
    recall = json.loads(path.read_text()) if path.is_file() else None
    number = len(records) if train_name is not None else None
    return analysis, RunFiles(cfg, read_training(output_dir), counts, recall, number)


def _read_config(output_dir: Path) -> CfgNode:
    path = output_dir / "config.yaml"
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; a training writes it{similar_files(path)}")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: not valid yaml: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected the config that a training writes")
    cfg = get_cfg()
    add_hypernet_config(cfg)
    cfg.set_new_allowed(True)  # keys of other plugins
    cfg.merge_from_other_cfg(CfgNode(content))
    return cfg


def _training_records(cfg: CfgNode) -> tuple[str | None, list[dict]]:
    """The name of the training set and its records; None if it is not registered."""
    name = next(iter(cfg.DATASETS.TRAIN), None)
    if name is None or name not in DatasetCatalog:
        return None, []
    return name, list(load_dataset(name))


def _objects(record: dict) -> list[dict]:
    return [a for a in record.get("annotations", ()) if not a.get("iscrowd", 0)]


def _sides(records: list[dict]) -> np.ndarray:
    boxes = [
        BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYWH_ABS)
        for record in records
        for a in _objects(record)
    ]
    xywh = np.asarray(boxes, dtype=float).reshape(-1, 4)
    return np.sqrt(xywh[:, 2] * xywh[:, 3])


def _thresholds(analysis: Analysis) -> dict[str, float]:
    pairs = zip(analysis.data.classes, analysis.thresholds, strict=True)
    return {name: threshold for name, threshold in pairs if threshold is not None}
