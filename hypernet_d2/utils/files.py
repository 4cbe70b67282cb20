"""Files that are written completely or not at all, and hints for misspelt names."""

from __future__ import annotations

import contextlib
import difflib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO

__all__ = ["atomic_write", "check_exists", "did_you_mean", "similar_files"]


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike, mode: str = "wb") -> Iterator[IO]:
    """Open a file for writing that replaces ``path`` when the block ends without an error.

    The data goes to ``path.part``, which is flushed to disk and renamed at the end. An existing
    file is therefore intact until the new one is complete, also when the process is killed. An
    error removes ``path.part``.

    Args:
        path: the file to create or replace.
        mode: "wb" or "w".

    Raises:
        OSError: naming ``path``, if the disk is full, the folder is read-only, etc.
    """
    path = os.fspath(path)
    part = f"{path}.part"
    try:
        with open(part, mode) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.unlink(part)
        # torch.save raises a RuntimeError of its own while it handles the OSError.
        cause = error if isinstance(error, OSError) else error.__context__
        if isinstance(cause, OSError) and isinstance(error, (OSError, RuntimeError)):
            raise OSError(cause.errno, f"cannot be written: {cause.strerror}", path) from error
        raise


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A hint for an error message: ``"; did you mean 'NAME'?"``, or "" if no name is similar.

    Args:
        name: what the user wrote.
        known: the names that exist.
    """
    matches = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f"; did you mean {matches[0]!r}?" if matches else ""


def similar_files(path: str | os.PathLike) -> str:
    """The hint of `did_you_mean` for a path that does not exist.

    The first part of the path that does not exist is compared with the names in its folder.
    """
    existing = Path(path).absolute()
    while not existing.parent.exists():
        existing = existing.parent
    try:
        names = os.listdir(existing.parent)
    except OSError:
        return ""
    depth = len(Path(path).absolute().parts) - len(existing.parts)
    given = Path(path).parents[depth - 1] if depth else Path(path)
    return did_you_mean(str(given), (str(given.with_name(name)) for name in names))


def check_exists(path: str | os.PathLike) -> None:
    """
    Raises:
        FileNotFoundError: there is no such file; with the hint of `similar_files`.
    """
    if not os.path.exists(path):
        raise FileNotFoundError(f"{path}: no such file{similar_files(path)}")
