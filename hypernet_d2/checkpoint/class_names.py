"""The class names of a model, in the order of its class numbers. Checkpoints have them, too."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

__all__ = ["get_class_names", "set_class_names"]

KEY = "class_names"  # attribute of the model and key of the checkpoint


def get_class_names(model: nn.Module) -> list[str] | None:
    """The names that training or a checkpoint has given the model; None where neither has.

    Args:
        model: also one wrapped in DistributedDataParallel.
    """
    return getattr(getattr(model, "module", model), KEY, None)


def set_class_names(model: nn.Module, names: Sequence[str]) -> None:
    """Give the model its class names, which `HyperNetCheckpointer` saves with its weights."""
    setattr(getattr(model, "module", model), KEY, list(names))
