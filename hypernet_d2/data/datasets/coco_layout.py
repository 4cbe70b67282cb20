"""Finds COCO's json of each split, and the folder of its images."""

from __future__ import annotations

import functools
import json
import os
import re
from collections.abc import Callable
from pathlib import Path

from detectron2.data.datasets import register_coco_instances

from hypernet_d2.utils.coco_json import join_first, read_coco_json
from hypernet_d2.utils.files import check_exists
from hypernet_d2.utils.images import list_images

from .common import check_classes, warn_once
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
    source = read_coco(roles)
    used = {os.path.realpath(image) for split in source.splits.values() for image in split.images}
    places = {os.path.dirname(image) for image in used}
    without = [
        path.name
        for place in sorted(places)
        if os.path.isdir(place)
        for path in list_images(place)
        if os.path.realpath(path) not in used
    ]
    if without:
        warn_once(
            f"{folder}: {len(without)} image(s) are in no json and are left out, since an image "
            f"without objects is listed in COCO's json: {join_first(without)}"
        )
    return source


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
        metadata = {"thing_classes": names, **_keypoint_metadata(categories, file)}
        register = functools.partial(_register_coco, json_file=file, root=root, metadata=metadata)
        splits[role] = Split([os.path.join(root, name) for name in file_names], register)
    return DataSource("COCO", splits, classes.get("train") or classes["all"])


def _register_coco(name: str, json_file: Path, root: str, metadata: dict) -> None:
    register_coco_instances(name, metadata, str(json_file), root)


def _keypoint_metadata(categories: list[dict], file: Path) -> dict:
    """``keypoint_names``, ``keypoint_flip_map`` and ``keypoint_connection_rules`` of a json.

    Two names are a pair in the flip map if they differ in "left" and "right" alone. Without names,
    or with other names for other categories, which detectron2 does not have, the dict is empty.
    """
    lists = {tuple(one["keypoints"]) for one in categories if _is_list_of_texts(one)}
    if len(lists) != 1:
        if lists:
            warn_once(f"{file}: its categories have different keypoints, which are not used")
        return {}
    (names,) = lists
    pairs = [(name, re.sub("left", "right", name, count=1)) for name in names if "left" in name]
    skeletons = [one.get("skeleton") for one in categories if _is_list_of_texts(one)]
    numbers = range(1, len(names) + 1)
    bones = [bone for bone in skeletons[0] or [] if _is_pair_of(bone, numbers)]
    return {
        "keypoint_names": list(names),
        "keypoint_flip_map": [pair for pair in pairs if pair[1] in names],
        "keypoint_connection_rules": [
            (names[a - 1], names[b - 1], (255, 128, 0)) for a, b in bones
        ],
    }


def _is_pair_of(bone: object, numbers: range) -> bool:
    return isinstance(bone, list) and len(bone) == 2 and all(end in numbers for end in bone)


def _is_list_of_texts(category: dict) -> bool:
    names = category.get("keypoints")
    return bool(names) and isinstance(names, list) and all(isinstance(x, str) for x in names)


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
