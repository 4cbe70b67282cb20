"""The steps of the alternating schedule: trained modules, files, and resuming."""

import argparse
import json
import pickle
import shutil
import signal
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tests.helpers import TINY, tiny_cfg, write_voc

pytestmark = pytest.mark.detectron2

ROOT = Path(__file__).resolve().parents[2]
CONFIG = str(ROOT / "configs/BCCD-Detection/hypernet_R_18.yaml")
STEPS = ("step2_proposals", "step3_detection", "step4_proposals", "step5_detection")
IMAGES, SIZE = 4, (64, 80)
ITERATIONS = 4


@pytest.fixture(scope="module", autouse=True)
def alternating_set(tmp_path_factory):
    """Registers a tiny VOC set as ``alternating``."""
    from hypernet_d2.data import register_voc_style

    root = tmp_path_factory.mktemp("alternating_set")
    write_voc(root, count=IMAGES, size=SIZE)
    register_voc_style("alternating", root, "all", ["square", "bar"])


def options(output, *opts) -> list:
    return [*TINY, "DATASETS.TRAIN", ("alternating",), "DATASETS.TEST", ("alternating",),
            "MODEL.ROI_HEADS.NUM_CLASSES", 2, "OUTPUT_DIR", str(output), "SEED", 1,
            "SOLVER.MAX_ITER", ITERATIONS, "SOLVER.STEPS", (), "SOLVER.CHECKPOINT_PERIOD", 2,
            *opts]  # fmt: skip


def train(output, *opts, **arguments):
    """What ``train_net.py --schedule alternating`` does in one process."""
    from hypernet_d2.cli.train import run as main

    fixed = {"config_file": CONFIG, "resume": False, "eval_only": False, "num_gpus": 1,
             "schedule": "alternating", "eval_proposals": False}  # fmt: skip
    words = [str(word) for word in options(output, *opts)]
    return main(argparse.Namespace(**{**fixed, **arguments}, opts=words))


def weights(path) -> dict:
    return torch.load(path, weights_only=True)["model"]


def part(state: dict, module: str) -> dict:
    return {name: value for name, value in state.items() if name.startswith(module + ".")}


def same(a: dict, b: dict) -> list[bool]:
    """For each tensor of two state dicts, whether it is equal."""
    assert a.keys() == b.keys() and a
    return [torch.equal(a[name], b[name]) for name in a]


def last_metrics(folder) -> dict:
    return json.loads((folder / "metrics.json").read_text().splitlines()[-1])


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The whole schedule: its folder, its results and the weights after each step."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("alternating_run")
    results = train(folder)
    return SimpleNamespace(
        folder=folder,
        results=results,
        unified=weights(folder / "model_final.pth"),
        **{step[:5]: weights(folder / step / "model_final.pth") for step in STEPS},
    )


class TestTrainedModules:
    """Weights and running statistics before and after a step are compared exactly."""

    def test_the_hyper_feature_of_step_3_is_shared_and_fixed(self, run):
        shared = part(run.step3, "backbone")
        assert any(name.endswith("running_mean") for name in shared)
        assert any(name.startswith("backbone.hyper_feature") for name in shared)
        for state in (run.step4, run.step5, run.unified):
            assert all(same(shared, part(state, "backbone")))

    def test_steps_2_and_3_train_different_backbones(self, run):
        step2, step3 = part(run.step2, "backbone"), part(run.step3, "backbone")
        learnt = [name for name, value in step2.items() if value.is_floating_point()]
        assert not any(torch.equal(step2[name], step3[name]) for name in learnt)

    def test_step_4_trains_the_proposal_layers_of_step_2(self, run):
        start = part(weights(run.folder / "step4_proposals/model_init.pth"), "proposal_generator")
        assert all(same(start, part(run.step2, "proposal_generator")))
        assert not any(same(start, part(run.step4, "proposal_generator")))

    def test_step_5_trains_the_detection_layers_of_step_3(self, run):
        start = part(weights(run.folder / "step5_detection/model_init.pth"), "roi_heads")
        assert all(same(start, part(run.step3, "roi_heads")))
        assert not any(same(start, part(run.step5, "roi_heads")))

    def test_steps_2_and_3_start_from_the_weights_of_the_config(self, run, tmp_path):
        """A learning rate of zero leaves the parameters unchanged."""
        still = ("SOLVER.BASE_LR", 0.0, "MODEL.WEIGHTS", run.folder / "model_final.pth")
        train(tmp_path, *still, "SOLVER.MAX_ITER", 1, "DATASETS.TEST", ())
        statistics = ("running_mean", "running_var", "num_batches_tracked")
        for step in ("step2_proposals", "step3_detection"):
            state = part(weights(tmp_path / step / "model_final.pth"), "backbone")
            learnt = [name for name in state if not name.endswith(statistics)]
            assert learnt and all(torch.equal(state[name], run.unified[name]) for name in learnt)


