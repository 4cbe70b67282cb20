"""COCO's json read defensively: what is wrong with a file is said by its name and the entry's.

pycocotools and detectron2 trust the file, and a damaged one comes out as ``KeyError: 'bbox'`` or,
with coordinates that are no numbers, as boxes that training leaves out without a word. Nothing here
needs detectron2.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterable
from pathlib import PurePath

from pycocotools.coco import COCO

__all__ = ["CheckedCOCO", "check_coco", "check_object", "check_segmentation", "first", "short"]

logger = logging.getLogger(__name__)

# More pixels than an image's side can have; a coordinate beyond is damage, not a box that sticks
# out. Drawing a polygon takes time and memory with its extent.
MOST_PIXELS = 10**6


class CheckedCOCO(COCO):
    """pycocotools' index of a file whose content has been checked before.

    ``evaluated`` and ``reads_images`` are those of `check_coco`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: naming the file and the first entry that is not what it has to be.
    """

    def __init__(
        self,
        annotation_file: str | None = None,
        *,
        evaluated: bool = False,
        reads_images: bool = True,
    ):
        self._source, self._options = annotation_file, (evaluated, reads_images)
        try:
            super().__init__(annotation_file)
        except (ValueError, AssertionError, RecursionError) as error:
            if str(error).startswith(str(annotation_file)):
                raise
            raise ValueError(f"{annotation_file}: expected COCO's json, but {error}") from error

    def createIndex(self) -> None:
        """Check what has been read, and index it."""
        # Without a file, it is the results of an evaluation that are indexed.
        if self._source is not None:
            evaluated, reads_images = self._options
            check_coco(
                self.dataset, str(self._source), evaluated=evaluated, reads_images=reads_images
            )
        super().createIndex()


def check_coco(
    content: dict, source: str, *, evaluated: bool = False, reads_images: bool = True
) -> None:
    """Check the content of a COCO json, before anything is made of it.

    Args:
        content: of the file.
        source: the file, for the messages.
        evaluated: whether ``iscrowd`` and ``area`` have to be there, and with keypoints
            ``num_keypoints``, which training does not need, and ids of objects must be numbers.
        reads_images: whether images are going to be read by their ``file_name``. An evaluator
            does not, and the files that detectron2 converts for it have absolute ones.

    Raises:
        ValueError: an entry is missing, of another type or not finite, an id is used twice, a
            ``file_name`` leads out of the folder of the images, or an object has a category that
            the file does not define. Objects of images that the file does not list are allowed,
            as in COCO's own minival; detectron2 counts and logs them.
    """
    images, categories, objects = (
        _entries(content, key, source) for key in ("images", "categories", "annotations")
    )
    if not images or not categories:
        missing = "images" if not images else "categories"
        raise ValueError(f"{source}: {missing!r} is empty or missing, expected at least one")
    ids = _ids(images, "images", source)
    category_ids = _ids(categories, "categories", source)
    # detectron2 allows it in the files that are known for it.
    object_ids = _ids(objects, "annotations", source, twice="minival" in source)
    if any(not isinstance(id, int) for id in category_ids):
        raise ValueError(f"{source}: an id of 'categories' is a text, expected whole numbers")
    for category in categories:
        if not isinstance(category.get("name"), str):
            raise ValueError(
                f"{_where(source, 'category', category)}: {_is(category, 'name')}a text"
            )
    if evaluated and 0 in object_ids:
        logger.warning(
            "%s: COCO's evaluation takes the id 0 for no object, and so counts the annotation with "
            "that id as never found; number them from 1",
            source,
        )
    for image in images:
        _check_image(image, source, reads_images)
    for one in objects:
        try:
            _check_annotation(one, ids, category_ids, evaluated)
        except ValueError as error:
            raise ValueError(f"{_where(source, 'annotation', one)}: {error}") from error


def check_object(annotation: dict, size: tuple[int, int] | None, numbers: int = 4) -> None:
    """Check the geometry of one object: ``bbox``, ``segmentation`` and ``keypoints``.

    Args:
        annotation: in COCO's format or detectron2's.
        size: (height, width) of its image in pixels; None where that is not known.
        numbers: how many a ``bbox`` has.

    Raises:
        ValueError: saying which is not what it has to be.
    """
    box = annotation.get("bbox")
    if not _are_numbers(box, numbers):
        raise ValueError(f"{_is(annotation, 'bbox')}{numbers} finite numbers of pixels")
    keypoints = annotation.get("keypoints")
    if keypoints is not None and (not _are_numbers(keypoints) or len(keypoints) % 3):
        raise ValueError(f"{_is(annotation, 'keypoints')}x, y and visibility, x, y and ...")
    if annotation.get("segmentation") is not None:
        check_segmentation(annotation["segmentation"], size)


def check_segmentation(segmentation: list | dict, size: tuple[int, int] | None) -> None:
    """Check polygons or a run-length code; see `check_object`."""
    if isinstance(segmentation, dict):
        _check_rle(segmentation, size)
    elif not isinstance(segmentation, list) or not all(map(_are_numbers, segmentation)):
        raise ValueError(
            f"segmentation is {short(segmentation)}, expected polygons, lists of finite numbers "
            "of pixels, or a run-length code"
        )


def leads_out(file_name: str) -> bool:
    """Whether a path is absolute or has ``..`` in it, and so leaves the folder it belongs to."""
    path = PurePath(file_name)
    return path.is_absolute() or os.pardir in path.parts or "\0" in file_name


def _entries(content: dict, key: str, source: str) -> list[dict]:
    entries = content.get(key, [])
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ValueError(f"{source}: {_is(content, key)}a list of objects {{...}}")
    return entries


def _ids(entries: list[dict], key: str, source: str, twice: bool = False) -> set:
    """The ids of the entries, which are of one type, so that they can be sorted."""
    ids = set()
    for number, entry in enumerate(entries):
        id = entry.get("id")
        if type(id) not in (int, str):
            raise ValueError(
                f"{source}: {key}[{number}]: {_is(entry, 'id')}a whole number or a text"
            )
        if id in ids and not twice:
            raise ValueError(f"{source}: {key}[{number}] has the id {id!r} of an entry before it")
        ids.add(id)
    if len(set(map(type, ids))) > 1:
        raise ValueError(f"{source}: the ids of {key!r} are numbers and texts, expected one kind")
    return ids


def _check_image(image: dict, source: str, reads_images: bool) -> None:
    where = _where(source, "image", image)
    name = image.get("file_name")
    if not isinstance(name, str) or not name:
        raise ValueError(f"{where}: {_is(image, 'file_name')}the name of a file")
    if reads_images and leads_out(name):
        raise ValueError(f"{where}: file_name {name!r} leads out of the folder of the images")
    for side in ("height", "width"):
        if type(image.get(side)) is not int or not 0 < image[side] <= MOST_PIXELS:
            raise ValueError(f"{where} ({name}): {_is(image, side)}a number of pixels")


def _check_annotation(one: dict, image_ids: set, category_ids: set, evaluated: bool) -> None:
    image_id, category_id = one.get("image_id"), one.get("category_id")
    if type(image_id) not in (int, str):
        raise ValueError(f"{_is(one, 'image_id')}the id of an image")
    if type(category_id) is not int or category_id not in category_ids:
        raise ValueError(f"{_is(one, 'category_id')}one of {short(sorted(category_ids))}")
    if one.get("iscrowd", 0) not in (0, 1) or one.get("ignore", 0) != 0:
        key = "ignore" if one.get("ignore", 0) != 0 else "iscrowd"
        raise ValueError(f"{_is(one, key)}0{' or 1' if key == 'iscrowd' else ''}")
    # The size is compared with the image's when the image is known, in `check_object`.
    check_object(one, None)
    if not evaluated:
        return
    if type(one["id"]) is not int or not 0 <= one["id"] < 2**63:
        raise ValueError(f"{_is(one, 'id')}a whole number, which COCO's evaluation needs")
    needed = ["iscrowd", "area", *(["num_keypoints"] if one.get("keypoints") else [])]
    for key in needed:
        if not _are_numbers([one.get(key)]):
            raise ValueError(f"{_is(one, key)}a number, which COCO's evaluation needs")


def _check_rle(rle: dict, size: tuple[int, int] | None) -> None:
    """A run-length code whose runs do not make up its size would be read beyond its end."""
    stated, counts = rle.get("size"), rle.get("counts")
    if not _are_numbers(stated, 2) or any(type(side) is not int or side < 0 for side in stated):
        raise ValueError(f"segmentation: {_is(rle, 'size')}[height, width] in pixels")
    if size is not None and tuple(stated) != size:
        raise ValueError(
            f"segmentation: size is {short(stated)}, but the image's is {list(size)} "
            "(height, width)"
        )
    if isinstance(counts, list):
        right = all(type(run) is int and run >= 0 for run in counts)
        runs = counts if right else None
    else:
        runs = _decode_runs(counts) if isinstance(counts, (str, bytes)) else None
    if runs is None or sum(runs) != stated[0] * stated[1]:
        raise ValueError(
            f"segmentation: counts {short(counts)} are no runs over {stated[0]} x {stated[1]} "
            "pixels"
        )


def _decode_runs(counts: str | bytes) -> list[int] | None:
    """The runs of a compressed code, as pycocotools packs them; None where it is damaged.

    A number is written in digits of 5 bits, the lowest first, each as the character 48 + digit,
    with 32 more where another follows; from the third on it is the difference to the last but one.
    """
    codes = counts.encode("latin1", "replace") if isinstance(counts, str) else counts
    runs: list[int] = []
    value, shift = 0, 0
    for code in codes:
        digit = code - 48
        if not 0 <= digit < 64 or shift > 30:
            return None
        value |= (digit & 31) << shift
        shift += 5
        if digit & 32:
            continue
        if digit & 16:
            value -= 1 << shift
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
        if runs[-1] < 0:
            return None
        value, shift = 0, 0
    return None if shift else runs


def _are_numbers(values: object, count: int | None = None) -> bool:
    """Whether it is a list of ``count`` finite numbers, none of them beyond `MOST_PIXELS`."""
    try:
        if len(values) != count and count is not None:
            return False
        if isinstance(values, (str, bytes, dict)) or not len(values):
            return not isinstance(values, (str, bytes, dict))
        # As fast as it can be: COCO has 40 million of them. NaN comes out of the sum alone.
        return (
            math.isfinite(sum(values))
            and max(values) <= MOST_PIXELS
            and min(values) >= -MOST_PIXELS
        )
    except (TypeError, ValueError, OverflowError):
        return False


def _where(source: str, kind: str, entry: dict) -> str:
    image = f" of image {short(entry['image_id'])}" if "image_id" in entry else ""
    return f"{source}: {kind} {short(entry['id'])}{image}"


def _is(entry: dict, key: str) -> str:
    """The beginning of a message about an entry's value."""
    if key not in entry:
        return f"no {key!r}, expected "
    return f"{key!r} is {short(entry[key])}, expected "


def short(value: object) -> str:
    """The value as Python writes it, or the beginning of that."""
    try:
        text = repr(value)
    except ValueError:  # numbers of more digits than Python writes
        return "a huge number"
    return text if len(text) <= 80 else f"{text[:77]}..."


def first(entries: Iterable[str], count: int = 10) -> str:
    """The first names, and how many there are more."""
    names = list(dict.fromkeys(entries))
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return ", ".join(names[:count]) + more
