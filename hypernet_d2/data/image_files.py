"""The image files of a data set, looked at without decoding them."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

from hypernet_d2.utils.coco_json import join_first
from hypernet_d2.utils.images import image_size

__all__ = ["check_image_sizes", "check_images_exist"]

_THREADS = 16  # opening files on a network's disk is waiting


def check_image_sizes(records: list[dict], name: str) -> None:
    """Compare the ``height`` and ``width`` of records with the headers of their images.

    Args:
        records: detectron2's dataset dicts.
        name: of the data set.

    Raises:
        ValueError: naming images of another size than their record says, or the first one whose
            header cannot be read.
    """

    def compare(record: dict) -> str | None:
        if "://" in str(record["file_name"]):  # detectron2 fetches it when it is read
            return None
        width, height = image_size(record["file_name"])
        if (record.get("width", width), record.get("height", height)) == (width, height):
            return None
        return (
            f"{record['file_name']} is {width} x {height} (width x height), but its entry says "
            f"{record['width']} x {record['height']}"
        )

    with ThreadPoolExecutor(_THREADS) as pool:
        wrong = [message for message in pool.map(compare, records) if message]
    if wrong:
        raise ValueError(
            f"data set {name!r}: {len(wrong)} image(s) of another size than stated, so that the "
            f"boxes do not fit: {join_first(wrong, 3)}"
        )


def check_images_exist(file_names: list[str], name: str) -> None:
    """Look for images by listing their folders, since asking for each file is slow on a network.

    Raises:
        FileNotFoundError: naming images of the data set ``name`` that are missing.
    """
    folders: dict[str, set[str]] = {}
    missing = []
    for path in file_names:
        folder, base = os.path.split(path)
        if "://" in path:  # detectron2 fetches it when it is read
            continue
        if folder not in folders:
            try:
                folders[folder] = set(os.listdir(folder or os.curdir))
            except OSError:
                folders[folder] = set()
        if base not in folders[folder] and not os.path.isfile(path):
            missing.append(path)
    if missing:
        raise FileNotFoundError(
            f"data set {name!r}: {len(missing)} of {len(file_names)} images are missing: "
            f"{join_first(missing, 3)}"
        )
