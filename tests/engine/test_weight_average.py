"""The exponential moving average of weights."""

from __future__ import annotations

import pytest
import torch
from torch import nn

pytestmark = pytest.mark.detectron2


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(1)
        self.register_buffer("mask", torch.tensor([0.0, -torch.inf]))


def test_parameters_and_statistics_are_averaged_and_other_buffers_copied():
    from hypernet_d2.engine.weight_average import WeightAverage

    model = Model()
    hook = WeightAverage(model, decay=0.25)
    expected = None
    for n in range(6):
        value = float(n * n)
        model.norm.weight.data.fill_(value)
        model.norm.running_mean.fill_(-value)
        model.norm.num_batches_tracked.fill_(n)
        hook.after_step()
        decay = min(0.25, (1 + n) / (10 + n))  # 2/11 and 3/12 come before the limit
        expected = value if expected is None else decay * expected + (1 - decay) * value
        assert hook.averaged.norm.weight.item() == pytest.approx(expected)
        assert hook.averaged.norm.running_mean.item() == pytest.approx(-expected)
        assert hook.averaged.norm.num_batches_tracked.item() == n
    assert torch.equal(hook.averaged.mask, model.mask)
    assert model.norm.weight.item() == 25
    assert not hook.averaged.training


def test_a_restored_average_goes_on_where_it_was():
    from hypernet_d2.engine.weight_average import WeightAverage

    def step(hook):
        hook.model.norm.weight.data += 1
        hook.after_step()

    hook = WeightAverage(Model(), decay=0.9)
    for _ in range(3):
        step(hook)
    again = WeightAverage(Model(), decay=0.9)
    again.averaged.load_state_dict(hook.averaged.state_dict())  # as the checkpointer does
    again.load_state_dict(hook.state_dict())
    again.after_load()
    step(hook)
    step(again)
    assert again.model.norm.weight.item() == hook.model.norm.weight.item() == 5
    assert again.averaged.norm.weight.item() == hook.averaged.norm.weight.item()


def test_loaded_weights_without_an_average_are_trained():
    from hypernet_d2.engine.weight_average import WeightAverage

    hook = WeightAverage(Model(), decay=0.9)
    hook.averaged.norm.weight.data.fill_(7)  # as the checkpointer does
    hook.after_load()
    assert hook.model.norm.weight.item() == 7
