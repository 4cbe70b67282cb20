"""train_net.py as a user runs it: train, resume, evaluate, several processes, and mistakes."""

import argparse
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.helpers import TINY, batched_inputs, tiny_cfg, write_voc

pytestmark = pytest.mark.detectron2

ROOT = Path(__file__).resolve().parents[2]
CONFIG = str(ROOT / "configs/BCCD-Detection/hypernet_R_18.yaml")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """Folder of a tiny VOC set that is also registered in this process as ``tiny``."""
    from hypernet_d2.data import register_voc_style

    root = tmp_path_factory.mktemp("tiny")
    write_voc(root)
    register_voc_style("tiny", root, "all", ["square", "bar"])
    return root


@pytest.fixture
def train_tiny(tiny, monkeypatch) -> list:
    """The command, without options, that trains on the tiny set in another process."""
    monkeypatch.setenv("TINY_VOC", str(tiny))
    return [sys.executable, ROOT / "tests/engine/train_tiny.py", "--config-file", CONFIG]


def options(output, *opts) -> list[str]:
    """Command-line options of a short run on the tiny set."""
    fixed = ["DATASETS.TRAIN", ("tiny",), "DATASETS.TEST", ("tiny",), "MODEL.ROI_HEADS.NUM_CLASSES",
             2, "OUTPUT_DIR", output, "SOLVER.MAX_ITER", 4, "SOLVER.STEPS", (), "SEED", 1,
             "SOLVER.CHECKPOINT_PERIOD", 2]  # fmt: skip
    return [str(word) for word in [*TINY, *fixed, *opts]]


def run(output, *opts, **arguments):
    """What train_net.py does in one process with these arguments."""
    from hypernet_d2.cli.train import run as main

    fixed = {"config_file": CONFIG, "resume": False, "eval_only": False, "num_gpus": 1,
             "schedule": "joint", "eval_proposals": False}  # fmt: skip
    args = argparse.Namespace(**{**fixed, **arguments}, opts=options(output, *opts))
    return main(args)


def metrics(output) -> list[dict]:
    return [json.loads(line) for line in (output / "metrics.json").read_text().splitlines()]


def test_a_run_leaves_checkpoints_metrics_events_and_ap(tiny, tmp_path):
    run(tmp_path, "VIS_PERIOD", 2, "SOLVER.MAX_ITER", 20)
    rows = metrics(tmp_path)
    assert {"total_loss", "loss_rpn_cls", "eta_seconds", "host_mem_mb"} <= set().union(*rows)
    assert (tmp_path / "model_final.pth").is_file()
    assert (tmp_path / "config.yaml").is_file()
    assert list(tmp_path.glob("events.out.tfevents.*"))
    again = run(tmp_path, "MODEL.WEIGHTS", tmp_path / "model_final.pth", eval_only=True)
    assert again["bbox"]["AP"] == pytest.approx(rows[-1]["bbox/AP"])
    saved = json.loads((tmp_path / "results.json").read_text())["tiny"]["bbox"]
    assert saved["AP-bar"] == again["bbox"]["AP-bar"]
    assert saved["APl"] is None  # there are no large objects


