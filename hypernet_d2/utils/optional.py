"""Imports packages that only a part of the project needs."""

import importlib
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
