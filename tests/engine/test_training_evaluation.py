"""Validation sets in training: losses, best checkpoint, averaged weights, resumption."""

from __future__ import annotations

import json

import pytest
import torch

from tests.helpers import tiny_cfg, write_voc
from tests.reliability import small_run

pytestmark = pytest.mark.detectron2

TRAIN = "MODEL.HYPERNET.TRAIN."


@pytest.fixture(scope="module", autouse=True)
def data(tmp_path_factory):
    """The sets of small_run, and "held_out" of two images."""
    from detectron2.data import DatasetCatalog, MetadataCatalog

    from hypernet_d2.data import register_voc_style

    root = tmp_path_factory.mktemp("small_data")
    small_run.write_data(root)
    small_run.register(root)
    write_voc(root / "held_out", count=2)
    register_voc_style("held_out", root / "held_out", "all", ["square", "bar"])
    yield
    DatasetCatalog.pop("held_out")
    MetadataCatalog.pop("held_out")


def train_keys(**keys) -> list:
    return [word for key, value in keys.items() for word in (TRAIN + key, value)]


def test_the_validation_loss_is_repeatable_and_leaves_the_model_as_it_is():
    from detectron2.modeling import build_model

    from hypernet_d2.data.build import get_training_records
    from hypernet_d2.engine.validation_loss import ValidationLoss

    cfg = small_run.config("DATASETS.TEST", ("held_out",), "MODEL.RESNETS.NORM", "BN")
    get_training_records(cfg)
    model = build_model(cfg).train()
    model.backbone.eval()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    loss = ValidationLoss(cfg)
    random = torch.get_rng_state()
    first = loss(model)
    assert torch.equal(torch.get_rng_state(), random)
    torch.rand(5)
    assert loss(model) == first
    names = ("loss_cls", "loss_box_reg", "loss_rpn_cls", "loss_rpn_loc")
    assert first.keys() == {"validation_loss", *(f"validation_{name}" for name in names)}
    parts = [value for name, value in first.items() if name != "validation_loss"]
    assert first["validation_loss"] == pytest.approx(sum(parts)) and min(parts) > 0
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_validation_losses_need_the_order_of_the_classes():
    from detectron2.data import DatasetCatalog, MetadataCatalog

    from hypernet_d2.data import load_dataset
    from hypernet_d2.data.build import get_training_records
    from hypernet_d2.engine.validation_loss import ValidationLoss

    records = load_dataset("held_out")
    DatasetCatalog.register("reordered", lambda: records)
    MetadataCatalog.get("reordered").set(thing_classes=["bar", "square"])
    cfg = small_run.config("DATASETS.TEST", ("reordered",))
    get_training_records(cfg)
    try:
        with pytest.raises(ValueError, match=r"reordered has the classes \['bar', 'square'\]"):
            ValidationLoss(cfg)
    finally:
        DatasetCatalog.pop("reordered")
        MetadataCatalog.pop("reordered")


def test_the_test_set_is_evaluated_once_with_the_best_averaged_weights(tmp_path):
    from hypernet_d2.engine import Trainer

    keys = train_keys(
        VAL_DATASETS=("held_out",), BEST_CHECKPOINT=True, METRIC="validation_loss",
        VALIDATION_LOSS=True, EMA_DECAY=0.9,
    )  # fmt: skip
    cfg = small_run.config(
        *keys, "DATASETS.TEST", ("small_wide", "small_tall"), "TEST.EVAL_PERIOD", 1,
        "SOLVER.MAX_ITER", 2, "OUTPUT_DIR", str(tmp_path),
    )  # fmt: skip
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=False)
    trainer.train()
    rows = [json.loads(line) for line in (tmp_path / "metrics.json").read_text().splitlines()]
    assert [("validation_loss" in row, "test/small_tall/bbox/AP" in row) for row in rows[-2:]] in (
        [(True, False), (True, True)],
    )
    assert "bbox/AP" in rows[-1] and "test/bbox/AP" not in rows[-1]
    assert set(json.loads((tmp_path / "results.json").read_text())) == {"small_wide", "small_tall"}
    best, final = (
        torch.load(tmp_path / f"model_{name}.pth", weights_only=True) for name in ("best", "final")
    )
    assert best["class_names"] == ["square", "bar"] and "trainer" not in best
    assert best["score"] == min(row["validation_loss"] for row in rows if "validation_loss" in row)
    for name, value in trainer.model.state_dict().items():
        assert torch.equal(value, best["model"][name])
    trained = final["trainer"]["hooks"]["WeightAverage"]["weights"]
    assert any(not torch.equal(value, trained[name]) for name, value in final["model"].items())


