"""A validation split for data without one, and images that two splits share."""

from __future__ import annotations

import filecmp
import hashlib
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from hypernet_d2.utils.coco_json import join_first

from .common import warn_once
from .near_identical import find_near_identical

__all__ = ["assign_split", "choose_validation", "find_shared_images", "original_stem"]

SHARE = 5  # one image in so many is for validation
RUN = 10  # numbers of a sequence that stay together, where the whole sequence is too long


def original_stem(file: str | os.PathLike) -> str:
    """The name without suffix, and without the hash that Roboflow appends to each variant."""
    stem = os.path.splitext(os.path.basename(file))[0]
    return re.sub(r"\.rf\.[0-9A-Za-z]+$", "", stem)


def choose_validation(images: Iterable[str]) -> frozenset[str]:
    """A fifth of the images, the same in each call with the same files.

    Images whose names differ in a number at their end or in Roboflow's hash are likely to be
    similar, and stay in one split, as do nearly identical ones, see `find_near_identical`. Where
    that gives no split of about a fifth, as with images that are all numbered, sequences are cut
    into runs of 10 numbers, and then into images.

    Args:
        images: paths.

    Raises:
        ValueError: there are fewer than two images.
    """
    images = sorted(images)
    if len(images) < 2:
        raise ValueError(f"{len(images)} image(s) are too few to train and validate; expected 2")
    target = max(1, round(len(images) / SHARE))
    alike = find_near_identical(images)
    for key in (_sequence, _run, original_stem, os.path.basename):
        chosen = _choose_groups(images, _merge(list(map(key, images)), alike), target)
        if 0.7 * target <= len(chosen) < len(images):
            break
    return frozenset(chosen or images[:1])


def assign_split(
    images: Mapping[str, str], split: Mapping[str, Sequence[str]], source: str
) -> frozenset[str]:
    """The images of the validation part of a split that was made earlier.

    Images that are in neither part, since they were added later, are for training, and named in a
    warning.

    Args:
        images: {path: path relative to the data's folder}.
        split: the relative paths of "train" and "val".
        source: the data, for the messages.

    Raises:
        ValueError: the split names an image that is not in the data, or one in both parts.
    """
    train, val = (set(split[role]) for role in ("train", "val"))
    known = set(images.values())
    missing = sorted((train | val) - known)
    if missing:
        raise ValueError(
            f"{source}: {len(missing)} image(s) of the split that was made earlier are not in the "
            f"data: {join_first(missing)}; expected the same data, or MODEL.HYPERNET.DATA.SPLIT of "
            "a folder without train.txt and val.txt for a new split"
        )
    if train & val:
        raise ValueError(
            f"{source}: {len(train & val)} image(s) are in train.txt and in val.txt of the split: "
            f"{join_first(sorted(train & val))}; expected each in one of them"
        )
    added = sorted(known - train - val)
    if added:
        warn_once(
            f"{source}: {len(added)} image(s) are not in the split that was made earlier, and are "
            f"used for training: {join_first(added)}"
        )
    return frozenset(path for path, name in images.items() if name in val)


def find_shared_images(first: Iterable[str], second: Iterable[str]) -> list[str]:
    """The images of the second split that the first one has, too.

    They are the same file, have the same content, or are variants that Roboflow made of one image.
    """
    sizes: dict[int, list[str]] = defaultdict(list)
    for path in map(os.path.realpath, first):
        if os.path.isfile(path):
            sizes[os.path.getsize(path)].append(path)
    variants = {_variant(path) for paths in sizes.values() for path in paths} - {None}
    shared = []
    for path in second:
        if not os.path.isfile(path):  # named by the checks of the set
            continue
        others = sizes.get(os.path.getsize(path), ())
        if (
            _variant(path) in variants
            or os.path.realpath(path) in others
            or any(filecmp.cmp(path, other, shallow=False) for other in others)
        ):
            shared.append(path)
    return shared


def _variant(path: str) -> str | None:
    stem = original_stem(path)
    return stem if stem != os.path.splitext(os.path.basename(path))[0] else None


def _sequence(path: str) -> str:
    return re.sub(r"\d+$", "", _bare_stem(path))


def _run(path: str) -> str:
    stem = _bare_stem(path)
    number = re.search(r"\d+$", stem)
    if number is None:
        return stem
    return f"{stem[: number.start()]}{int(number.group()) // RUN}"


def _bare_stem(path: str) -> str:
    """Roboflow also appends the suffix: a_01_jpg.rf.0a1b2c.jpg was a_01.jpg."""
    return re.sub(r"(_(jpe?g|png|bmp|tiff?|webp))+$", "", original_stem(path), flags=re.I)


def _merge(names: list[str], alike: list[int]) -> list[str]:
    """The group of each image, where images of one name, or alike, are in one group.

    Args:
        names: of each image, by its key.
        alike: of each image the index of the first one like it.
    """
    members: dict[str, set[int]] = defaultdict(set)
    for name, group in zip(names, alike, strict=True):
        members[name].add(group)
    first = {group: group for group in alike}

    def root(group: int) -> int:
        while first[group] != group:
            group = first[group]
        return group

    for groups in members.values():
        least, *others = sorted({root(group) for group in groups})
        first.update(dict.fromkeys(others, least))
    smallest: dict[int, str] = {}
    for name, group in zip(names, alike, strict=True):
        one = root(group)
        smallest[one] = min(name, smallest.get(one, name))
    return [smallest[root(group)] for group in alike]


def _choose_groups(images: list[str], names: list[str], target: int) -> list[str]:
    groups: dict[str, list[str]] = defaultdict(list)
    for image, name in zip(images, names, strict=True):
        groups[name].append(image)
    chosen: list[str] = []
    for name in sorted(groups, key=lambda name: hashlib.sha256(name.encode()).digest()):
        if len(chosen) + len(groups[name]) <= 1.3 * target:
            chosen += groups[name]
        if len(chosen) >= target:
            break
    return chosen
