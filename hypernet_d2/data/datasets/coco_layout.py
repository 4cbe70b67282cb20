"""Finds COCO's json of each split, and the folder of its images."""

from __future__ import annotations

import functools
import json
import os
import re
from collections.abc import Callable
from pathlib import Path

from detectron2.data.datasets import register_coco_instances

from hypernet_d2.utils.coco_json import read_coco_json
from hypernet_d2.utils.files import check_exists

from .common import check_classes
from .data_source import DataSource, Split, assign_roles, role_of

__all__ = ["is_coco", "read_coco", "read_coco_files"]


def is_coco(file: Path) -> bool:
    try:
        content = json.loads(file.read_bytes())
    except (ValueError, RecursionError):
        return True  # reading it names what is wrong
    return isinstance(content, dict) and "images" in content and "categories" in content


def read_coco_files(folder: Path, files: list[Path], naming: Callable) -> DataSource:
    roles = assign_roles(files, (role_of(naming(file)) for file in files), folder)
    return read_coco(roles)


def read_coco(files: dict[str, Path]) -> DataSource:
    """Read COCO's json of each split: {role: file}.

    Raises:
        FileNotFoundError: no folder has the images.
        ValueError: naming the file: see `read_coco_json`; or several folders have the images.
    """
    splits, classes = {}, {}
    for role, file in files.items():
        check_exists(file)
        content = read_coco_json(file)
        categories = sorted(content["categories"], key=lambda one: one["id"])
        names = [one["name"] for one in categories]
        try:
            classes[role] = check_classes(names)
        except ValueError as error:
            raise ValueError(f"{file}: {error}") from error
        file_names = [image["file_name"] for image in content["images"]]
        root = str(_find_image_root(file, role, file_names))
        register = functools.partial(_register_coco, json_file=file, root=root, classes=names)
        splits[role] = Split([os.path.join(root, name) for name in file_names], register)
    return DataSource("COCO", splits, classes.get("train") or classes["all"])


def _register_coco(name: str, json_file: Path, root: str, classes: list[str]) -> None:
    register_coco_instances(name, {"thing_classes": classes}, str(json_file), root)


def _find_image_root(file: Path, role: str, file_names: list[str]) -> Path:
    """The folder that has most of the images."""
    stem = re.sub(r"^.*_", "", file.stem)  # instances_train2017 -> train2017
    places = []
    for base in (file.parent, file.parent.parent):
        places += [base, *(base / name for name in ("images", stem, role, f"images/{stem}"))]
        places.append(base / "images" / role)
    sample = file_names[:: max(1, len(file_names) // 50)]
    counts: dict[Path, int] = {}
    for place in dict.fromkeys(path for path in places if path.is_dir()):
        if not any(place.samefile(other) for other in counts):
            counts[place] = sum((place / name).is_file() for name in sample)
    most = max(counts.values())
    if not most:
        raise FileNotFoundError(
            f"{file}: its image {file_names[0]!r} is in none of {', '.join(map(str, counts))}"
        )
    found = [place for place, count in counts.items() if count == most]
    if len(found) > 1:
        raise ValueError(
            f"{file}: its images are in {' and in '.join(map(str, found))}; expected one folder"
        )
    return found[0]
