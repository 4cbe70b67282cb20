"""Checks of ``OUTPUT_DIR`` that are made before anything is loaded or built."""

from __future__ import annotations

import os
from collections.abc import Sequence

from hypernet_d2.checkpoint import OUTPUT_FILES

__all__ = ["check_no_earlier_run", "check_writable"]


def check_writable(folder: str) -> None:
    """Make the folder if need be, and write and remove a small file in it.

    Raises:
        OSError: naming the folder, if that is not possible.
    """
    path = os.path.join(folder, ".write_test")
    try:
        OUTPUT_FILES.mkdirs(folder)
        with OUTPUT_FILES.open(path, "w") as file:
            file.write("The folder can be written to.\n")
        OUTPUT_FILES.rm(path)
    except OSError as error:
        reason = error.strerror or error
        raise OSError(f"OUTPUT_DIR {folder!r} cannot be written to: {reason}") from error


def check_no_earlier_run(folder: str, subfolders: Sequence[str] = ()) -> None:
    """For training that does not resume: refuse to overwrite the checkpoints of another run.

    Args:
        folder: ``OUTPUT_DIR``.
        subfolders: names of its folders that the training writes checkpoints to, too.

    Raises:
        FileExistsError: naming the checkpoint that exists.
    """
    for subfolder in ("", *subfolders):
        for name in ("last_checkpoint", "model_final.pth"):
            path = os.path.join(folder, subfolder, name)
            if OUTPUT_FILES.isfile(path):
                raise FileExistsError(
                    f"OUTPUT_DIR {folder!r} has the checkpoints of an earlier run ({path}), which "
                    "would be overwritten; give --resume to continue that run, or another "
                    "OUTPUT_DIR"
                )
