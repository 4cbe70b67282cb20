"""A checkpointer that refuses what it cannot load."""

from __future__ import annotations

import os
from typing import Any

from torch import nn

from .safe_checkpoint import SafeCheckpointer

__all__ = ["HyperNetCheckpointer"]


class HyperNetCheckpointer(SafeCheckpointer):
    """The stock checkpointer, which raises where the stock one only warns.

    Args:
        strict: whether the checkpoint must hold every parameter of the model, in its shape, as
            for evaluation and resuming. Otherwise it must at least hold one, as ImageNet weights
            of a trunk do.

    Raises (in ``load``):
        FileNotFoundError: naming a file that is not there.
        ValueError: naming the checkpoint and the first parameters that it lacks, or that have
            another shape in it.
    """

    def __init__(self, model: nn.Module, save_dir: str = "", *, strict: bool = False, **kwargs):
        super().__init__(model, save_dir, **kwargs)
        self.strict = strict
        self._path = ""

    def load(self, path: str, *args, **kwargs) -> dict[str, Any]:
        """Load ``path``; an empty path loads nothing, as in the stock checkpointer."""
        self._path = path
        file = path.partition("?")[0]
        if file and "://" not in file and not os.path.isfile(file):
            raise FileNotFoundError(
                f"no checkpoint {file!r} (MODEL.WEIGHTS); tools/convert_torchvision_weights.py "
                "makes the weights that the configs of VGG16 and AlexNet name"
            )
        return super().load(path, *args, **kwargs)

    def resume_or_load(self, path: str, *, resume: bool = True) -> dict[str, Any]:
        """As the stock one; a checkpoint that is resumed must be complete."""
        strict = self.strict
        self.strict = strict or (resume and self.has_checkpoint())
        try:
            return super().resume_or_load(path, resume=resume)
        finally:
            self.strict = strict

    def _load_model(self, checkpoint: Any):
        incompatible = super()._load_model(checkpoint)
        names = {name for name, _ in self.model.named_parameters()}
        missing = [n for n in incompatible.missing_keys if n in names]
        reshaped = [name for name, _, _ in incompatible.incorrect_shapes]
        wrong = missing + reshaped
        if wrong and (self.strict or len(set(wrong)) >= len(names)):
            expected = "every parameter" if self.strict else "at least one parameter"
            raise ValueError(
                f"checkpoint {self._path!r} is of another architecture: expected {expected} of "
                f"the model, but {len(missing)} of {len(names)} are missing "
                f"({', '.join(missing[:3]) or 'none'}) and {len(reshaped)} have another shape "
                f"({', '.join(reshaped[:3]) or 'none'})"
            )
        return incompatible
