"""Exponential moving average of the weights."""

from __future__ import annotations

import torch
from detectron2.engine import HookBase
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from hypernet_d2.checkpoint import get_class_names, set_class_names

__all__ = ["WeightAverage"]

STATISTICS = ("running_mean", "running_var")  # of BatchNorm


class WeightAverage(HookBase):
    """Averages the weights of a model after each iteration.

    Parameters and statistics of BatchNorm are averaged; other buffers are those of the model. After
    n iterations the decay is the least of ``decay`` and (1 + n) / (10 + n).

    The checkpointer holds `averaged`, so that every checkpoint has the average as its model; the
    weights that are trained are in the state of this hook. It is the first hook of a trainer, so
    that the others see the average of the iteration. When training is over, the model gets the
    average.

    Attributes:
        averaged: the model with averaged weights, in eval mode.
    """

    def __init__(self, model: nn.Module, decay: float):
        """
        Args:
            model: not wrapped in DistributedDataParallel.
            decay: in (0, 1).
        """
        self.model = model
        self.decay = decay
        self._average = AveragedModel(model, multi_avg_fn=self._update, use_buffers=True)
        self.averaged: nn.Module = self._average.module.eval().requires_grad_(False)
        self._restored = False

    @torch.no_grad()
    def _update(self, averages: list[Tensor], values: list[Tensor], count: Tensor) -> None:
        n = int(count)
        get_ema_multi_avg_fn(min(self.decay, (1 + n) / (10 + n)))(averages, values, n)

    @torch.no_grad()
    def after_step(self) -> None:
        """Add the weights of this iteration to the average."""
        self._average.update_parameters(self.model)
        buffers = dict(self.averaged.named_buffers())
        for name, value in self.model.named_buffers():
            if not name.endswith(STATISTICS):  # counts, and masks that contain infinities
                buffers[name].copy_(value)

    def after_load(self) -> None:
        """Start from loaded weights, unless a resumed run has restored the trained ones, too."""
        if not self._restored:
            self.model.load_state_dict(self.averaged.state_dict())
        if names := get_class_names(self.averaged):
            set_class_names(self.model, names)

    def after_train(self) -> None:
        """At the end the model gets the average, as in the last checkpoint."""
        if self.trainer.iter + 1 >= self.trainer.max_iter:
            self.model.load_state_dict(self.averaged.state_dict())

    def state_dict(self) -> dict:
        """The weights that are trained, and the number of iterations averaged."""
        return {"weights": self.model.state_dict(), "count": int(self._average.n_averaged)}

    def load_state_dict(self, state: dict) -> None:
        """Load what `state_dict` returns."""
        self.model.load_state_dict(state["weights"])
        self._average.n_averaged.fill_(state["count"])
        self._restored = True
