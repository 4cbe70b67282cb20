"""A checkpointer that refuses unsafe, damaged and unsuitable files, and writes atomically."""

from __future__ import annotations

import itertools
import logging
import os
import pickle
import re
import zipfile
import zlib
from typing import Any

import numpy as np
import torch
from detectron2.checkpoint import DetectionCheckpointer
from torch import nn

from hypernet_d2.utils import safe_pickle
from hypernet_d2.utils.files import similar_files

from .class_names import KEY, get_class_names, set_class_names
from .output_files import OUTPUT_FILES

__all__ = ["HyperNetCheckpointer"]

logger = logging.getLogger(__name__)

# The class scores of detectron2's FastRCNNOutputLayers: one row per class, and the background.
CLASS_SCORES = "roi_heads.box_predictor.cls_score.weight"


class HyperNetCheckpointer(DetectionCheckpointer):
    """The stock checkpointer, which raises where the stock one only warns.

    - Files are read without running code in them.
    - A local checkpoint is written to a temporary name and renamed when it is complete, so that a
      killed run leaves the previous one.
    - Resuming takes the newest checkpoint that is complete.
    - The class names of the model, see `get_class_names`, are saved and loaded with it.

    Args:
        strict: whether the checkpoint must have every parameter of the model, in its shape, as
            evaluation and resuming need. Otherwise it must have at least one, as the ImageNet
            weights of a trunk have.

    Raises (in ``load``):
        FileNotFoundError: naming the missing file.
        ValueError: naming the file, if it is damaged, contains anything but weights, numbers and
            strings, has a weight that is not finite, does not fit the model, or, if ``strict``,
            is of a model with other class names.

    Raises (in ``save``):
        FloatingPointError: naming the first weight that is not finite. Nothing is written.
    """

    def __init__(self, model: nn.Module, save_dir: str = "", *, strict: bool = False, **kwargs):
        super().__init__(model, save_dir, **kwargs)
        self.path_manager = OUTPUT_FILES
        self.strict = strict
        self._path = ""

    def save(self, name: str, **kwargs: Any) -> None:
        """As the stock one, for a model whose weights are finite."""
        weight = first_non_finite_weight(self.model)
        if weight is not None:
            raise FloatingPointError(
                f"checkpoint {name!r} is not written because {weight} is not finite; the previous "
                "checkpoint is kept"
            )
        if (names := get_class_names(self.model)) is not None:
            kwargs[KEY] = names
        super().save(name, **kwargs)

    def load(self, path: str, *args, **kwargs) -> dict[str, Any]:
        """Load ``path``; an empty path loads nothing, as in the stock checkpointer."""
        self._path = path
        file = path.partition("?")[0]
        if file and "://" not in file and not os.path.isfile(file):
            hint = similar_files(file) or (
                "; tools/convert_torchvision_weights.py writes the ImageNet weights of VGG16 and "
                "AlexNet"
            )
            raise FileNotFoundError(f"no checkpoint {file!r} (MODEL.WEIGHTS){hint}")
        try:
            loaded = super().load(path, *args, **kwargs)
        except Exception:
            self._parsed_url_during_load = None  # else the next call fails, too
            raise
        if names := loaded.get(KEY):
            self._take_class_names([str(name) for name in names])
        return loaded

    def resume_or_load(self, path: str, *, resume: bool = True) -> dict[str, Any]:
        """As the stock one; a checkpoint that is resumed must have every parameter."""
        strict = self.strict
        self.strict = strict or (resume and self.has_checkpoint())
        try:
            return super().resume_or_load(path, resume=resume)
        finally:
            self.strict = strict

    def get_checkpoint_file(self) -> str:
        """The file that ``last_checkpoint`` names, or the newest complete one before it.

        Raises:
            ValueError: naming the damaged files, if no checkpoint of ``save_dir`` is complete.
        """
        last = super().get_checkpoint_file()
        problems = []
        for path in [last, *self._checkpoints_before(last)]:
            problem = self._find_problem(path)
            if problem is None:
                if problems:
                    logger.warning(
                        "Resuming from %s, the newest complete checkpoint: %s",
                        path,
                        "; ".join(problems),
                    )
                return path
            problems.append(problem)
        raise ValueError(
            f"no checkpoint to resume from: {'; '.join(problems)}. To start a new run, give "
            "another OUTPUT_DIR, or delete this one"
        )

    def _checkpoints_before(self, last: str) -> list[str]:
        """The checkpoints before the one that ``last_checkpoint`` names, the newest first."""
        end = _iteration(last)
        numbered = {path: _iteration(path) for path in self.get_all_checkpoint_files()}
        before = {
            path: i for path, i in numbered.items() if i is not None and (end is None or i < end)
        }
        return sorted(before, key=before.get, reverse=True)

    def _find_problem(self, path: str) -> str | None:
        """Why a checkpoint cannot be resumed from; None if it is complete."""
        if not path.endswith(".pth"):
            return f"{os.path.join(self.save_dir, 'last_checkpoint')} names no checkpoint"
        if not self.path_manager.isfile(path):
            return f"{path} does not exist"
        try:
            # torch.save writes a zip archive; testzip compares the checksum of every member.
            with self.path_manager.open(path, "rb") as file, zipfile.ZipFile(file) as archive:
                complete = archive.testzip() is None
        except (OSError, zipfile.BadZipFile, zlib.error, EOFError):
            complete = False
        return None if complete else f"{path} is damaged"

    def _take_class_names(self, names: list[str]) -> None:
        """Those of a checkpoint are the model's, unless training data has given it others."""
        known = get_class_names(self.model)
        if known is None:
            set_class_names(self.model, names)
        elif self.strict and known != names:
            raise ValueError(
                f"checkpoint {self._path!r} is of a model of the classes {names}, but the training "
                f"data has {known}; expected the same names in the same order"
            )

    def _load_file(self, filename: str) -> dict[str, Any]:
        if filename.endswith(".pkl"):
            with self.path_manager.open(filename, "rb") as file:
                content = safe_pickle.load(file, encoding="latin1")
            loaded = _from_pickle(content, filename)
        elif filename.endswith(".pyth"):
            loaded = _from_pycls(self._torch_load(filename), filename)
        else:
            loaded = super()._load_file(filename)  # reads it with _torch_load
        _check_weights(loaded, filename)
        return loaded

    def _torch_load(self, f: str) -> dict[str, Any]:
        try:
            with self.path_manager.open(f, "rb") as file:
                content = torch.load(file, map_location="cpu", weights_only=True)
        except OSError:
            raise
        except pickle.UnpicklingError as error:
            raise ValueError(
                f"{f}: cannot be read as a checkpoint: it is damaged, or contains objects other "
                "than tensors, numbers and strings, which are refused because they could run code"
            ) from error
        except Exception as error:  # a damaged file raises errors of any type
            raise ValueError(f"{f}: cannot be read as a checkpoint: {error}") from error
        return _expect_dict(content, f)

    def _load_model(self, checkpoint: Any):
        incompatible = super()._load_model(checkpoint)
        names = {name for name, _ in self.model.named_parameters()}
        reshaped = [x for x in incompatible.incorrect_shapes if x[0] in names]
        # Tensors of another shape are among the missing keys, too.
        missing = [n for n in incompatible.missing_keys if n in names - {x[0] for x in reshaped}]
        unsuitable = len(missing) + len(reshaped)
        if unsuitable and (self.strict or unsuitable == len(names)):
            expected = "every parameter" if self.strict else "at least one parameter"
            found = [f"{len(missing)} are missing ({_first(missing)})"] if missing else []
            shapes = [f"{n}: {old} instead of {new}" for n, old, new in reshaped]
            found += [f"{len(reshaped)} have another shape ({_first(shapes)})"] if shapes else []
            raise ValueError(
                f"checkpoint {self._path!r} does not fit the model{_class_counts(reshaped)}: "
                f"expected {expected}, but of {len(names)} {' and '.join(found)}"
            )
        return incompatible


