"""One training iteration: gradient accumulation and mixed precision."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable

import torch
from detectron2.config import CfgNode
from detectron2.engine import AMPTrainer, SimpleTrainer
from torch import nn
from torch.nn.parallel import DistributedDataParallel

__all__ = ["AccumulatingTrainer", "build_step_trainer"]

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}


def build_step_trainer(
    cfg: CfgNode, model: nn.Module, data_loader: Iterable, optimizer: torch.optim.Optimizer
) -> SimpleTrainer:
    """detectron2's SimpleTrainer or AMPTrainer where they can do it, else AccumulatingTrainer.

    Args:
        cfg: for ``SOLVER.AMP.ENABLED``, ``MODEL.HYPERNET.TRAIN.AMP_DTYPE`` and ``ACCUMULATE``.
        model: on its device, also one wrapped in DistributedDataParallel.
        data_loader: of the training batches.
        optimizer: of the model's parameters.
    """
    train = cfg.MODEL.HYPERNET.TRAIN
    dtype = DTYPES[train.AMP_DTYPE] if cfg.SOLVER.AMP.ENABLED else None
    if train.ACCUMULATE == 1 and dtype is not torch.bfloat16:
        return (AMPTrainer if dtype else SimpleTrainer)(model, data_loader, optimizer)
    return AccumulatingTrainer(
        model, data_loader, optimizer, num_batches=train.ACCUMULATE, dtype=dtype
    )


class AccumulatingTrainer(SimpleTrainer):
    """`detectron2.engine.SimpleTrainer` with several batches per iteration, or autocast.

    The gradient is the mean of the batches' gradients: that of one batch with all their images
    where the losses are means over images and no layer computes statistics over the batch.
    """

    def __init__(
        self,
        model: nn.Module,
        data_loader: Iterable,
        optimizer: torch.optim.Optimizer,
        *,
        num_batches: int = 1,
        dtype: torch.dtype | None = None,
    ):
        """
        Args:
            model: see `build_step_trainer`.
            data_loader: see `build_step_trainer`.
            optimizer: see `build_step_trainer`.
            num_batches: batches per iteration.
            dtype: of autocast; None for no autocast. float16 needs a GPU; its gradients are scaled.
        """
        super().__init__(model, data_loader, optimizer)
        self.num_batches = num_batches
        self.dtype = dtype
        self.device_type = next(model.parameters()).device.type
        self.grad_scaler = torch.amp.GradScaler(self.device_type, enabled=dtype is torch.float16)

    def run_step(self) -> None:
        """Compute the gradient of each batch, and do one step of the optimizer."""
        self.optimizer.zero_grad()
        means: dict[str, torch.Tensor] = {}
        data_time = 0.0
        for i in range(self.num_batches):
            start = time.perf_counter()
            data = next(self._data_loader_iter)
            data_time += time.perf_counter() - start
            with self._gradients_stay_local(i + 1 < self.num_batches):
                with torch.autocast(self.device_type, self.dtype, enabled=self.dtype is not None):
                    losses = self.model(data)
                    share = sum(losses.values()) / self.num_batches
                self.grad_scaler.scale(share).backward()
            for name, loss in losses.items():
                means[name] = means.get(name, 0) + loss.detach() / self.num_batches
        self.after_backward()
        self._write_metrics(means, data_time)
        self.grad_scaler.step(self.optimizer)
        self.grad_scaler.update()

    def _gradients_stay_local(self, local: bool) -> contextlib.AbstractContextManager:
        """Whether DistributedDataParallel does not average the gradients over the processes yet."""
        if local and isinstance(self.model, DistributedDataParallel):
            return self.model.no_sync()
        return contextlib.nullcontext()

    def state_dict(self) -> dict:
        """The stock state, and for float16 the scaler's, as detectron2's AMPTrainer saves it."""
        state = super().state_dict()
        if self.grad_scaler.is_enabled():
            state["grad_scaler"] = self.grad_scaler.state_dict()
        return state

    def load_state_dict(self, state_dict: dict) -> None:
        """Load what `state_dict` returns."""
        super().load_state_dict(state_dict)
        if self.grad_scaler.is_enabled() and "grad_scaler" in state_dict:
            self.grad_scaler.load_state_dict(state_dict["grad_scaler"])
