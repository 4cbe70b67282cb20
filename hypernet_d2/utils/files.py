"""Files that are there whole or not at all."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import IO

__all__ = ["replacing"]


@contextlib.contextmanager
def replacing(path: str | os.PathLike, mode: str = "wb") -> Iterator[IO]:
    """A file to write to, which takes its name when it is complete and on the disk.

    Until then it is ``path.part``. A process that is killed leaves the old file as it was; an
    error in writing also removes the part.

    Args:
        path: the file to make or to replace.
        mode: "wb" or "w".

    Raises:
        OSError: naming ``path``, where the system refuses to write: a full disk, a read-only
            folder.
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
        # torch.save reports an error of the system as one of its own, raised while handling it.
        cause = error if isinstance(error, OSError) else error.__context__
        if isinstance(cause, OSError) and isinstance(error, (OSError, RuntimeError)):
            raise OSError(cause.errno, f"cannot be written: {cause.strerror}", path) from error
        raise