def test_a_resumed_run_with_every_key_is_that_without_an_interruption(tmp_path):
    keys = [
        *train_keys(EMA_DECAY=0.9, ACCUMULATE=2, AMP_DTYPE="bfloat16"),
        "SOLVER.AMP.ENABLED", True, "SOLVER.LR_SCHEDULER_NAME", "WarmupCosineLR",
        "SOLVER.MAX_ITER", 4, "SOLVER.WARMUP_ITERS", 1, "SOLVER.CHECKPOINT_PERIOD", 100,
        "MODEL.HYPERNET.AUGMENT.SCALE", [0.5, 2.0], "MODEL.HYPERNET.AUGMENT.HUE", 0.1,
    ]  # fmt: skip
    small_run.train(tmp_path / "whole", *keys)
    with pytest.raises(SystemExit):
        small_run.train(tmp_path / "parts", *keys, at={1: small_run.sigterm})
    small_run.train(tmp_path / "parts", *keys)
    whole, parts = (small_run.losses(tmp_path / name) for name in ("whole", "parts"))
    assert max(map(small_run.difference, whole, parts)) <= 1e-5
    states = [
        torch.load(tmp_path / name / "model_final.pth", weights_only=True)
        for name in ("whole", "parts")
    ]
    torch.testing.assert_close(states[0]["model"], states[1]["model"])
    rate = states[1]["trainer"]["_trainer"]["optimizer"]["param_groups"][0]["lr"]
    assert rate == pytest.approx(0, abs=1e-4)


def test_the_mean_of_several_sets_is_the_metric():
    from hypernet_d2.engine.training_evaluation import _with_mean

    results = {"a": {"bbox": {"AP": 1.0}}, "b": {"bbox": {"AP": 4.0}}}
    assert _with_mean(results, "bbox/AP") == {**results, "bbox/AP": 2.5}
    assert _with_mean(results, "a/bbox/AP") == results
    assert _with_mean(results["a"], "bbox/AP") == results["a"]


def test_a_loss_that_the_model_does_not_have_is_an_error_at_the_first_evaluation():
    from hypernet_d2.engine.training_evaluation import _check_loss_name

    results = {"bbox": {"AP": 1.0}, "validation_loss": 1.0, "validation_loss_cls": 1.0}
    _check_loss_name("validation_loss_cls", results)
    _check_loss_name("bbox/AP60", results)
    with pytest.raises(ValueError, match="expected one of validation_loss, validation_loss_cls"):
        _check_loss_name("validation_loss_mask", results)


BEST = [*train_keys(BEST_CHECKPOINT=True), "TEST.EVAL_PERIOD", 10]


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (train_keys(BEST_CHECKPOINT=True), "BEST_CHECKPOINT is True, but TEST.EVAL_PERIOD is 0"),
        (train_keys(PATIENCE=3), "PATIENCE is 3 and .*BEST_CHECKPOINT False"),
        (
            [*train_keys(VAL_DATASETS=("held_out",)), "MODEL.LOAD_PROPOSALS", True],
            "VAL_DATASETS is",
        ),
        ([*BEST, "DATASETS.TEST", ()], "there is no set to evaluate; expected .*VAL_DATASETS"),
        (train_keys(EMA_DECAY=1.0), "EMA_DECAY is 1.0; expected 0 <= EMA_DECAY < 1"),
        (train_keys(ACCUMULATE=0), "ACCUMULATE is 0; expected 1 or more"),
        (train_keys(AMP_DTYPE="bf16"), "AMP_DTYPE is 'bf16'; expected 'float16' or 'bfloat16'"),
        (["SOLVER.AMP.ENABLED", True], "'float16', which needs a GPU"),
        ([*train_keys(EMA_DECAY=0.9), "TEST.PRECISE_BN.ENABLED", True], "PRECISE_BN.ENABLED"),
    ],
)
def test_keys_that_do_not_fit_are_errors_before_training(opts, message):
    from hypernet_d2.engine.training_checks import check_training

    cfg = tiny_cfg("DATASETS.TEST", ("held_out",))
    check_training(cfg)
    with pytest.raises(ValueError, match=message):
        check_training(tiny_cfg("DATASETS.TEST", ("held_out",), *opts))


@pytest.mark.parametrize(
    ("metric", "opts", "message"),
    [
        ("bbox/AP60", [], r"METRIC is 'bbox/AP60', .*mean 'bbox/AP50'.*expected one of bbox/AP, "),
        ("segm/AP", [], "does not have"),
        ("bbox/AP-bar", [], None),
        ("bbox/APsize-1of2", [], None),
        ("segm/AP", ["MODEL.MASK_ON", True], None),
        ("validation_loss", [], "expected .*VALIDATION_LOSS True"),
        ("validation_loss", train_keys(VALIDATION_LOSS=True), None),
        ("held_out/bbox/AP", train_keys(VAL_DATASETS=("held_out", "small_wide")), None),
        ("bbox/APs", ["MODEL.HYPERNET.EVALUATOR", "pascal_voc"], "does not have"),
    ],
)
def test_the_metric_of_the_best_checkpoint_exists(metric, opts, message):
    from hypernet_d2.engine.training_checks import check_metric

    opts = ["DATASETS.TEST", ("held_out",), *BEST, *train_keys(METRIC=metric), *opts]
    if message is None:
        check_metric(tiny_cfg(*opts))
    else:
        with pytest.raises(ValueError, match=message):
            check_metric(tiny_cfg(*opts))
