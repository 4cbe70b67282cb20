"""Imports packages that only a part of the project needs."""

import importlib
import importlib.util
from collections.abc import Iterable
from types import ModuleType


def import_optional(module: str, extra: str, purpose: str) -> ModuleType:
    """Import a module, or say which extra of this package installs it.

    Raises:
        ModuleNotFoundError: it is not installed; the message names ``purpose``.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module.partition(".")[0]:
            raise
        raise ModuleNotFoundError(
            f'{purpose} needs {module}: pip install "hypernet-d2[{extra}]"', name=error.name
        ) from None


def require_packages(modules: Iterable[str], extra: str, purpose: str) -> None:
    """Check, without importing them, that the modules of an extra of this package are installed.

    Raises:
        ImportError: naming those that are missing, and ``purpose``.
    """
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(
            f'{purpose} needs {", ".join(missing)}: pip install "hypernet-d2[{extra}]"'
        )