def test_a_killed_run_resumes_from_its_last_complete_checkpoint(train_tiny, tmp_path):
    command = [*train_tiny, *options(tmp_path, "SOLVER.MAX_ITER", 100000)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        deadline = time.time() + 120
        while not (tmp_path / "last_checkpoint").is_file() and time.time() < deadline:
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
    name = (tmp_path / "last_checkpoint").read_text()
    saved = torch.load(tmp_path / name, weights_only=False)["iteration"]
    half = tmp_path / f"model_{saved + 2:07}.pth"  # what a kill while writing leaves behind
    half.write_bytes((tmp_path / name).read_bytes()[:1000])
    run(tmp_path, "SOLVER.MAX_ITER", saved + 3, "DATASETS.TEST", (), resume=True)
    final = torch.load(tmp_path / "model_final.pth", weights_only=False)
    assert final["iteration"] == saved + 2
    assert metrics(tmp_path)[-1]["iteration"] == saved + 2


def test_two_processes_train_on_a_cpu(train_tiny, tmp_path):
    train = {"BEST_CHECKPOINT": True, "PATIENCE": 9, "VALIDATION_LOSS": True, "EMA_DECAY": 0.9,
             "METRIC": "validation_loss", "ACCUMULATE": 2}  # fmt: skip
    keys = [word for key, v in train.items() for word in (f"MODEL.HYPERNET.TRAIN.{key}", v)]
    opts = options(tmp_path, "TEST.EVAL_PERIOD", 2, *keys)
    command = [*train_tiny, "--num-gpus", "2", "--dist-url", "auto", *opts]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert {"bbox/AP", "test/bbox/AP", "validation_loss"} <= metrics(tmp_path)[-1].keys()
    assert (tmp_path / "model_best.pth").is_file()
    assert "Rank of current process: 0. World size: 2" in (tmp_path / "log.txt").read_text()


def test_the_evaluator_is_chosen_by_a_key(tiny):
    from detectron2.evaluation import COCOEvaluator, PascalVOCDetectionEvaluator

    from hypernet_d2.engine import build_evaluator

    assert isinstance(build_evaluator(tiny_cfg(), "tiny"), COCOEvaluator)
    cfg = tiny_cfg("MODEL.HYPERNET.EVALUATOR", "pascal_voc")
    assert isinstance(build_evaluator(cfg, "tiny"), PascalVOCDetectionEvaluator)
    with pytest.raises(ValueError, match=r"'lvis' .*expected one of \['coco', 'pascal_voc'\]"):
        build_evaluator(tiny_cfg("MODEL.HYPERNET.EVALUATOR", "lvis"), "tiny")


@pytest.mark.parametrize("workers", [0, 1])
def test_an_unreadable_image_stops_training_with_its_name_and_leaves_a_checkpoint(
    tmp_path, workers
):
    from detectron2.data import DatasetCatalog, MetadataCatalog

    from hypernet_d2.data import register_voc_style

    write_voc(tmp_path / "data")
    register_voc_style("cut", tmp_path / "data", "all", ["square", "bar"])
    image = tmp_path / "data/JPEGImages/003.jpg"
    whole = image.read_bytes()
    image.write_bytes(whole[:700])
    opts = ("DATASETS.TRAIN", ("cut",), "DATASETS.TEST", (), "SOLVER.MAX_ITER", 20,
            "SOLVER.CHECKPOINT_PERIOD", 100, "DATALOADER.NUM_WORKERS", workers)  # fmt: skip
    with pytest.raises(ValueError, match=r"003\.jpg"):
        run(tmp_path / "out", *opts)
    name = (tmp_path / "out/last_checkpoint").read_text()
    saved = torch.load(tmp_path / "out" / name, weights_only=True)
    assert name == f"model_{saved['iteration']:07d}.pth"
    assert saved["trainer"]["iteration"] == saved["iteration"]
    image.write_bytes(whole)
    run(tmp_path / "out", *opts, "SOLVER.MAX_ITER", saved["iteration"] + 2, resume=True)
    assert metrics(tmp_path / "out")[-1]["iteration"] == saved["iteration"] + 1
    DatasetCatalog.pop("cut")
    MetadataCatalog.pop("cut")


def test_a_finished_run_is_not_overwritten(tiny, tmp_path):
    run(tmp_path, "SOLVER.MAX_ITER", 1, "DATASETS.TEST", ())
    before = (tmp_path / "model_final.pth").read_bytes()
    with pytest.raises(FileExistsError, match=r"OUTPUT_DIR .*last_checkpoint.*--resume"):
        run(tmp_path, "SOLVER.MAX_ITER", 1)
    (tmp_path / "last_checkpoint").unlink()
    with pytest.raises(FileExistsError, match=r"OUTPUT_DIR .*model_final\.pth.*--resume"):
        run(tmp_path, "SOLVER.MAX_ITER", 1, schedule="alternating")
    assert (tmp_path / "model_final.pth").read_bytes() == before


def test_an_output_folder_that_cannot_be_written_is_named_before_the_model_is_built(
    tiny, tmp_path, monkeypatch
):
    from hypernet_d2.engine import Trainer

    monkeypatch.setattr(Trainer, "build_model", lambda cfg: pytest.fail("the model is built"))
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"OUTPUT_DIR '.*file/out' cannot be written to: Not a dir"):
        run(tmp_path / "file/out")


def test_config_and_model_are_in_the_log_and_not_on_the_screen(tiny, tmp_path, capsys):
    run(tmp_path, "SOLVER.MAX_ITER", 1, "DATASETS.TEST", ())
    screen, log = capsys.readouterr().out, (tmp_path / "log.txt").read_text()
    for text in ("POST_NMS_TOPK_TRAIN", "(hyper_feature): HyperFeature", "Command line arguments"):
        assert text in log and text not in screen
    assert "Starting training from iteration 0" in screen and "log.txt" in screen


