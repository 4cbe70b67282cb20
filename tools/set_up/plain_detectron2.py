"""A checkout of detectron2 that is used as it is, without compiling it or writing to it.

A folder of the environment has links to the content of the checkout's package, and one from
``model_zoo/configs`` to the checkout's ``configs``, where detectron2's own installation puts them.
A path file adds the folder to Python's search path. The checkout itself is not added, as its
``tests``, ``tools`` and ``configs`` would then be modules as well.
"""

from __future__ import annotations

import os
import shutil
import sys
import sysconfig
from pathlib import Path

FOLDER = Path(sys.prefix, "detectron2_plain")
SOURCES = Path(sys.prefix, "src")  # checkouts that the set-up has fetched or unpacked
SITE = Path(sysconfig.get_path("purelib"))
PATH_FILE = SITE / "detectron2_plain.pth"

PKG_RESOURCES = '''\
"""The one function of pkg_resources that detectron2.model_zoo uses; setuptools 81 has none."""

from importlib.util import find_spec
from pathlib import Path


def resource_filename(package, name):
    return str(Path(find_spec(package).origin).parent / name)
'''


def link(checkout: Path) -> None:
    remove()
    package = FOLDER / "detectron2"
    (package / "model_zoo").mkdir(parents=True)
    for folder in ("", "model_zoo"):
        for entry in (checkout / "detectron2" / folder).iterdir():
            if entry.name not in ("__pycache__", "model_zoo", "configs"):
                (package / folder / entry.name).symlink_to(entry)
    (package / "model_zoo" / "configs").symlink_to(checkout / "configs")
    (FOLDER / "checkout").write_text(str(checkout), encoding="utf-8")
    _write_path_file()


def linked_checkout() -> Path | None:
    """The checkout that the environment uses, if any."""
    file = FOLDER / "checkout"
    return Path(file.read_text(encoding="utf-8")) if file.is_file() else None


def remove() -> None:
    PATH_FILE.unlink(missing_ok=True)
    shutil.rmtree(FOLDER, ignore_errors=True)


def add_pkg_resources() -> None:
    """Add a pkg_resources to the search path, behind all others, for detectron2.model_zoo."""
    FOLDER.mkdir(exist_ok=True)
    (FOLDER / "pkg_resources.py").write_text(PKG_RESOURCES, encoding="utf-8")
    _write_path_file()


def _write_path_file() -> None:
    # A relative path is ASCII: before Python 3.13 path files have the encoding of the locale.
    PATH_FILE.write_text(os.path.relpath(FOLDER, SITE) + "\n", encoding="utf-8")
