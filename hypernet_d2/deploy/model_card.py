"""The model card of an exported model, from its metadata, its config and its results."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .metadata import ModelInfo

__all__ = ["CardText", "model_card", "read_run"]

METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl")


@dataclass(frozen=True)
class CardText:
    """What only the author knows."""

    name: str  # heading
    repo: str  # OWNER/NAME or folder, for the example
    license: str  # of the weights, as the Hub names it: "apache-2.0", "cc-by-4.0", "other"...
    data: str = ""  # where the training data comes from
    data_license: str = ""


@dataclass(frozen=True)
class Run:
    """Of the output folder of a training."""

    config: Mapping[str, Any] = field(default_factory=dict)
    results: Mapping[str, Mapping[str, Mapping[str, float]]] = field(default_factory=dict)
    files: Sequence[str] = ()


def read_run(folder: Path) -> Run:
    """``config.yaml`` and, where it is there, ``results.json`` of a training.

    Raises:
        FileNotFoundError: there is no config.
        ValueError: a file is damaged; it is named.
        ImportError: PyYAML is not installed.
    """
    try:
        import yaml
    except ImportError as error:
        raise ImportError('a model card needs PyYAML: pip install "hypernet-d2[hub]"') from error
    path = folder / "config.yaml"
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such config; expected the output folder of a training")
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
        path = folder / "results.json"
        results = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except (ValueError, yaml.YAMLError) as error:
        raise ValueError(f"{path}: cannot be read: {error}") from error
    return Run(config, results, sorted(entry.name for entry in folder.iterdir()))


def model_card(
    text: CardText, models: Mapping[str, tuple[ModelInfo, int]], run: Run | None = None
) -> str:
    """The text of ``README.md``: a YAML header as the Hub reads it, and Markdown.

    Args:
        text: what the author says.
        models: for each file its metadata and its size in bytes; all of one model.
        run: the training; without one, the card has neither results nor a command.

    Raises:
        ImportError: huggingface_hub is not installed.
    """
    run = run or Run()
    info = next(iter(models.values()))[0]
    parts = [
        f"---\n{_header(text, run)}\n---\n\n# {text.name}\n",
        f"An object detector of {len(info.classes)} "
        f"class{'es' if len(info.classes) > 1 else ''}, {_enumeration(info.classes)}, made with "
        "hypernet_d2 (HyperNet, CVPR 2016, as a detectron2 plugin). It runs without detectron2.\n",
        _usage(text, models),
        _files(models, info),
        _data(text, run),
        _results(run),
        _training(run, info),
    ]
    return "\n".join(part for part in parts if part)


def _header(text: CardText, run: Run) -> str:
    try:
        from huggingface_hub import EvalResult, ModelCardData
    except ImportError as error:
        raise ImportError(
            'a model card needs huggingface_hub: pip install "hypernet-d2[hub]"'
        ) from error
    results = [
        EvalResult("object-detection", dataset, dataset, metric, round(value, 2), metric_name=name)
        for dataset, name, metric, value in (
            (dataset, f"{task} {metric}", metric, value)
            for dataset, tasks in run.results.items()
            for task, values in tasks.items()
            for metric, value in values.items()
            if metric in METRICS and value == value  # not where it is NaN
        )
    ]
    return ModelCardData(
        license=text.license,
        library_name="hypernet_d2",
        pipeline_tag="object-detection",
        tags=["object-detection", "detectron2", "hypernet"],
        # The Hub requires a name beside results.
        **({"model_name": text.name, "eval_results": results} if results else {}),
    ).to_yaml()


def _usage(text: CardText, models: Mapping[str, tuple[ModelInfo, int]]) -> str:
    file = f', file="{next(iter(models))}"' if len(models) > 1 else ""
    return f"""## Use

```python
# pip install "hypernet-d2[deploy,hub]"
from hypernet_d2.deploy import Detector

detector = Detector.from_pretrained("{text.repo}"{file})
boxes, scores, classes = detector("photograph.jpg")
names = [detector.info.classes[index] for index in classes]
```
"""


def _files(models: Mapping[str, tuple[ModelInfo, int]], info: ModelInfo) -> str:
    rows = [f"| `{name}` | {size / 1e6:.1f} MB |" for name, (_, size) in models.items()]
    short = f"to a short side of {info.min_size}, " if info.min_size else ""
    return (
        "## Model\n\n| file | size |\n|---|---|\n" + "\n".join(rows) + "\n\n"
        f"Pictures are resized {short}at most {info.max_size} pixels and within a canvas of "
        f"{info.canvas[0]} x {info.canvas[1]} pixels (height x width). Detections have scores of "
        f"{info.score_threshold:g} or more.\n"
    )


def _data(text: CardText, run: Run) -> str:
    sets = run.config.get("DATASETS", {})
    path = run.config.get("MODEL", {}).get("HYPERNET", {}).get("DATA", {}).get("PATH", "")
    lines = [
        f"- {role}: {', '.join(f'`{name}`' for name in sets[key])}"
        for role, key in (("trained on", "TRAIN"), ("tested on", "TEST"))
        if sets.get(key)
    ]
    if path:
        lines.append(f"- `--data {Path(path).name}`")
    lines += [f"- source: {text.data}"] if text.data else []
    lines += [f"- license of the data: {text.data_license}"] if text.data_license else []
    return "## Data\n\n" + "\n".join(lines) + "\n" if lines else ""


def _results(run: Run) -> str:
    rows = [
        f"| {dataset} | {task} | "
        + " | ".join(_number(values.get(metric)) for metric in METRICS)
        + " |"
        for dataset, tasks in run.results.items()
        for task, values in tasks.items()
        if "AP" in values
    ]
    if not rows:
        return ""
    head = f"| set | task | {' | '.join(METRICS)} |\n|---|---|{'---|' * len(METRICS)}\n"
    return "## Results\n\nCOCO's metrics, in percent.\n\n" + head + "\n".join(rows) + "\n"


def _training(run: Run, info: ModelInfo) -> str:
    if not run.config:
        return ""
    model, solver = run.config.get("MODEL", {}), run.config.get("SOLVER", {})
    trunk = model.get("HYPERNET", {}).get("TRUNK", "")
    backbone = model.get("BACKBONE", {}).get("NAME", "")
    rows = {
        "config": info.config,
        "backbone": backbone + (f" of {trunk}" if "hyper" in backbone and trunk else ""),
        "proposals": model.get("PROPOSAL_GENERATOR", {}).get("NAME"),
        "heads": model.get("ROI_HEADS", {}).get("NAME"),
        "iterations": solver.get("MAX_ITER"),
        "images in a batch": solver.get("IMS_PER_BATCH"),
        "learning rate": solver.get("BASE_LR"),
        "hypernet_d2": info.version,
    }
    table = "\n".join(f"| {key} | {value} |" for key, value in rows.items() if value)
    return (
        f"## Training\n\n| | |\n|---|---|\n{table}\n\n"
        "```\nhypernet-d2 train --config-file config.yaml OUTPUT_DIR output/again\n```\n"
    )


def _number(value: float | None) -> str:
    return "" if value is None or value != value else f"{value:.1f}"


def _enumeration(names: Sequence[str], most: int = 20) -> str:
    shown = ", ".join(names[:most])
    return shown + (f" and {len(names) - most} more" if len(names) > most else "")
