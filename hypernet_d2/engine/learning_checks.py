"""Checks that a model can learn, and that its proposals do."""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Mapping

import numpy as np
from detectron2.engine import HookBase
from detectron2.modeling import Backbone
from detectron2.structures import Instances
from torch import Tensor, nn

__all__ = ["ProposalCheck", "check_first_features"]

logger = logging.getLogger(__name__)

LARGEST_VALUE = 1e8  # of a feature map; of networks that work it is below 1e4
DELAY = 100  # iterations after the warm-up before proposals are checked
WINDOW = 20  # iterations in which they are checked
LEAST_ITERATIONS = 60  # a shorter training is not checked
MOST_BOXES = 20  # proposals of an image that are compared


def check_first_features(model: nn.Module) -> None:
    """Check the feature maps of each backbone in the model in its first batch of training.

    A backbone in another one, such as the trunk of HyperBackbone, is checked by itself, because a
    normalization after it hides what is wrong.

    Raises (in the forward pass):
        ValueError: naming a map that is not finite, is zero everywhere, or has values above 1e8.
    """
    for name, module in model.named_modules():
        if isinstance(module, Backbone):
            handles: list = []
            check = functools.partial(_check_features, name, handles)
            handles.append(module.register_forward_hook(check))


def _check_features(
    name: str, handles: list, module: nn.Module, inputs: tuple, maps: Mapping[str, Tensor]
) -> None:
    if not module.training:
        return
    handles.pop().remove()
    for key, feature in maps.items():
        largest = feature.detach().abs().max().item() if feature.numel() else 1.0
        if not math.isfinite(largest):
            problem = "is not finite"
        elif largest > LARGEST_VALUE:
            problem = f"has values up to {largest:.1g}"
        elif largest == 0:
            problem = "is zero everywhere"
        else:
            continue
        raise ValueError(
            f"feature map {key!r} of {name} ({type(module).__name__}) {problem} in the first batch "
            "of training, so that nothing can be learned from it. Check that MODEL.WEIGHTS are "
            "those of this network, that MODEL.PIXEL_MEAN, MODEL.PIXEL_STD and INPUT.FORMAT are "
            "those it was trained with, and that its normalization layers still have their "
            "statistics and activations"
        )


class ProposalCheck(HookBase):
    """Warns once, after the warm-up, if the proposals have learned nothing.

    That is the case if the objectness loss is that of scores of 0, ln 2 for each window, or if the
    proposals do not depend on the image: they are the same for different images, or all windows of
    an image have the same score.
    """

    def __init__(
        self, model: nn.Module, batch_size_per_image: int, loss_weight: float, warmup_iters: int
    ):
        """
        Args:
            model: not wrapped in DistributedDataParallel.
            batch_size_per_image: windows of an image in the objectness loss.
            loss_weight: of the objectness loss.
            warmup_iters: iterations of the warm-up of the learning rate.
        """
        self._module = getattr(model, "proposal_generator", None)
        self._batch_size = batch_size_per_image
        self._loss_weight = loss_weight
        self._warmup = warmup_iters
        self._end = -1
        self._handle = None
        self._relative_losses: list[float] = []
        self._by_size: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}
        self._same: list[bool] = []

    def before_train(self) -> None:
        """Choose the iterations: after the warm-up, or the last ones of a short training."""
        if isinstance(self._module, nn.Module) and self.trainer.max_iter >= LEAST_ITERATIONS:
            self._end = min(self._warmup + DELAY + WINDOW, self.trainer.max_iter)

    def before_step(self) -> None:
        """Begin to record."""
        if self._handle is None and 0 <= self._end - self.trainer.iter <= WINDOW:
            self._handle = self._module.register_forward_hook(self._record)

    def after_step(self) -> None:
        """Record the loss; at the end, warn."""
        if self._handle is None:
            return
        latest = {key: value for key, (value, _) in self.trainer.storage.latest().items()}
        loss = latest.get("loss_rpn_cls")
        if loss is not None and self._loss_weight > 0:
            counts = [latest.get(f"rpn/num_{kind}_anchors", math.nan) for kind in ("pos", "neg")]
            share = sum(counts) / self._batch_size
            share = share if share > 0 else 1.0  # it is NaN without these counts
            self._relative_losses.append(loss / (math.log(2) * self._loss_weight * share))
        if self.trainer.iter + 1 >= self._end:
            self._handle.remove()
            self._handle, self._end = None, -1
            self._warn(loss)

    def _record(self, module: nn.Module, inputs: tuple, output: tuple) -> None:
        """A forward hook of the proposal generator."""
        if module.training:
            self._same += [same for one in output[0] if (same := self._is_same(one)) is not None]

    def _is_same(self, proposals: Instances) -> bool | None:
        """Whether they tell nothing of their image; None if there is nothing to compare with."""
        scores = proposals.objectness_logits.detach()
        boxes = proposals.proposal_boxes.tensor.detach()[:MOST_BOXES]
        if len(scores) < 2:
            return None
        if scores.max() - scores.min() < 0.01:
            return True
        first = self._by_size.setdefault(proposals.image_size, (scores, boxes))
        if first[0] is scores:
            return None
        return boxes.shape == first[1].shape and bool((boxes - first[1]).abs().max() < 1)

    def _warn(self, loss: float | None) -> None:
        found = []
        if self._relative_losses and np.median(self._relative_losses) > 0.97:
            found.append(f"the objectness loss (loss_rpn_cls) is {loss:.3f}, as for scores of 0")
        if len(self._same) > 2 and all(self._same):
            found.append(f"the proposals of {len(self._same)} images do not depend on the image")
        if found:
            logger.warning(
                "the proposals have learned nothing until iteration %d: %s. Check the "
                "normalization of the feature maps (MODEL.HYPERNET.FEATURE.NORM, MODEL.FPN.NORM: "
                "'BN' fits maps of any size), the learning rate (SOLVER.BASE_LR, WARMUP_ITERS), "
                "and that MODEL.WEIGHTS are those of the trunk",
                self.trainer.iter,
                " and ".join(found),
            )
