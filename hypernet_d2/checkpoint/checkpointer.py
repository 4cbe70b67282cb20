"""A checkpointer that refuses what it cannot load, and that a kill cannot harm."""

from __future__ import annotations

import logging
import os
import re
import zipfile
import zlib
from pathlib import Path
from typing import Any

from detectron2.utils.file_io import PathManager
from torch import nn

from hypernet_d2.utils.files import replacing

from .safe_checkpoint import SafeCheckpointer

__all__ = ["HyperNetCheckpointer"]

logger = logging.getLogger(__name__)


class _WholeFiles:
    """detectron2's PathManager, whose files take their names when they are complete."""

    def open(self, path: str, mode: str = "r", **kwargs):
        """A file; one to write to is that of `replacing`."""
        return replacing(path, mode) if "w" in mode else PathManager.open(path, mode, **kwargs)

    def __getattr__(self, name: str):
        return getattr(PathManager, name)


class HyperNetCheckpointer(SafeCheckpointer):
    """The stock checkpointer, which raises where the stock one only warns.

    A checkpoint is written under another name and renamed when it is complete and on the disk, so
    that of a killed run the one before stands. Resuming takes the last checkpoint that is whole.

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
        self.path_manager = _WholeFiles()
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

    def get_checkpoint_file(self) -> str:
        """The checkpoint that ``last_checkpoint`` names, or the newest one before it that is whole.

        Raises:
            ValueError: naming the damaged ones, if no checkpoint of ``save_dir`` is whole.
        """
        named = Path(super().get_checkpoint_file())
        damaged = []
        for path in [named, *_older(named, Path(self.save_dir))]:
            if _is_whole(path):
                if damaged:
                    logger.warning(
                        "Resuming from %s, the newest whole checkpoint: %s",
                        path,
                        "; ".join(damaged),
                    )
                return str(path)
            damaged.append(_what_is_wrong(path))
        raise ValueError(
            f"no checkpoint to resume from: {'; '.join(damaged)}. To start anew leave out --resume"
        )

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


def _older(named: Path, folder: Path) -> list[Path]:
    """The checkpoints before the one that ``last_checkpoint`` names, the newest first.

    Args:
        named: that checkpoint; the folder where ``last_checkpoint`` is empty.
        folder: where the checkpoints are, maybe also those of an earlier and longer run.
    """
    paths = {path: _iteration(path) for path in folder.glob("model_*.pth")}
    numbered = {path: i for path, i in paths.items() if i is not None}
    end = _iteration(named)
    before = [path for path, i in numbered.items() if end is None or i < end]
    return sorted(before, key=lambda path: path.stat().st_mtime_ns, reverse=True)


def _iteration(path: Path) -> float | None:
    """The iteration of a checkpoint's name, infinity for the final one, None for another name."""
    number = re.fullmatch(r"model_(\d+|final)", path.stem)
    return float(number[1].replace("final", "inf")) if number else None


def _is_whole(path: Path) -> bool:
    """Whether a checkpoint has all its bytes, as torch.save has written them."""
    try:
        with zipfile.ZipFile(path) as file:
            return file.testzip() is None
    except (OSError, zipfile.BadZipFile, zlib.error, EOFError):
        return False


def _what_is_wrong(path: Path) -> str:
    if path.suffix != ".pth":
        return f"{path / 'last_checkpoint'} names no checkpoint"
    return f"{path} is damaged" if path.exists() else f"{path} is not there"