class TestTheUnifiedNetwork:
    def test_has_the_parameters_of_the_joint_model(self, run):
        from detectron2.modeling import build_model

        cfg = tiny_cfg("MODEL.ROI_HEADS.NUM_CLASSES", 2)
        joint = build_model(cfg).state_dict()
        assert {name: value.shape for name, value in run.unified.items()} == {
            name: value.shape for name, value in joint.items()
        }
        assert all(same(part(run.unified, "roi_heads"), part(run.step5, "roi_heads")))
        assert all(
            same(part(run.unified, "proposal_generator"), part(run.step4, "proposal_generator"))
        )

    def test_eval_only_gives_the_results_of_the_run(self, run, tmp_path):
        results = run.results["bbox"]
        assert last_metrics(run.folder)["bbox/AP50"] == results["AP50"]
        again = train(tmp_path, "MODEL.WEIGHTS", run.folder / "model_final.pth", eval_only=True)
        assert again["bbox"] == pytest.approx(results, nan_ok=True)
        last = train(run.folder, eval_only=True, resume=True)
        assert last["bbox"] == pytest.approx(results, nan_ok=True)

    def test_detects_what_step_5_detects_on_the_proposals_of_step_4(self, run):
        def detections(folder):
            path = folder / "inference/coco_instances_results.json"
            return [
                [row["score"], *row["bbox"]] for row in json.loads(path.read_text()) if row["score"]
            ]

        unified, step5 = detections(run.folder), detections(run.folder / "step5_detection")
        assert len(unified) > 0
        np.testing.assert_allclose(unified, step5, atol=1e-3)


class TestProposalFiles:
    @pytest.mark.parametrize("step", ["step2_proposals", "step4_proposals"])
    @pytest.mark.parametrize(("split", "topk"), [("train", 20), ("test", 10)])
    def test_contain_the_best_boxes_of_every_image(self, run, step, split, topk):
        file = run.folder / step / f"proposals_{split}_alternating.pkl"
        proposals = pickle.loads(file.read_bytes())
        assert sorted(proposals["ids"]) == [f"{i:03}" for i in range(IMAGES)]
        assert proposals["bbox_mode"] == 0
        for boxes, logits in zip(proposals["boxes"], proposals["objectness_logits"], strict=True):
            assert boxes.shape == (len(logits), 4) and 0 < len(logits) <= topk
            assert (np.diff(logits) <= 0).all()
            assert (boxes >= 0).all() and (boxes <= [*SIZE[::-1], *SIZE[::-1]]).all()
        assert max(map(len, proposals["boxes"])) == topk

    def test_are_scaled_to_the_network_input_by_the_stock_loader(self, tmp_path):
        from detectron2.data import build_detection_test_loader
        from detectron2.modeling import build_model

        from hypernet_d2.engine import Trainer
        from hypernet_d2.engine.proposal_writer import ProposalWriter

        path = str(tmp_path / "proposals.pkl")
        larger = ("DATASETS.TEST", ("alternating",), "INPUT.MIN_SIZE_TEST", 96)
        cfg = tiny_cfg(*larger, "MODEL.META_ARCHITECTURE", "ProposalNetwork")
        model, seen = build_model(cfg), []
        # A copy, because the meta architecture scales the boxes in place.
        model.proposal_generator.register_forward_hook(
            lambda module, inputs, output: seen.append(output[0][0].proposal_boxes.tensor.clone())
        )
        Trainer.test(cfg, model, ProposalWriter(path))
        stored = pickle.loads(Path(path).read_bytes())["boxes"]
        cfg = tiny_cfg(
            *larger, "MODEL.LOAD_PROPOSALS", True, "DATASETS.PROPOSAL_FILES_TEST", (path,)
        )
        loader = build_detection_test_loader(cfg, "alternating")
        for raw, boxes, (image,) in zip(seen, stored, loader, strict=True):
            np.testing.assert_allclose(boxes * 1.5, raw, rtol=1e-5, atol=1e-4)
            loaded = image["proposals"].proposal_boxes.tensor
            np.testing.assert_allclose(loaded, raw, rtol=1e-5, atol=1e-4)

    def test_a_file_appears_only_when_it_is_complete(self, tmp_path, monkeypatch):
        from hypernet_d2.engine import proposal_writer

        def interrupted(_, file):
            file.write(b"half")
            raise KeyboardInterrupt

        writer = proposal_writer.ProposalWriter(str(tmp_path / "proposals.pkl"))
        monkeypatch.setattr(proposal_writer.pickle, "dump", interrupted)
        proposals = SimpleNamespace(
            proposal_boxes=SimpleNamespace(tensor=torch.zeros(0, 4)),
            objectness_logits=torch.zeros(0),
        )
        proposals.to = lambda device: proposals
        writer.process([{"image_id": 0}], [{"proposals": proposals}])
        with pytest.raises(KeyboardInterrupt):
            writer.evaluate()
        assert not (tmp_path / "proposals.pkl").exists()


class Interrupted(Exception):
    """Ends a run, in place of a signal."""


