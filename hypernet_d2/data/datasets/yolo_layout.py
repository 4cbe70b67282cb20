"""Reads what YOLO's ``data.yaml``, or folders without one, say about splits and classes."""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from pathlib import Path

import yaml

from .common import check_classes, read_text, warn_once
from .data_source import ROLES, DataSource, Split, assign_roles, role_folders
from .yolo_style import list_yolo_images, register_yolo_style

__all__ = ["is_yolo_folder", "read_yolo_folder", "read_yolo_yaml"]


def read_yolo_yaml(file: Path) -> DataSource:
    """Read a ``data.yaml``.

    A folder ``valid`` or ``test`` beside the file is used, too, if the file does not name it.

    Raises:
        FileNotFoundError: it names a split that is missing; ``test`` is only warned of.
        ValueError: naming the file and what is not as expected.
    """
    try:
        # Every scalar stays a text: a class may be called "no" or 12.
        content = yaml.load(read_text(file), Loader=yaml.BaseLoader)
    except yaml.YAMLError as error:
        raise ValueError(f"{file}: expected YAML, but {' '.join(str(error).split())}") from error
    if not isinstance(content, dict) or not content.get("names"):
        raise ValueError(f"{file}: no 'names', expected YOLO's class names and train, val, test")
    if "kpt_shape" in content:
        raise ValueError(f"{file}: has keypoints (kpt_shape), which are not read; use COCO's json")
    classes = _read_names(content, file)
    splits = {}
    for key in ("train", "val", "valid", "test"):
        value = content.get(key)
        if not value or value in ("~", "null") or ROLES[key] in splits:
            continue
        entries = value if isinstance(value, list) else [value]
        try:
            paths = [_find_entry(entry, content.get("path", ""), file, key) for entry in entries]
        except FileNotFoundError as error:
            if key != "test":
                raise
            warn_once(f"{error}; the test split is left out")
            continue
        splits[ROLES[key]] = _yolo_split(file.parent, paths, classes)
    for folder, role in role_folders(file.parent, is_yolo_folder).items():
        if role in ("val", "test") and role not in splits and not content.get(role):
            warn_once(f"{file}: names no {role}, but there is {folder}, which is used")
            splits[role] = _yolo_split(file.parent, [folder], classes)
    if "train" not in splits:
        raise ValueError(f"{file}: no 'train', expected the path of its images")
    return DataSource("YOLO", splits, classes)


def _read_names(content: dict, file: Path) -> tuple[str, ...]:
    names = content["names"]
    if isinstance(names, dict):
        numbers = {str(number) for number in range(len(names))}
        if names.keys() != numbers:
            raise ValueError(
                f"{file}: names have the keys {list(names)}, expected 0 to {len(names) - 1}"
            )
        names = [names[str(number)] for number in range(len(names))]
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{file}: names are {names!r}, expected a list or {{number: name}}")
    try:
        classes = check_classes(names)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error
    if "nc" in content and content["nc"] != str(len(classes)):
        raise ValueError(f"{file}: nc is {content['nc']}, but there are {len(classes)} names")
    return classes


def _find_entry(entry: object, base: object, file: Path, key: str) -> Path:
    """The path that an entry names, relative to ``path`` where that exists, or else to the yaml.

    Roboflow writes ``../train/images`` for what lies beside the yaml.
    """
    if not isinstance(entry, str) or not isinstance(base, str):
        raise ValueError(f"{file}: {key} is {entry!r} and path {base!r}, expected paths")
    entry = entry.replace("\\", "/")
    folder = file.parent
    if base and (folder / base).is_dir():
        places = [folder / base / entry]
    else:  # the yaml was written on another machine, or has no path
        places = [folder / entry]
        if entry.startswith("../"):
            places.append(folder / entry.removeprefix("../"))
    places = list(dict.fromkeys(map(os.path.normpath, places)))
    found = [Path(place) for place in places if os.path.exists(place)]
    if not found:
        raise FileNotFoundError(f"{file}: {key} is {entry!r}, but there is no {', '.join(places)}")
    if len(found) > 1 and not all(found[0].samefile(other) for other in found):
        raise ValueError(
            f"{file}: {key} {entry!r} may be each of {', '.join(map(str, found))}; expected one, "
            "or an absolute path"
        )
    return found[0]


def _yolo_split(root: Path, split: str | Sequence[Path], classes: tuple[str, ...]) -> Split:
    entries = [split] if isinstance(split, str) else [str(Path(path).resolve()) for path in split]
    images = [str(image) for image in list_yolo_images(root, entries)]
    register = functools.partial(register_yolo_style, root=root, split=entries, classes=classes)
    return Split(images, register)


def is_yolo_folder(folder: Path) -> bool:
    return (folder / "labels").is_dir() and (folder / "images").is_dir()


def read_yolo_folder(folder: Path) -> DataSource:
    """``images`` and ``labels``, of the whole set or of each split, without a ``data.yaml``."""
    files = [folder / "classes.txt", folder / "labels" / "classes.txt"]
    files = [file for file in files if file.is_file()]
    if not files:
        raise ValueError(
            f"{folder}: YOLO's images and labels without class names; expected a data.yaml with "
            "names, train and val, or a classes.txt with a name a line"
        )
    names = [line.strip() for line in read_text(files[0]).splitlines()]
    classes = check_classes([name for name in names if name])
    if not is_yolo_folder(folder):
        folders = role_folders(folder, is_yolo_folder)
    else:
        folders = role_folders(folder / "images", lambda path: path.parent != folder)
        folders = folders or {folder: "all"}
    roles = assign_roles(folders, folders.values(), folder)
    splits = {role: _yolo_split(folder, [path], classes) for role, path in roles.items()}
    return DataSource("YOLO", splits, classes)