def test_a_loss_that_is_not_finite_stops_training_and_leaves_the_checkpoint(tiny, tmp_path):
    with pytest.raises(FloatingPointError, match="iteration"):
        run(tmp_path, "SOLVER.BASE_LR", 1e12, "SOLVER.WARMUP_ITERS", 0, "SOLVER.MAX_ITER", 50)


def test_the_device_is_cuda_where_there_is_a_gpu(monkeypatch):
    from hypernet_d2.engine import setup_cfg

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    cfg = setup_cfg(argparse.Namespace(config_file=CONFIG, opts=["MODEL.DEVICE", "cuda"]))
    assert cfg.MODEL.DEVICE == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert setup_cfg(argparse.Namespace(config_file=CONFIG, opts=[])).MODEL.DEVICE == "cuda"


class TestCheckpoints:
    """Which checkpoints are loaded, and which parameters a refusal names."""

    @staticmethod
    def saved(tmp_path, *opts, drop=()):
        from detectron2.modeling import build_model

        state = build_model(tiny_cfg(*opts)).state_dict()
        path = tmp_path / "model.pth"
        torch.save({"model": {k: v for k, v in state.items() if not k.startswith(drop)}}, path)
        return str(path)

    @staticmethod
    def load(path, strict):
        from detectron2.modeling import build_model

        from hypernet_d2.checkpoint import HyperNetCheckpointer

        model = build_model(tiny_cfg())
        HyperNetCheckpointer(model, strict=strict).load(path)
        return model

    def test_weights_are_loaded(self, tmp_path):
        path = self.saved(tmp_path)
        state = torch.load(path)["model"]
        assert all(torch.equal(v, state[k]) for k, v in self.load(path, True).state_dict().items())

    def test_another_width_is_refused_for_evaluation(self, tmp_path):
        path = self.saved(tmp_path, "MODEL.HYPERNET.FEATURE.CHANNELS", 12)
        with pytest.raises(ValueError, match=r"model\.pth.*another shape \(backbone.hyper_feature"):
            self.load(path, strict=True)

    def test_each_tensor_is_counted_once_and_the_classes_are_compared(self, tmp_path):
        path = self.saved(tmp_path, "MODEL.ROI_HEADS.NUM_CLASSES", 10)
        with pytest.raises(ValueError) as caught:
            self.load(path, strict=True)
        text = str(caught.value)
        assert "10 classes against 3 (MODEL.ROI_HEADS.NUM_CLASSES)" in text
        assert "4 have another shape" in text and "missing" not in text

    def test_a_missing_part_is_refused_for_evaluation_and_allowed_for_training(self, tmp_path):
        path = self.saved(tmp_path, drop=("roi_heads", "proposal_generator"))
        with pytest.raises(ValueError, match=r"of \d+ \d+ are missing \(proposal_generator"):
            self.load(path, strict=True)
        self.load(path, strict=False)

    def test_a_file_without_parameters_of_the_model_is_always_refused(self, tmp_path):
        path = tmp_path / "other.pth"
        torch.save({"model": {"layer.weight": torch.zeros(3)}}, path)
        with pytest.raises(ValueError, match="at least one parameter"):
            self.load(str(path), strict=False)

    def test_a_missing_file_is_named(self):
        with pytest.raises(FileNotFoundError, match=r"no checkpoint 'weights/none\.pkl'.*convert"):
            self.load("weights/none.pkl", strict=False)

    def test_a_misspelt_file_is_named_with_its_neighbour(self, tmp_path):
        path = self.saved(tmp_path)
        with pytest.raises(FileNotFoundError, match=r"mode1\.pth'.*mean '.*/model\.pth'\?"):
            self.load(path.replace("model.pth", "mode1.pth"), strict=False)

    def test_evaluation_without_weights_is_refused(self, tiny, tmp_path):
        with pytest.raises(ValueError, match="--eval-only needs weights"):
            run(tmp_path, eval_only=True)


def test_the_same_seed_gives_the_same_losses():
    from detectron2.modeling import build_model
    from detectron2.utils.events import EventStorage

    def losses():
        torch.manual_seed(3)
        model = build_model(tiny_cfg()).train()
        with EventStorage():
            return {k: v.item() for k, v in model(batched_inputs((64, 64), (48, 64))).items()}

    assert losses() == losses()
