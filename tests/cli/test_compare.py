"""The report on several trained models, from the files that they leave."""

import json
import re
from pathlib import Path

import pytest

pytestmark = pytest.mark.detectron2

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def compare(monkeypatch, tmp_path):
    """A function that runs tools/compare.py and returns the report's lines, cell by cell."""
    pytest.importorskip("matplotlib")
    from hypernet_d2.cli.compare import main

    def call(*words) -> dict[str, list[list[str]]]:
        main([*map(str, words), "--output", str(tmp_path / "report")])
        assert "://" not in (tmp_path / "report/report.html").read_text()
        text = (tmp_path / "report/report.md").read_text()
        sections = [s.split("\n") for s in text.split("\n## ")]
        return {s[0]: [cells(line) for line in s if line.startswith("|")] for s in sections}

    return call


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.split("|")[1:-1]]


def write_run(folder: Path, ap: float, *, seed: int = 1, recall: float | None = None) -> Path:
    """What train_net.py leaves; ``recall`` is that of every number and IoU, in percent."""
    folder.mkdir()
    config = f"SEED: {seed}\nSOLVER: {{MAX_ITER: 8}}\nMODEL: {{RPN: {{POST_NMS_TOPK_TEST: 100}}}}\n"
    (folder / "config.yaml").write_text(config)
    bbox = {"AP": ap, "AP50": ap + 20, "AP75": ap, "APs": None, "APm": ap, "APl": ap,
            "AP-cell": ap - 1, "AP-other": ap + 1}  # fmt: skip
    (folder / "results.json").write_text(json.dumps({"set": {"bbox": bbox}}))
    rows = [{"total_loss": 1, "time": t, "host_mem_mb": 100 * t} for t in (1, 2, 9)]
    rows.append({"bbox/AP": ap, "iteration": 8})
    (folder / "metrics.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if recall is not None:
        write_recall(folder / "proposal_recall_set.json", recall)
    return folder


def write_recall(path: Path, recall: float) -> None:
    from hypernet_d2.evaluation.proposal_recall import AR_NUMBERS, IOUS, N_RECALLS, SIZES

    def by_size(value):
        return {size: None if size == "small" else value for size in SIZES}

    curve = dict.fromkeys(SIZES, [recall] * 1000)
    content = {
        "dataset": "set",
        "AR": {str(k): by_size(recall) for k in AR_NUMBERS},
        "N": {str(p): by_size(1 if recall >= p else None) for p in N_RECALLS},
        "recall_by_number": {"0.5": curve, "0.7": curve},
        "ious": IOUS,
        "recall_by_iou": {k: dict.fromkeys(SIZES, [recall] * 51) for k in ("50", "100", "200")},
    }
    path.write_text(json.dumps(content))


def test_a_report_of_two_models(compare, tmp_path):
    a1 = write_run(tmp_path / "a1", 50, seed=1, recall=60)
    a2 = write_run(tmp_path / "a2", 54, seed=-1, recall=64)
    b = write_run(tmp_path / "b", 40.0)
    row = {"name": "A", "seconds": {"total": {"median": 2.0, "q1": 1.5, "q3": 2.5},
           "trunk": {"median": 1.25, "q1": 1, "q3": 1}}, "peak_memory_mb": 321.0}  # fmt: skip
    speed = {"benchmark": "inference", "device": "CPU", "rows": [{**row, "name": "C"}, row]}
    (tmp_path / "speed.json").write_text(json.dumps(speed))
    report = compare("--run", "A", a1, a2, "--run", "B", b, "--benchmark", tmp_path / "speed.json")

    runs = report["Runs"]
    folders = f"{a1}, {a2}"
    assert runs[2] == ["A", "1, random", "8", "100", folders, "2.000 ± 0.000", "900 ± 0"]
    precision = report["set, bbox: average precision (%)"]
    assert precision[0] == ["model", "AP", "AP50", "AP75", "APs", "APm", "APl"]
    assert precision[2] == ["A", "52.0 ± 2.8", "72.0 ± 2.8", *precision[2][3:]]
    assert precision[2][4] == "–" and precision[3][1] == "40.0"
    classes = report["set, bbox: average precision of each class (%)"]
    assert classes[0] == ["model", "cell", "other"] and classes[3] == ["B", "39.0", "41.0"]
    header, _, ours, theirs, *curves = report["set: recall of the proposals (%)"]
    ours = dict(zip(header, ours, strict=True))
    assert ours["AR@100"] == "62.0 ± 2.8" and ours["AR@100 small"] == "–"
    assert ours["N@50%"] == "1.0 ± 0.0" and ours["N@75%"] == "–"
    assert theirs == ["B", *[""] * 11]
    assert curves[2][1] == "62.0 ± 2.8"
    header, _, ours, theirs, *_ = report["Speed and memory: inference"]
    assert ours[:5] == ["A", "2.000", "1.500 to 2.500", "1.00", "1.250"] and ours[-1] == "321"
    assert theirs == ["B", *[""] * (len(header) - 1)]
    pictures = {path.name for path in (tmp_path / "report/report").glob("*.png")}
    assert pictures == {"bbox_set.png", "bbox_of_each_class_set.png", "recall_set.png"}


def test_a_missing_file_is_named(compare, tmp_path):
    a, b = write_run(tmp_path / "a", 50, recall=60), write_run(tmp_path / "b", 40)
    for name, folders in {
        f"{b / 'proposal_recall_set.json'} is missing; other seeds have it": [a, b],
        f"{tmp_path / 'c' / 'results.json'} is missing": [tmp_path / "c"],
    }.items():
        with pytest.raises(FileNotFoundError, match=re.escape(name)):
            compare("--run", "A", *folders)
    (b / "config.yaml").unlink()
    with pytest.raises(FileNotFoundError, match=re.escape(f"{b / 'config.yaml'} is missing")):
        compare("--run", "B", b)


def test_what_cannot_be_compared_is_refused(compare, tmp_path):
    a, b = write_run(tmp_path / "a", 50), write_run(tmp_path / "b", 40)
    (b / "results.json").write_text(json.dumps({"another": {"bbox": {"AP": 1.0}}}))
    with pytest.raises(ValueError, match="has results on .'another'., but that of"):
        compare("--run", "A", a, "--run", "B", b)
    (tmp_path / "speed.json").write_text(json.dumps({"benchmark": "training", "rows": []}))
    with pytest.raises(ValueError, match=r"as one of \['A'\]; its rows are \[\]"):
        compare("--run", "A", a, "--benchmark", tmp_path / "speed.json")
    (a / "config.yaml").write_text("MODEL: {}\n")
    with pytest.raises(ValueError, match="config.yaml: expected the complete config"):
        compare("--run", "A", a)


def test_plots_say_what_they_need(monkeypatch, tmp_path):
    import sys

    from hypernet_d2.evaluation import plot_precision

    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match="pip install matplotlib"):
        plot_precision({"A": {"AP": [50.0]}}, tmp_path / "a.png", "title")
