"""Pickles without code: arrays, numbers and texts in lists and dicts, and nothing else.

A pickle names the functions that make its objects, so that a file can be made that runs any code
when it is read. Checkpoints and proposals need NumPy's arrays only. `load` has the arguments of
``pickle.load``, so that this module can stand in for ``pickle`` where a library reads such files.
"""

from __future__ import annotations

import codecs
import collections
import pickle
from typing import Any, BinaryIO

import numpy as np

__all__ = ["load"]


def _encode(text: str, encoding: str = "latin1") -> bytes:
    """What older pickles hold the bytes of an array with."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"encoding is {encoding!r}, expected 'latin1'")
    return codecs.encode(text, encoding)


def _empty() -> bytes:
    """How older pickles make no bytes."""
    return b""


_ALLOWED = {
    ("__builtin__", "bytes"): _empty,
    ("_codecs", "encode"): _encode,
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("numpy", "dtype"): np.dtype,
    ("numpy", "ndarray"): np.ndarray,
}
# NumPy's own makers of arrays and numbers; the module has an underscore since NumPy 2.
_OF_NUMPY = {
    ("multiarray", "_reconstruct"),
    ("multiarray", "scalar"),
    ("numeric", "_frombuffer"),
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _ALLOWED:
            return _ALLOWED[module, name]
        package, _, last = module.rpartition(".")
        if package in ("numpy.core", "numpy._core") and (last, name) in _OF_NUMPY:
            # Looked up in the module that this NumPy has, which may be the other one.
            return getattr(getattr(np._core if hasattr(np, "_core") else np.core, last), name)
        raise pickle.UnpicklingError(
            f"it names {module}.{name}, and files that could run code are refused; expected "
            "arrays, numbers and texts only"
        )


def load(file: BinaryIO, *, encoding: str = "ASCII") -> Any:
    """Read one object from an open file, as ``pickle.load`` does.

    Raises:
        ValueError: naming the file, where it is no pickle, is cut off, or holds anything but
            arrays, numbers and texts. Nothing that it names has been called then.
    """
    try:
        return _Unpickler(file, encoding=encoding).load()
    except MemoryError as error:
        raise ValueError(f"{_name(file)}: cannot be read: a size in it is too large") from error
    except Exception as error:  # damaged pickles raise errors of every kind
        raise ValueError(f"{_name(file)}: cannot be read: {error}") from error


def _name(file: BinaryIO) -> str:
    return str(getattr(file, "name", "the pickle"))
