"""Gradient accumulation and mixed precision."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.helpers import batched_inputs, tiny_cfg

pytestmark = pytest.mark.detectron2

BFLOAT16 = ("SOLVER.AMP.ENABLED", True, "MODEL.HYPERNET.TRAIN.AMP_DTYPE", "bfloat16")


class Regression(nn.Module):
    """The loss is a mean over the examples of a batch, as that of the heads."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(3, 1)

    def forward(self, batch):
        return {"loss": self.layer(batch).pow(2).mean()}


def trained(batches: list[torch.Tensor], num_batches: int) -> tuple[nn.Module, list[float]]:
    """The model after training on the batches, and the loss of each iteration."""
    from detectron2.utils.events import EventStorage

    from hypernet_d2.engine.steps import AccumulatingTrainer

    model, losses = Regression(), []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    trainer = AccumulatingTrainer(model, batches, optimizer, num_batches=num_batches)
    with EventStorage() as storage:
        for _ in range(len(batches) // num_batches):
            trainer.run_step()
            losses.append(storage.latest()["total_loss"][0])
    return model, losses


def test_accumulated_gradients_are_those_of_a_larger_batch():
    torch.manual_seed(1)
    images = torch.randn(12, 3)
    small, small_losses = trained(list(images.split(2)), 3)
    large, large_losses = trained(list(images.split(6)), 1)
    torch.testing.assert_close(small.state_dict(), large.state_dict())
    assert small_losses == pytest.approx(large_losses)


@pytest.mark.parametrize("model", ["hypernet_R_18", "faster_rcnn_R_18_FPN", "faster_rcnn_R_18_C4"])
def test_models_train_in_bfloat16_on_a_cpu(model):
    from detectron2.modeling import build_model
    from detectron2.utils.events import EventStorage

    from hypernet_d2.engine.steps import build_step_trainer

    config = f"BCCD-Detection/{model}.yaml"
    cfg = tiny_cfg(*BFLOAT16, "MODEL.ROI_BOX_HEAD.FC_DIM", 16, config=config)
    torch.manual_seed(0)
    model = build_model(cfg)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    before = {name: value.clone() for name, value in model.named_parameters()}
    maps = []
    trunk = getattr(model.backbone, "trunk", model.backbone)
    trunk.register_forward_hook(lambda module, inputs, output: maps.extend(output.values()))
    trainer = build_step_trainer(cfg, model, [batched_inputs((64, 64), (48, 64))], optimizer)
    with EventStorage() as storage:
        trainer.run_step()
        assert torch.isfinite(torch.tensor(storage.latest()["total_loss"][0]))
    assert {feature.dtype for feature in maps} == {torch.bfloat16}
    trained = {n: v for n, v in model.named_parameters() if v.requires_grad}
    assert all(v.dtype == torch.float32 and v.isfinite().all() for v in trained.values())
    assert any(not torch.equal(v, before[n]) for n, v in trained.items())


def test_stock_trainers_are_used_where_they_can():
    from detectron2.engine import SimpleTrainer

    from hypernet_d2.engine.steps import build_step_trainer

    trainer = build_step_trainer(tiny_cfg(), Regression(), [], None)
    assert type(trainer) is SimpleTrainer