@pytest.fixture
def record(monkeypatch):
    """Records the iterations and the proposal files of a run, as (step, iteration or file name).

    The run is ended before the event ``stop_at``, or receives SIGTERM before ``sigterm_at``.
    """
    from hypernet_d2.engine import alternating

    done = SimpleNamespace(events=[], stop_at=None, sigterm_at=None)
    run_step, evaluate = alternating.StepTrainer.run_step, alternating.ProposalWriter.evaluate

    def note(event):
        if event == done.stop_at:
            raise Interrupted
        if event == done.sigterm_at:
            signal.raise_signal(signal.SIGTERM)
        done.events.append(event)

    def noted_run_step(trainer):
        note((Path(trainer.cfg.OUTPUT_DIR).name[:5], trainer.iter))
        run_step(trainer)

    def noted_evaluate(writer):
        note((Path(writer.path).parent.name[:5], Path(writer.path).name))
        evaluate(writer)

    monkeypatch.setattr(alternating.StepTrainer, "run_step", noted_run_step)
    monkeypatch.setattr(alternating.ProposalWriter, "evaluate", noted_evaluate)
    return done


def iterations(events: list, step: str) -> list:
    return [what for where, what in events if where == step and isinstance(what, int)]


def steps_done(events: list) -> dict[str, list]:
    """The iterations of each step that has any."""
    steps = {step[:5]: iterations(events, step[:5]) for step in STEPS}
    return {step: done for step, done in steps.items() if done}


@pytest.mark.slow
def test_an_interrupted_schedule_resumes_where_it_stopped(record, tmp_path):
    """A checkpoint is written after every second iteration; only what follows it is repeated."""
    train_file = "proposals_train_alternating.pkl"
    expected = [  # where the run is stopped, and what it had done by then
        (("step2", 3), {"step2": [0, 1, 2]}),
        (("step2", train_file), {"step2": [2, 3]}),
        (("step3", 1), {"step3": [0]}),
        (("step4", 3), {"step3": [0, 1, 2, 3], "step4": [0, 1, 2]}),
        (("step4", train_file), {"step4": [2, 3]}),
        (("step5", 2), {"step5": [0, 1]}),
        (None, {"step5": [2, 3]}),
    ]
    for record.stop_at, done in expected:
        record.events.clear()
        if record.stop_at is not None:
            with pytest.raises(Interrupted):
                train(tmp_path, resume=record.stop_at != ("step2", 3))
        else:
            results = train(tmp_path, resume=True)
        assert steps_done(record.events) == done
    assert "AP" in results["bbox"]
    frozen = part(weights(tmp_path / "step3_detection/model_final.pth"), "backbone")
    assert all(same(frozen, part(weights(tmp_path / "model_final.pth"), "backbone")))


def test_sigterm_leaves_a_checkpoint_of_the_current_step(record, tmp_path):
    short = ("SOLVER.MAX_ITER", 2, "DATASETS.TEST", ())
    for record.sigterm_at, done in [
        (("step2", 0), {"step2": [0]}),
        (("step3", 0), {"step2": [1], "step3": [0]}),
        (None, {"step3": [1], "step4": [0, 1], "step5": [0, 1]}),
    ]:
        record.events.clear()
        if record.sigterm_at is None:
            train(tmp_path, *short, resume=True)
        else:
            with pytest.raises(SystemExit) as left:
                train(tmp_path, *short, resume=True)
            assert left.value.code == 143
        assert steps_done(record.events) == done


def test_resuming_a_finished_schedule_only_evaluates(record, run):
    assert train(run.folder, resume=True)["bbox"] == pytest.approx(run.results["bbox"], nan_ok=True)
    assert record.events == []


def test_a_new_run_ignores_the_files_of_an_earlier_one(record, tmp_path):
    from hypernet_d2.engine import train_alternating

    short = ("SOLVER.MAX_ITER", 1, "DATASETS.TEST", ())
    train(tmp_path, *short)
    with pytest.raises(FileExistsError, match="earlier run.*--resume"):
        train(tmp_path, *short)
    record.stop_at = ("step3", 0)
    cfg = tiny_cfg(*options(tmp_path, *short))
    with pytest.raises(Interrupted):
        train_alternating(cfg)  # from Python, where it is the caller's decision
    record.stop_at = None
    record.events.clear()
    train(tmp_path, *short, resume=True)
    assert [iterations(record.events, step[:5]) for step in STEPS] == [[], [0], [0], [0]]
    record.events.clear()
    shutil.rmtree(tmp_path / "step4_proposals")  # how a step and those after it are done again
    train(tmp_path, *short, resume=True)
    assert [iterations(record.events, step[:5]) for step in STEPS] == [[], [], [0], [0]]


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (["MODEL.LOAD_PROPOSALS", True], r"LOAD_PROPOSALS is True .*makes the precomputed"),
        (["MODEL.PROPOSAL_GENERATOR.NAME", "PrecomputedProposals"], r"'PrecomputedProposals'; the"),
        (["MODEL.META_ARCHITECTURE", "RetinaNet"], r"'RetinaNet'; .*'GeneralizedRCNN'"),
    ],
)
def test_unsupported_models_are_refused(opts, message):
    from hypernet_d2.engine import train_alternating

    with pytest.raises(ValueError, match=message):
        train_alternating(tiny_cfg(*opts))
