"""Writes a report that compares trained models: precision, proposal recall, speed and memory.

Each --run gives a model a name and lists its output folders, one for each seed. train_net.py writes
into such a folder config.yaml, results.json (the last evaluation), metrics.json (the training) and,
with --eval-only --eval-proposals, proposal_recall_DATASET.json. From a file of tools/benchmark.py
the rows with the names of the models are used.

Where the data set is registered (--data PATH registers one's own), the models are also compared by
the detections of their first folders: AP by size, thresholds, kinds of errors, and the images that
differ most. The report is report.html (one file) and report.md in --output.
"""

import io
import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml
from detectron2.data import DatasetCatalog

from hypernet_d2.engine import add_data_argument, register_data
from hypernet_d2.engine.trainer import RESULTS_FILE
from hypernet_d2.evaluation import plot_precision, plot_recall, recall_file
from hypernet_d2.evaluation.report import comparison_sections, find_detections, read_run
from hypernet_d2.evaluation.report.page import Picture, Section, Table, Text, write_page
from hypernet_d2.utils.files import similar_files

from .arguments import CommandParser
from .benchmark.models import table_cells

PRECISION = ("AP", "AP50", "AP75", "APs", "APm", "APl")
EVALUATE = "python train_net.py --config-file ... --eval-only MODEL.WEIGHTS ... OUTPUT_DIR"
NOTE = (
    "Mean over the seeds, ± the standard deviation if there are several. A cell is empty if it was "
    "not measured, and – if the figure is not defined (no object of that size; a recall that is "
    "never reached)."
)


@dataclass
class Model:
    """The files of a model; each list has one entry per seed, in the order of ``folders``.

    Attributes:
        configs: contents of config.yaml.
        results: {data set: {task: {metric: value}}}.
        training: rows of metrics.json with a training loss.
        recall: {data set: contents of the file of ProposalRecallEvaluator}; a data set without
            such files is missing.
    """

    name: str
    folders: list[Path]
    configs: list[dict]
    results: list[dict]
    training: list[list[dict]]
    recall: dict[str, list[dict]]


def main(argv: list[str] | None = None) -> None:
    parser = CommandParser(
        __doc__,
        "--run HyperNet output/digits --output output/report",
    )
    parser.add_argument(
        "--run",
        nargs="+",
        action="append",
        required=True,
        metavar="NAME DIR",
        help="a model and its output folders; may be repeated",
    )
    parser.add_argument(
        "--benchmark",
        nargs="+",
        type=Path,
        default=[],
        metavar="FILE",
        help="json files of tools/benchmark.py",
    )
    parser.add_argument("--output", type=Path, required=True, help="folder for the report")
    add_data_argument(parser)
    args = parser.parse_args(argv)
    names = [words[0] for words in args.run]
    if len(set(names)) < len(names) or min(map(len, args.run)) < 2:
        parser.error(f"--run: expected distinct names, each with a folder or more; got {args.run}")
    models = [read_model(name, list(map(Path, folders))) for name, *folders in args.run]
    check_data_sets(models)
    register_data(args.data)
    benchmarks = [read_benchmark(path, names) for path in args.benchmark]
    args.output.mkdir(parents=True, exist_ok=True)
    sections = [Section("Runs", [Text(NOTE), runs_table(models)])]
    for data_set in models[0].results[0]:
        sections += precision_sections(models, data_set)
        sections += recall_sections(models, data_set)
    sections += [benchmark_section(content, names) for content in benchmarks]
    sections += detection_sections(models)
    print(write_page(args.output, " against ".join(names), sections))


def read_model(name: str, folders: list[Path]) -> Model:
    """Read the files of one model.

    Raises:
        FileNotFoundError: a file is missing. Files of proposal recall may be missing only in all
            folders.
        ValueError: a folder is given twice, a json file cannot be parsed, or a config lacks keys.
    """
    if len(set(folders)) < len(folders):
        raise ValueError(f"--run {name}: a folder is given twice: {[str(f) for f in folders]}")
    results = [read_json(f / RESULTS_FILE, f"{EVALUATE} {f} writes it") for f in folders]
    recall = {}
    for data_set in results[0]:
        paths = [recall_file(folder, data_set) for folder in folders]
        if any(path.is_file() for path in paths):
            hint = "other seeds have it; --eval-only --eval-proposals writes it"
            recall[data_set] = [read_json(path, hint) for path in paths]
    configs = [read_config(f / "config.yaml") for f in folders]
    return Model(name, folders, configs, results, [read_training(f) for f in folders], recall)


