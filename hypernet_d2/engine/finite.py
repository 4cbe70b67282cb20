"""Stops training and inference at numbers that are not finite."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

__all__ = ["LossCheck", "raise_if_not_finite"]


class LossCheck:
    """Checks the losses of a model after each forward pass in training.

    detectron2 raises, too, but only in the main process, after the backward pass, and without the
    names of the images.

    Attributes:
        images: file names of the batch that the model has seen last; None before the first one.

    Raises (in the forward pass):
        FloatingPointError: a loss is infinite or NaN. No gradient is computed.
    """

    def __init__(self, model: nn.Module):
        self.images: list[str] | None = None
        model.register_forward_pre_hook(self._before_forward)
        model.register_forward_hook(self._after_forward)

    def _before_forward(self, model: nn.Module, inputs: tuple) -> None:
        if model.training:
            self.images = [str(image.get("file_name", "?")) for image in inputs[0]]

    def _after_forward(self, model: nn.Module, inputs: tuple, losses: Mapping[str, Tensor]) -> None:
        if model.training and not torch.isfinite(sum(loss.detach() for loss in losses.values())):
            values = ", ".join(f"{name} is {loss.item():g}" for name, loss in losses.items())
            raise FloatingPointError(f"the losses are not finite: {values}")


def raise_if_not_finite(module: nn.Module, inputs: tuple, features: Mapping[str, Tensor]) -> None:
    """A forward hook of a backbone in inference, where stock code drops such boxes silently.

    Raises:
        FloatingPointError: a feature map is not finite.
    """
    if not all(torch.isfinite(feature).all() for feature in features.values()):
        raise FloatingPointError(
            f"the output of {type(module).__name__} is not finite for this image: a weight is not "
            "finite, or the values overflow"
        )
