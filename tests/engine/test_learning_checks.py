"""Feature maps that nothing can be learned from, and proposals that have learned nothing."""

from __future__ import annotations

import logging
import math

import pytest
import torch
from torch import nn

from tests.helpers import batched_inputs, logged_by, tiny_cfg

pytestmark = pytest.mark.detectron2


@pytest.mark.parametrize(
    ("change", "problem"),
    [(lambda x: x * 0, "is zero everywhere"), (lambda x: x + 1e14, r"has values up to 1e\+14"),
     (lambda x: x * torch.nan, "is not finite")],
)  # fmt: skip
def test_a_trunk_whose_maps_cannot_be_used_is_named_in_the_first_batch(change, problem):
    from detectron2.modeling import build_model
    from detectron2.utils.events import EventStorage

    from hypernet_d2.engine.learning_checks import check_first_features

    model = build_model(tiny_cfg("MODEL.HYPERNET.FEATURE.NORM", "BN"))
    model.backbone.trunk.stem.register_forward_hook(lambda *args: change(args[2]))
    check_first_features(model)
    with EventStorage(), pytest.raises(ValueError, match=rf"backbone.trunk \(ResNet\) {problem}"):
        model.train()(batched_inputs((64, 64)))


def test_only_the_first_batch_is_checked():
    from detectron2.modeling import build_model
    from detectron2.utils.events import EventStorage

    from hypernet_d2.engine.learning_checks import check_first_features

    model = build_model(tiny_cfg()).train()
    check_first_features(model)
    with EventStorage():
        model(batched_inputs((64, 64)))
    assert not any(m._forward_hooks for m in model.modules())


class Proposals(nn.Module):
    """Proposes windows with given scores; the loss is that of the scores."""

    def __init__(self, scores, moves: float = 0.0):
        super().__init__()
        self.scores, self.moves, self.calls = scores, moves, 0

    def forward(self, loss: float):
        from detectron2.structures import Boxes, Instances
        from detectron2.utils.events import get_event_storage

        self.calls += 1
        one = Instances((32, 32))
        boxes = torch.tensor([[0.0, 0, 8, 8]]).repeat(len(self.scores), 1)
        one.proposal_boxes = Boxes(boxes + self.moves * self.calls)
        one.objectness_logits = torch.tensor(self.scores)
        storage = get_event_storage()
        storage.put_scalars(**{"rpn/num_pos_anchors": 1, "rpn/num_neg_anchors": 3})
        storage.put_scalar("loss_rpn_cls", loss)
        return [one], {}


def warnings_of(generator: Proposals, loss: float, iterations: int = 200) -> list[str]:
    """The warnings of a run whose windows are 4 an image of at most 8."""
    from detectron2.engine import TrainerBase

    from hypernet_d2.engine.learning_checks import ProposalCheck

    model = nn.Module()
    model.proposal_generator = generator

    class Run(TrainerBase):
        def run_step(self):
            generator(loss)

    trainer = Run()
    trainer.register_hooks([ProposalCheck(model, 8, 2.0, warmup_iters=10)])
    with logged_by("hypernet_d2.engine.learning_checks", logging.WARNING) as messages:
        trainer.train(0, iterations)
    return messages


LN2 = 2.0 * math.log(2) * 4 / 8  # loss weight 2, half of the windows sampled


def test_an_objectness_loss_of_ln_2_is_a_warning_once():
    (message,) = warnings_of(Proposals([3.0, 1.0], moves=2.0), LN2 * 0.99)
    assert "learned nothing until iteration 129: the objectness loss" in message
    for key in ("FEATURE.NORM", "BASE_LR", "MODEL.WEIGHTS"):
        assert key in message
    assert "do not depend" not in message


@pytest.mark.parametrize("scores", [[3.0, 1.0], [0.5, 0.5]])
def test_proposals_that_do_not_depend_on_the_image_are_a_warning(scores):
    (message,) = warnings_of(Proposals(scores), LN2 / 2)
    assert "the proposals of" in message and "do not depend on the image" in message


def test_proposals_that_learn_are_no_warning_and_short_runs_are_not_checked():
    assert not warnings_of(Proposals([3.0, 1.0], moves=2.0), LN2 / 2)
    assert not warnings_of(Proposals([0.5, 0.5]), LN2, iterations=20)
    assert warnings_of(Proposals([0.5, 0.5]), LN2, iterations=70)