def first_non_finite_weight(model: nn.Module) -> str | None:
    """The name of the first parameter, or statistic of a normalization, that is not finite."""
    # Not every buffer: masks contain infinities on purpose.
    statistics = (
        (name, value)
        for name, value in model.named_buffers()
        if name.endswith(("running_mean", "running_var"))
    )
    weights = itertools.chain(model.named_parameters(), statistics)
    return next((name for name, value in weights if not torch.isfinite(value).all()), None)


def _iteration(path: str) -> float | None:
    """The iteration in a checkpoint's name, infinity for the final one, None for another name."""
    match = re.fullmatch(r"model_(?:(\d+)|final)\.pth", os.path.basename(path))
    if match is None:
        return None
    return float(match[1] or "inf")


def _from_pickle(content: Any, filename: str) -> dict[str, Any]:
    """A .pkl of detectron2's model zoo, or of Caffe2, whose weights are matched by suffix."""
    content = _expect_dict(content, filename)
    if "model" in content and "__author__" in content:
        return content
    weights = _expect_dict(content.get("blobs", content), filename)
    weights = {k: v for k, v in weights.items() if not str(k).endswith("_momentum")}
    return {"model": weights, "__author__": "Caffe2", "matching_heuristics": True}


def _from_pycls(content: dict, filename: str) -> dict[str, Any]:
    """A .pyth of pycls, whose weights are matched by suffix."""
    if "model_state" not in content:
        raise ValueError(f"{filename}: no 'model_state', which a .pyth checkpoint of pycls has")
    weights = _expect_dict(content["model_state"], filename)
    weights = {k: v for k, v in weights.items() if not str(k).endswith("num_batches_tracked")}
    return {"model": weights, "__author__": "pycls", "matching_heuristics": True}


def _expect_dict(content: Any, filename: str) -> dict:
    if not isinstance(content, dict):
        raise ValueError(
            f"{filename}: cannot be read as a checkpoint: it contains a {type(content).__name__}, "
            "expected a dict of weights"
        )
    return content


def _check_weights(loaded: dict[str, Any], filename: str) -> None:
    for name, value in _expect_dict(loaded["model"], filename).items():
        if not isinstance(value, (torch.Tensor, np.ndarray)) or value.dtype == object:
            raise ValueError(
                f"{filename}: cannot be read as a checkpoint: {name!r} is a "
                f"{type(value).__name__}, expected an array"
            )
        tensor = torch.as_tensor(value)
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise ValueError(f"{filename}: weight {name} is not finite")


def _class_counts(reshaped: list[tuple]) -> str:
    """The numbers of classes of the checkpoint and of the model, if they differ."""
    for name, in_checkpoint, in_model in reshaped:
        if name == CLASS_SCORES:
            return (
                f", it has {in_checkpoint[0] - 1} classes against {in_model[0] - 1} "
                "(MODEL.ROI_HEADS.NUM_CLASSES)"
            )
    return ""


def _first(names: list[str], count: int = 3) -> str:
    return ", ".join(names[:count]) + (", ..." if len(names) > count else "")
