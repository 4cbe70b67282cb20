"""Data of one's own as splits that can be registered, and how folders and files name splits."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

__all__ = ["ROLES", "DataSource", "Split", "assign_roles", "role_folders", "role_of"]

ROLES = {
    "train": "train", "training": "train", "trainval": "train",
    "val": "val", "valid": "val", "validation": "val",
    "test": "test", "testing": "test",
}  # fmt: skip


class Split(NamedTuple):
    """
    Attributes:
        images: paths, as in the records.
        register: puts the split into detectron2's catalogs under a name.
    """

    images: list[str]
    register: Callable[[str], None]


class DataSource(NamedTuple):
    """
    Attributes:
        kind: "YOLO", "COCO" or "VOC".
        splits: by "train", "val" and "test"; or "all" alone.
        classes: names, in the order of the training split.
    """

    kind: str
    splits: dict[str, Split]
    classes: tuple[str, ...]


def role_folders(folder: Path, test: Callable[[Path], object]) -> dict[Path, str]:
    """{folder: role} of the folder itself, as "all", or of its train, val and test."""
    if test(folder):
        return {folder: "all"}
    inner = ((folder / name, role) for name, role in ROLES.items())
    return {path: role for path, role in inner if path.is_dir() and test(path)}


def assign_roles(paths: Iterable[Path], roles: Iterable[str], where: Path) -> dict[str, Path]:
    """{role: path}; a single path is "all", unless it is for training.

    Raises:
        ValueError: two paths have the same role, or one has none.
    """
    pairs = list(zip(roles, paths, strict=True))
    if len(pairs) == 1:
        return {"train" if pairs[0][0] == "train" else "all": pairs[0][1]}
    assigned = dict(pairs)
    if len(assigned) < len(pairs) or "all" in assigned or "train" not in assigned:
        found = ", ".join(f"{path.relative_to(where)} ({role})" for role, path in pairs)
        raise ValueError(
            f"{where}: expected one set to train on, and at most one to validate and one to test, "
            f"by their names; found {found}"
        )
    return assigned


def role_of(name: str) -> str:
    words = re.split(r"[^a-z]+", name.lower())
    roles = {ROLES[word] for word in words if word in ROLES}
    return roles.pop() if len(roles) == 1 else "all"
