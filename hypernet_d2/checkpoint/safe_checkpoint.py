"""A checkpointer that runs no code of a file's, and writes no weights that are broken."""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import torch
from detectron2.checkpoint import DetectionCheckpointer, detection_checkpoint

from hypernet_d2.utils import safe_pickle

__all__ = ["SafeCheckpointer"]

_load_weights = functools.partial(torch.load, map_location="cpu", weights_only=True)


class SafeCheckpointer(DetectionCheckpointer):
    """The stock checkpointer, but files may come from anyone, and what it writes can be resumed.

    Raises (in ``load``):
        ValueError: naming the file, if it is damaged, holds anything but weights, numbers and
            texts (nothing in it has been run then), or a weight in it is not finite.

    Raises (in ``save``):
        FloatingPointError: naming the first weight that is not finite; nothing is written.
    """

    def save(self, name: str, **kwargs: Any) -> None:
        """As the stock one, for a model whose weights are finite."""
        weight = first_non_finite_weight(self.model)
        if weight is not None:
            raise FloatingPointError(
                f"checkpoint {name!r} is not written, as {weight} is not finite; the one before "
                "it stands"
            )
        super().save(name, **kwargs)

    def _load_file(self, filename: str) -> dict[str, Any]:
        weights_only = SimpleNamespace(load=_load_weights)
        module = detection_checkpoint
        try:
            with (
                mock.patch.object(module, "pickle", safe_pickle),
                mock.patch.object(module, "torch", weights_only),
            ):
                loaded = super()._load_file(filename)
            _check_weights(loaded)
        except OSError:
            raise
        except Exception as error:  # damaged files raise errors of every kind
            self._parsed_url_during_load = None  # else the next load fails, too
            reason = _reason(error).removeprefix(f"{filename}: ")
            raise ValueError(f"{filename}: no checkpoint that can be read: {reason}") from error
        return loaded

    def _torch_load(self, f: str) -> dict[str, Any]:
        return _load_weights(f)


def _check_weights(loaded: dict[str, Any]) -> None:
    weights = loaded["model"]
    if not isinstance(weights, dict):
        raise ValueError(f"'model' is of type {type(weights).__name__}, expected a dict of weights")
    for name, value in weights.items():
        if not isinstance(value, (torch.Tensor, np.ndarray)) or value.dtype == object:
            raise ValueError(f"{name!r} is of type {type(value).__name__}, expected an array")
        tensor = torch.as_tensor(value)
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise ValueError(f"{name} is not finite")


def _reason(error: Exception) -> str:
    """What is wrong, out of torch.load's advice on how to run the code all the same."""
    found = re.search(r"WeightsUnpickler error: ([^\n]*)", str(error))
    text = found[1].strip() if found else str(error)
    if "Unsupported" in text:
        return f"{text}; files that could run code are refused"
    return text


def first_non_finite_weight(model: torch.nn.Module) -> str | None:
    """The name of the first parameter, or statistic of a normalisation, that is not finite."""
    # Not every buffer: masks are full of infinities on purpose.
    statistics = (
        (name, value)
        for name, value in model.named_buffers()
        if name.endswith(("running_mean", "running_var"))
    )
    return first_non_finite(itertools.chain(model.named_parameters(), statistics))


def first_non_finite(weights: Iterable[tuple[str, torch.Tensor]]) -> str | None:
    return next((name for name, value in weights if not torch.isfinite(value).all()), None)
