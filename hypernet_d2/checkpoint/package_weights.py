"""``MODEL.WEIGHTS "hypernet_d2://NAME"``: the weights of a trained model that the package contains.

Importing this module registers the prefix in detectron2's PathManager.
"""

from __future__ import annotations

from pathlib import Path

from detectron2.utils.file_io import PathManager
from iopath.common.file_io import PathHandler

__all__ = ["package_weights", "trained_configs"]

PREFIX = "hypernet_d2://"
FOLDER = Path(__file__).parents[1] / "model_zoo" / "weights"  # see its README.md


class PackageWeights(PathHandler):
    """Gives the local path of the weights of a trained model."""

    def _get_supported_prefixes(self) -> list[str]:
        return [PREFIX]

    def _get_local_path(self, path: str, force: bool = False, **kwargs) -> str:
        """
        Raises:
            ValueError: the package has no such weights.
        """
        name = path.removeprefix(PREFIX)
        if name not in trained_configs():
            raise ValueError(f"no trained model of {name!r}; there are: {_listed()}")
        return str(FOLDER / f"{name.replace('/', '_', 1)}.pth")


def trained_configs() -> list[str]:
    """The configs with trained weights, such as "BCCD-Detection/hypernet_lite0"."""
    return sorted(file.stem.replace("_", "/", 1) for file in FOLDER.glob("*.pth"))


def package_weights(name: str) -> str:
    """``MODEL.WEIGHTS`` for the trained model of a config.

    Raises:
        ValueError: there is none.
    """
    if name not in trained_configs():
        raise ValueError(f"no trained model of {name!r} is published; there are: {_listed()}")
    return PREFIX + name


def _listed() -> str:
    return ", ".join(trained_configs())


PathManager.register_handler(PackageWeights(), allow_override=True)
