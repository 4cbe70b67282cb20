"""Numbers that are not finite: training stops, names the images, and keeps its checkpoint."""

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


def poisoned(output):
    """The output of a module with NaN in its first tensor."""
    if isinstance(output, torch.Tensor):
        return output * torch.nan
    if isinstance(output, dict):
        key, value = next(iter(output.items()))
        return {**output, key: poisoned(value)}
    return (poisoned(output[0]), *output[1:])


def test_losses_that_are_not_finite_raise_before_the_backward_pass(model):
    from detectron2.utils.events import EventStorage

    from hypernet_d2.engine.finite import LossCheck

    model.roi_heads.box_predictor.register_forward_hook(lambda *args: poisoned(args[2]))
    check = LossCheck(model)
    with EventStorage(), pytest.raises(FloatingPointError, match="losses .*loss_cls is nan"):
        model(named_batch())
    assert check.images == ["a.jpg", "b.jpg"]
    assert all(p.grad is None for p in model.parameters())


def test_finite_losses_and_detections_in_evaluation_pass(model):
    from detectron2.utils.events import EventStorage

    from hypernet_d2.engine.finite import LossCheck

    check = LossCheck(model)
    with EventStorage():
        assert "loss_cls" in model(named_batch())
    model.eval()(batched_inputs((64, 64)))
    assert check.images == ["a.jpg", "b.jpg"]


class TestCheckpoints:
    @pytest.fixture
    def trainer(self, tmp_path):
        """A trainer of five steps that writes a checkpoint after each."""
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
        with pytest.raises(FloatingPointError, match=r"'model_0000002' is not written .*fc1"):
            trainer.train()
        self.check(tmp_path / "out")

    @pytest.mark.parametrize("module", ["roi_heads.box_predictor", "proposal_generator.scorer"])
    def test_values_that_are_not_finite_leave_the_checkpoint_before(
        self, trainer, tmp_path, module
    ):
        """In the losses, and in the proposals, which detectron2 checks in the forward pass."""
        trainer.model.get_submodule(module).register_forward_hook(
            lambda module, inputs, output: poisoned(output) if trainer.iter == 2 else None
        )
        with pytest.raises(FloatingPointError, match=r"iteration 2: .*: .*\d\.jpg, .*\d\.jpg"):
            trainer.train()
        self.check(tmp_path / "out")

    @staticmethod
    def check(out: Path) -> None:
        """Two complete checkpoints exist, and ``last_checkpoint`` names the second."""
        assert (out / "last_checkpoint").read_text() == "model_0000001.pth"
        files = sorted(out.glob("*.pth"))
        assert [file.name for file in files] == ["model_0000000.pth", "model_0000001.pth"]
        for file in files:
            state = torch.load(file, weights_only=True)["model"]
            assert all(v.isfinite().all() for v in state.values())
