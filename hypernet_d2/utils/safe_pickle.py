"""A restricted unpickler: NumPy arrays, numbers and strings in lists and dicts, nothing else.

Reading a pickle calls the functions that it names, so that a file can run any code. Checkpoints
(.pkl) and proposal files only need NumPy arrays.
"""

from __future__ import annotations

import codecs
import collections
import pickle
from typing import Any, BinaryIO

import numpy as np

__all__ = ["load"]


def _encode(text: str, encoding: str = "latin1") -> bytes:
    """Protocols 0 to 2 store bytes as a latin-1 string and a call of ``codecs.encode``."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"encoding is {encoding!r}, expected 'latin1'")
    return codecs.encode(text, encoding)


def _empty_bytes() -> bytes:
    """Protocols 0 to 2 store empty bytes as a call of ``bytes``."""
    return b""


_ALLOWED = {
    ("__builtin__", "bytes"): _empty_bytes,
    ("_codecs", "encode"): _encode,
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("numpy", "dtype"): np.dtype,
    ("numpy", "ndarray"): np.ndarray,
}
# Constructors of arrays and scalars in numpy.core (NumPy 1) or numpy._core (NumPy 2).
_NUMPY_CONSTRUCTORS = {
    ("multiarray", "_reconstruct"),
    ("multiarray", "scalar"),
    ("numeric", "_frombuffer"),
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _ALLOWED:
            return _ALLOWED[module, name]
        package, _, submodule = module.rpartition(".")
        if package in ("numpy.core", "numpy._core") and (submodule, name) in _NUMPY_CONSTRUCTORS:
            # Looked up in the installed NumPy, which may have the other package name.
            core = np._core if hasattr(np, "_core") else np.core
            return getattr(getattr(core, submodule), name)
        raise pickle.UnpicklingError(
            f"it names {module}.{name}, and files that could run code are refused; expected "
            "arrays, numbers and strings only"
        )


def load(file: BinaryIO, *, encoding: str = "ASCII") -> Any:
    """Read one object from an open file; the arguments are those of ``pickle.load``.

    Raises:
        ValueError: naming the file, if it is no pickle, is truncated, or contains anything but
            arrays, numbers and strings. None of the functions that it names has been called.
    """
    name = getattr(file, "name", "the pickle")
    try:
        return _Unpickler(file, encoding=encoding).load()
    except MemoryError as error:
        raise ValueError(f"{name}: cannot be read: a size in it is too large") from error
    except Exception as error:  # a damaged pickle raises errors of any type
        raise ValueError(f"{name}: cannot be read: {error}") from error
