"""The files of a validation split that was made: ``train.txt`` and ``val.txt`` in one folder."""

from __future__ import annotations

import os

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils import comm

from hypernet_d2.checkpoint import OUTPUT_FILES

__all__ = ["find_split", "write_split"]

FOLDER = "split"
FILES = {"train": "train.txt", "val": "val.txt"}


def find_split(cfg: CfgNode, config_file: str = "") -> dict[str, list[str]] | None:
    """The split in ``MODEL.HYPERNET.DATA.SPLIT``, or else in ``OUTPUT_DIR/split``.

    Where the output folder of a training was moved, the split is beside its ``config.yaml``.

    Args:
        cfg: of the model.
        config_file: that it was read from.

    Returns:
        {"train", "val": paths of images relative to the data's folder}; None if there is no split.

    Raises:
        FileNotFoundError: ``MODEL.HYPERNET.DATA.SPLIT`` or one of its files does not exist.
    """
    given = cfg.MODEL.HYPERNET.DATA.SPLIT
    beside = os.path.join(os.path.dirname(config_file), FOLDER)
    places = [given, beside] if given else [os.path.join(cfg.OUTPUT_DIR, FOLDER)]
    for place in places:
        if any(OUTPUT_FILES.isfile(os.path.join(place, name)) for name in FILES.values()):
            return {role: _read_lines(os.path.join(place, name)) for role, name in FILES.items()}
    if given and not OUTPUT_FILES.isdir(given):
        raise FileNotFoundError(
            f"MODEL.HYPERNET.DATA.SPLIT {given!r}: no such folder with train.txt and val.txt; "
            'expected the folder of a split, or "" to make a new one'
        )
    return None


def _read_lines(path: str) -> list[str]:
    if not OUTPUT_FILES.isfile(path):
        raise FileNotFoundError(f"{path}: no such file, expected the path of an image a line")
    with OUTPUT_FILES.open(path, "rb") as file:
        text = os.fsdecode(file.read().removeprefix(b"\xef\xbb\xbf"))
    return [line.strip() for line in text.splitlines() if line.strip()]


def write_split(cfg: CfgNode) -> None:
    """Write the split of ``DATASETS.TRAIN``, if it was made, to ``OUTPUT_DIR/split``.

    ``MODEL.HYPERNET.DATA.SPLIT`` is set to that folder. Each process has to call this.
    """
    name = next(iter(cfg.DATASETS.TRAIN), "")
    split = MetadataCatalog.get(name).get("made_split") if name in DatasetCatalog else None
    if not split:
        return
    folder = os.path.join(cfg.OUTPUT_DIR, FOLDER)
    if "://" not in folder:
        folder = os.path.abspath(folder)
    cfg.MODEL.HYPERNET.DATA.SPLIT = folder
    if not comm.is_main_process():
        return
    OUTPUT_FILES.mkdirs(folder)
    for role, file_name in FILES.items():
        with OUTPUT_FILES.open(os.path.join(folder, file_name), "wb") as file:
            file.write(os.fsencode("".join(f"{image}\n" for image in split[role])))
