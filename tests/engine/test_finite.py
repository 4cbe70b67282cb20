"""Numbers that are not finite: what is named, and what stays of the run."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.helpers import batched_inputs, tiny_cfg, write_voc

pytestmark = pytest.mark.detectron2


@pytest.fixture
def model():
    from detectron2.modeling import build_model

    return build_model(tiny_cfg()).train()


def named_batch() -> list[dict]:
    batch = batched_inputs((64, 64), (48, 64))
    return [{**one, "file_name": f"{name}.jpg"} for one, name in zip(batch, "ab", strict=True)]


def step(model, batch) -> None:
    """One step of the stock trainer, as iteration 5, watched."""
    from detectron2.engine import SimpleTrainer
    from detectron2.utils.events import EventStorage

    from hypernet_d2.engine.finite import finite_steps

    trainer = SimpleTrainer(model, [batch], torch.optim.SGD(model.parameters(), 0.0))
    trainer.iter = 5
    with EventStorage(5), finite_steps(trainer):
        trainer.run_step()


def message(model, batch) -> str:
    with pytest.raises(FloatingPointError) as caught:
        step(model, batch)
    return str(caught.value)


def poisoned(output):
    """The output of a module with NaN in its first tensor."""
    if isinstance(output, torch.Tensor):
        return output * torch.nan
    if isinstance(output, dict):
        key, value = next(iter(output.items()))
        return {**output, key: poisoned(value)}
    return (poisoned(output[0]), *output[1:])


@pytest.mark.parametrize(
    "name",
    [
        "backbone.hyper_feature",
        "backbone.trunk.res3.0.conv1",
        "proposal_generator.scorer.objectness",
        "roi_heads.box_head.fc1",
        "roi_heads.box_predictor",
    ],
)
def test_the_first_module_the_images_and_the_iteration_are_named(model, name):
    module = model.get_submodule(name)
    handle = module.register_forward_hook(lambda module, inputs, output: poisoned(output))
    try:
        text = message(model, named_batch())
    finally:
        handle.remove()
    assert "training stopped at iteration 5: " in text
    assert "Images of the batch: a.jpg, b.jpg" in text
    expected = f"First that is not finite: the output of {name} ({type(module).__name__})"
    assert text.endswith(expected)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_a_value_that_is_bad_within_a_module_is_that_modules(model, monkeypatch):
    generator = model.proposal_generator
    apply = generator.box2box_transform.apply_deltas
    monkeypatch.setattr(
        generator.box2box_transform, "apply_deltas", lambda *a: apply(*a) * torch.inf
    )
    text = message(model, named_batch())
    assert text.endswith("a value within proposal_generator (HyperNetProposals)")


def test_an_image_or_a_box_that_is_not_finite_is_named(model):
    from hypernet_d2.engine.finite import find_non_finite

    batch = named_batch()
    batch[1]["image"][0, 3, 3] = torch.inf
    assert message(model, batch).endswith("'image' of b.jpg, as the mapper gives it")
    batch = named_batch()
    batch[0]["instances"].gt_boxes.tensor[0, 2] = torch.nan
    assert find_non_finite(model, batch) == "'instances' of a.jpg, as the mapper gives it"


def test_a_weight_that_is_not_finite_is_named(model):
    weight = model.roi_heads.box_predictor.cls_score.weight
    before = weight.detach().clone()
    try:
        weight.data[0, 0] = torch.inf
        text = message(model, named_batch())
    finally:
        weight.data.copy_(before)
    assert "First that is not finite: roi_heads.box_predictor.cls_score.weight, since the" in text


def test_the_second_pass_has_the_precision_of_the_first(model):
    from hypernet_d2.engine.finite import find_non_finite

    conv = model.backbone.trunk.res2[0].conv1
    handle = conv.register_forward_hook(
        lambda module, inputs, output: poisoned(output) if output.dtype == torch.bfloat16 else None
    )
    try:
        batch = named_batch()
        assert find_non_finite(model, batch).startswith("unknown: a second pass")
        found = find_non_finite(model, batch, precision=torch.bfloat16)
    finally:
        handle.remove()
    assert found == f"the output of backbone.trunk.res2.0.conv1 ({type(conv).__name__})"


def test_the_second_pass_draws_the_same_random_numbers(model):
    """A module that fails for one draw of two thousand."""
    drawn = []

    def draw(module, inputs, output):
        drawn.append(int(torch.randint(2000, ())))
        return poisoned(output) if len(drawn) == 1 or drawn[-1] == drawn[0] else None

    handle = model.backbone.register_forward_hook(draw)
    try:
        text = message(model, named_batch())
    finally:
        handle.remove()
    assert drawn[0] == drawn[1] and "the output of backbone (HyperBackbone)" in text


class TestCheckpoints:
    @pytest.fixture
    def trainer(self, tmp_path):
        """Of a small set of images; writes a checkpoint after every step of five."""
        from detectron2.data import DatasetCatalog, MetadataCatalog

        from hypernet_d2.data import register_voc_style
        from hypernet_d2.engine import Trainer

        write_voc(tmp_path / "data")
        register_voc_style("finite", tmp_path / "data", "all", ["square", "bar"])
        yield Trainer(
            tiny_cfg(
                "DATASETS.TRAIN",
                ("finite",),
                "DATASETS.TEST",
                (),
                "SOLVER.MAX_ITER",
                5,
                "MODEL.ROI_HEADS.NUM_CLASSES",
                2,
                "SOLVER.CHECKPOINT_PERIOD",
                1,
                "OUTPUT_DIR",
                str(tmp_path / "out"),
                "MODEL.WEIGHTS",
                "",
            )  # fmt: skip
        )
        DatasetCatalog.pop("finite")
        MetadataCatalog.pop("finite")

    def test_weights_that_are_not_finite_are_not_written(self, trainer, tmp_path):
        weight = trainer.model.roi_heads.box_head.fc1.weight
        weight.register_hook(lambda grad: grad * (torch.nan if trainer.iter == 2 else 1))
        with pytest.raises(FloatingPointError, match=r"'model_0000002' is not written, as .*fc1"):
            trainer.train()
        self.check(tmp_path / "out")

    def test_losses_that_are_not_finite_leave_the_checkpoint_before(self, trainer, tmp_path):
        trainer.model.backbone.register_forward_hook(
            lambda module, inputs, output: poisoned(output) if trainer.iter == 2 else None
        )
        with pytest.raises(FloatingPointError, match=r"iteration 2.*\n.*\.jpg, .*\.jpg\n.*backb"):
            trainer.train()
        self.check(tmp_path / "out")

    @staticmethod
    def check(out: Path) -> None:
        """Two whole checkpoints stand, and the second is the one to resume from."""
        assert (out / "last_checkpoint").read_text() == "model_0000001.pth"
        files = sorted(out.glob("*.pth"))
        assert [file.name for file in files] == ["model_0000000.pth", "model_0000001.pth"]
        for file in files:
            state = torch.load(file, weights_only=True)["model"]
            assert all(v.isfinite().all() for v in state.values())
