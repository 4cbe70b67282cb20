"""The benchmarks of whole detectors, on tiny ones."""

import importlib
import json
import shlex
from pathlib import Path

import pytest
import torch

from tests.helpers import TINY

pytestmark = pytest.mark.detectron2

ROOT = Path(__file__).resolve().parents[2]
HYPERNET, FPN = (
    shlex.quote(str(ROOT / f"configs/BCCD-Detection/{name}.yaml"))
    for name in ("hypernet_R_18", "faster_rcnn_R_18_FPN")
)
HEADS = ["MODEL.ROI_MASK_HEAD.CONV_DIM", 8, "MODEL.ROI_KEYPOINT_HEAD.CONV_DIMS", (8,)]
OPTIONS = [str(word) for word in [*TINY, *HEADS]]


@pytest.fixture
def benchmark(monkeypatch, tmp_path):
    """A function that runs tools/benchmark.py and returns the json that it writes."""
    from hypernet_d2.cli.benchmark import main

    def call(command: str, *words: str) -> dict:
        path = tmp_path / "out.json"
        main([command, "--json", str(path), "--repeats", "2", "--warm-up", "1", *words, *OPTIONS])
        return json.loads(path.read_text())

    return call


def parts(row: dict) -> dict[str, float]:
    return {part: value["median"] for part, value in row["seconds"].items()}


def test_inference_is_split_into_parts_that_sum_to_the_total(benchmark, capsys):
    words = ["--config-file", f"ours={HYPERNET}", "--size", "64", "96", "--repeats", "1"]
    other = (
        f"{FPN} MODEL.RPN.POST_NMS_TOPK_TEST 30 MODEL.RPN.PRE_NMS_TOPK_TEST 4 MODEL.MASK_ON True"
    )
    result = benchmark("inference", *words, "--against", other)
    ours, theirs = result["rows"]
    always = {"total", "preprocess", "trunk", "feature", "proposals", "detection", "postprocess"}
    assert set(ours["seconds"]) == always and set(theirs["seconds"]) == always | {"mask"}
    for row in (ours, theirs):
        seconds = parts(row)
        assert min(seconds.values()) > 0
        assert sum(seconds.values()) == pytest.approx(2 * seconds["total"], rel=0.1)
        assert row["detections"] > 0 and row["flops_g"] > 0 and row["parameters_m"] > 0.01
    assert (ours["proposals"], theirs["proposals"]) == (10, 30)
    assert 10 <= theirs["proposals_filled_in"] < 30  # 4 candidates on each of 5 maps
    assert result["size"] == [64, 96] and result["device"] == "CPU"
    table = [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in capsys.readouterr().out.splitlines()
        if "|" in line
    ]
    assert len(set(map(len, table))) == 1
    ratio = parts(theirs)["total"] / parts(ours)["total"]
    assert table[2][0] == "ours" and table[2][3] == "1.00" and table[3][3] == f"{ratio:.2f}"
    assert "POST_NMS_TOPK_TEST=30" in theirs["name"]


def test_the_regions_heads_get_the_full_number_of_boxes_inside_the_image(benchmark):
    from detectron2.structures import Boxes, Instances

    few = Instances((40, 60))
    few.proposal_boxes = Boxes(torch.tensor([[1.0, 2, 3, 4]]))
    few.objectness_logits = torch.tensor([5.0])
    filled_up = importlib.import_module("hypernet_d2.cli.benchmark.inference")._filled_up
    full = filled_up(few, 20)
    assert len(full) == 20 and full.objectness_logits[0] == 5
    boxes = full.proposal_boxes
    assert boxes.inside_box((40, 60)).all() and boxes.nonempty().all()
    assert len(filled_up(full, 10)) == 20


@pytest.mark.parametrize("extra", [[], ["MODEL.MASK_ON", "True", "MODEL.KEYPOINT_ON", "True"]])
def test_a_training_iteration_is_split_and_trains(benchmark, extra, monkeypatch):
    from hypernet_d2.engine import Trainer

    models, build = [], Trainer.build_model
    monkeypatch.setattr(Trainer, "build_model", lambda cfg: models.append(build(cfg)) or models[-1])
    result = benchmark(
        "training", "--config-file", FPN, "--size", "64", "96", "--batch", "3", *extra
    )
    (row,) = result["rows"]
    assert set(row["seconds"]) == {"total", "forward", "backward", "step"}
    assert sum(parts(row).values()) == pytest.approx(2 * parts(row)["total"], rel=0.1)
    assert result["images"] == "3 generated of 64 x 96"
    assert all(p.grad is not None and p.grad.isfinite().all() for p in models[0].parameters())


@pytest.mark.bccd
def test_training_takes_the_configs_own_data(benchmark, bccd_root):
    result = benchmark("training", "--config-file", HYPERNET)
    assert result["images"] == "2 of bccd_train"


def test_training_generates_images_where_the_data_is_not_there(benchmark, monkeypatch, tmp_path):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    result = benchmark("training", "--config-file", HYPERNET)
    assert result["images"] == "2 generated of 64 x 86"


@pytest.mark.parametrize(
    "words, message",
    [
        (["--config-file", FPN, "--against", FPN], "need distinct names"),
        (["--config-file", "nowhere.yaml"], "'nowhere.yaml' is not in the model zoo"),
        (["--config-file", FPN, "--against", f"{HYPERNET} MODEL.RPN"], "come in pairs"),
    ],
)
def test_a_mistake_is_named(benchmark, words, message):
    with pytest.raises(ValueError, match=message):
        benchmark("inference", *words)


def test_a_size_of_zero_is_refused(benchmark, capsys):
    with pytest.raises(SystemExit):
        benchmark("inference", "--config-file", FPN, "--size", "0", "64")
    assert "--size: expected 1 or more" in capsys.readouterr().err


def test_training_takes_data_that_a_file_registers(benchmark, tmp_path):
    from tests.helpers import write_voc

    write_voc(tmp_path / "voc")
    (tmp_path / "data.py").write_text(
        "from hypernet_d2.data import register_voc_style\n"
        f"register_voc_style('bench_all', {str(tmp_path / 'voc')!r}, 'all', ['square', 'bar'])\n"
    )
    data = ["DATASETS.TRAIN", "('bench_all',)", "MODEL.ROI_HEADS.NUM_CLASSES", "2"]
    config = "BCCD-Detection/hypernet_R_18"  # a name of the zoo
    words = [
        "--config",
        config,
        "--against",
        f"other={config}",
        "--data",
        str(tmp_path / "data.py"),
    ]
    result = benchmark("training", *words, *data)
    assert result["images"] == "2 of bench_all" and len(result["rows"]) == 2


def test_a_gpu_has_the_name_that_pytorch_gives_it(monkeypatch):
    from hypernet_d2.cli.benchmark.common import device_name

    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"GPU {device.index}")
    assert device_name(torch.device("cuda:1")) == "GPU 1"
    assert device_name(torch.device("cpu")) == "CPU"