def existing(path: Path, hint: str = "train_net.py writes it") -> Path:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; {hint}{similar_files(path)}")
    return path


def read_config(path: Path) -> dict:
    config = yaml.safe_load(existing(path).read_text(encoding="utf-8"))
    if not isinstance(config, dict) or not {"MODEL", "SEED", "SOLVER"} <= config.keys():
        raise ValueError(f"{path}: expected the complete config that train_net.py writes")
    return config


def read_json(path: Path, hint: str) -> dict:
    try:
        return json.loads(existing(path, hint).read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not a json file: {error}") from error


def read_training(folder: Path) -> list[dict]:
    path = folder / "metrics.json"  # missing where a model was only evaluated
    rows = map(json.loads, path.read_text().splitlines()) if path.is_file() else ()
    return [row for row in rows if "total_loss" in row]


def read_benchmark(path: Path, names: list[str]) -> dict:
    """Read a file of tools/benchmark.py with a row for at least one of the models.

    Raises:
        FileNotFoundError: it is missing.
        ValueError: it is another file, or has no such row.
    """
    content = read_json(path, "tools/benchmark.py --json writes it")
    found = [row.get("name") for row in content.get("rows", [])]
    if content.get("benchmark") not in ("inference", "training") or not {*found} & {*names}:
        raise ValueError(
            f"{path}: expected a file of tools/benchmark.py inference or training with a row named "
            f"as one of {names}; its rows are {found} (--config-file NAME=CONFIG names them)"
        )
    return content


def check_data_sets(models: list[Model]) -> None:
    """
    Raises:
        ValueError: two folders have results on different data sets.
    """
    first = models[0]
    for model in models:
        for folder, results in zip(model.folders, model.results, strict=True):
            if list(results) != list(first.results[0]):
                raise ValueError(
                    f"{folder / RESULTS_FILE} has results on {list(results)}, but that of "
                    f"{first.folders[0]} on {list(first.results[0])}; expected the same data sets"
                )


def runs_table(models: list[Model]) -> Table:
    """Settings of the runs, and time and memory of their training."""
    header = ["model", "seeds", "iterations", "proposals at test", "folders"]
    header += ["training, from the log (s per iteration)", "peak memory of training (MB)"]
    rows = []
    for model in models:
        seeds = ["random" if c["SEED"] < 0 else str(c["SEED"]) for c in model.configs]
        iterations = {str(c["SOLVER"]["MAX_ITER"]) for c in model.configs}
        proposals = {str(c["MODEL"]["RPN"]["POST_NMS_TOPK_TEST"]) for c in model.configs}
        seconds = [[row["time"] for row in rows if "time" in row] for rows in model.training]
        memory = [[row["host_mem_mb"] for row in t if "host_mem_mb" in row] for t in model.training]
        rows.append(
            [
                model.name,
                ", ".join(seeds),
                ", ".join(sorted(iterations)),
                ", ".join(sorted(proposals)),
                ", ".join(map(str, model.folders)),
                cell([statistics.median(values) for values in seconds if values], 3),
                cell([max(values) for values in memory if values], 0),
            ]
        )
    return Table(header, rows)


def precision_sections(models: list[Model], data_set: str) -> list[Section]:
    """Tables and plots of AP, over all classes and of each."""
    sections = []
    for task in dict.fromkeys(t for m in models for r in m.results for t in r[data_set]):
        values = {model.name: metrics_of(model, data_set, task) for model in models}
        known = dict.fromkeys(metric for v in values.values() for metric in v)
        classes = [metric for metric in known if metric.startswith("AP-")]
        sizes = [metric for metric in known if metric.startswith("APsize-")]
        for what, metrics in (("", [*PRECISION, *sizes]), (" of each class", classes)):
            chosen = {
                name: {m.removeprefix("AP-"): v[m] for m in metrics if m in v}
                for name, v in values.items()
            }
            if any(chosen.values()):
                title = f"{data_set}, {task}: average precision{what}"
                picture = f"{task}{what.replace(' ', '_')}_{data_set}.png"
                columns = [m.removeprefix("AP-") for m in metrics]
                rows = [[n, *(cell(v.get(c, [])) for c in columns)] for n, v in chosen.items()]
                plot = png(plot_precision, chosen, title)
                blocks = [Table(["model", *columns], rows), Picture(picture, plot)]
                sections.append(Section(f"{title} (%)", blocks))
    return sections


def metrics_of(model: Model, data_set: str, task: str) -> dict[str, list[float | None]]:
    """{metric: one value per seed}."""
    seeds = [results[data_set].get(task, {}) for results in model.results]
    return {metric: [seed.get(metric) for seed in seeds] for metric in seeds[0]}


def recall_sections(models: list[Model], data_set: str) -> list[Section]:
    """Tables and plot of proposal recall; empty if it was measured for no model."""
    known = {model.name: model.recall[data_set] for model in models if data_set in model.recall}
    if not known:
        return []
    figures = {
        **{f"AR@{k}": ("AR", str(k), "all") for k in (10, 50, 100, 200, 1000)},
        **{f"AR@100 {size}": ("AR", "100", size) for size in ("small", "medium", "large")},
        **{f"N@{p}%": ("N", str(p), "all") for p in (25, 50, 75)},
    }
    curves = {
        f"{k} at IoU {iou}": (iou, k - 1) for iou in ("0.5", "0.7") for k in (10, 50, 100, 200)
    }
    summary_rows, curve_rows = [], []
    for model in models:
        seeds = known.get(model.name, [])
        cells = [cell([seed[a][b][c] for seed in seeds]) for a, b, c in figures.values()]
        summary_rows.append([model.name, *cells])
        cells = [
            cell([s["recall_by_number"][a]["all"][i] for s in seeds]) for a, i in curves.values()
        ]
        curve_rows.append([model.name, *cells])
    text = (
        "AR is the mean over IoU 0.5 to 0.95. N@p% is the smallest number of proposals per image "
        "that has a recall of p% at IoU 0.7."
    )
    blocks = [
        Text(text),
        Table(["model", *figures], summary_rows),
        Table(["model, proposals", *curves], curve_rows),
        Picture(f"recall_{data_set}.png", png(plot_recall, known)),
    ]
    return [Section(f"{data_set}: recall of the proposals (%)", blocks)]


def benchmark_section(content: dict, names: list[str]) -> Section:
    rows = {row["name"]: row for row in content["rows"]}
    setting = {k: v for k, v in content.items() if k not in ("rows", "benchmark")}
    text = ", ".join(f"{key} {value}" for key, value in setting.items())
    table = Table(*table_cells([rows.get(name, {"name": name}) for name in names]))
    return Section(f"Speed and memory: {content['benchmark']}", [Text(text), table])


def detection_sections(models: list[Model]) -> list[Section]:
    """The comparison of the detections, or a section that says why there is none."""
    data_set = next(iter(models[0].results[0]))
    folders = {model.name: model.folders[0] for model in models}
    if len(models) == 1:
        reason = "there is only one model; hypernet-d2 report describes it"
    elif data_set not in DatasetCatalog:
        reason = f"data set {data_set!r} is not registered; --data PATH registers one's own"
    else:
        try:
            for folder in folders.values():
                find_detections(folder, data_set)
        except FileNotFoundError as error:
            reason = str(error)
        else:
            runs = {name: read_run(folder, data_set) for name, folder in folders.items()}
            return comparison_sections(runs)
    return [Section("Detections", [Text(f"Not compared: {reason}.")])]


def png(plot: Callable, models: dict, *more) -> bytes:
    """The file that a function of `hypernet_d2.evaluation.plots` draws."""
    buffer = io.BytesIO()
    plot(models, buffer, *more)
    return buffer.getvalue()


def cell(values: Sequence[float | None], digits: int = 1) -> str:
    """Mean and standard deviation over the seeds; a single integer is printed as it is."""
    if not values:
        return ""
    if None in values:
        return "–"
    if len(values) == 1 and isinstance(values[0], int):
        return str(values[0])
    mean = f"{statistics.mean(values):.{digits}f}"
    return f"{mean} ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else mean
