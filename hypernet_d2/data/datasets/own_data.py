"""Data of one's own, in the layouts that people have: YOLO, COCO or VOC."""

from __future__ import annotations

import functools
import os
import re
import runpy
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from detectron2.data import DatasetCatalog, MetadataCatalog

from hypernet_d2.data.load import load_dataset
from hypernet_d2.utils.coco_json import join_first
from hypernet_d2.utils.files import check_exists

from .coco_layout import is_coco, read_coco, read_coco_files
from .common import read_text, warn_once
from .data_source import ROLES, DataSource, role_folders
from .made_split import assign_split, choose_validation, find_shared_images
from .voc_layout import find_xml_folder, read_voc
from .yolo_layout import is_yolo_folder, read_yolo_folder, read_yolo_yaml

__all__ = ["OwnData", "register_own_data"]

ROBOFLOW_JSON = "_annotations.coco.json"


class OwnData(NamedTuple):
    """
    Attributes:
        train, test: names of registered sets, for ``DATASETS.TRAIN`` and ``DATASETS.TEST``.
        classes: names. All three are empty for a Python file.
        summary: one line on what was found.
        path: absolute, of the data.
    """

    train: tuple[str, ...] = ()
    test: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    summary: str = ""
    path: str = ""


def register_own_data(
    path: str | Path, prefix: str = "my", split: Mapping[str, Sequence[str]] | None = None
) -> OwnData:
    """Register data of one's own as ``<prefix>_train``, ``<prefix>_val`` and ``<prefix>_test``.

    - A Python file is run; it registers its sets itself.
    - YOLO: a ``data.yaml``, or a folder with one; or folders ``images`` and ``labels``, of the
      whole set or in ``train`` and ``val``, with ``classes.txt``.
    - COCO: a json with its images beside it or in ``images``; a folder with such a json, with one
      for each split in ``annotations``, or with Roboflow's ``_annotations.coco.json`` in
      ``train``, ``valid`` and ``test``.
    - VOC: a folder with ``Annotations`` (or ``annotations``, or xml beside the images) and images
      in ``JPEGImages``, in ``images`` or beside, with the splits of ``ImageSets/Main`` if it is
      there; or such folders ``train``, ``valid`` and ``test``.

    Without a validation split, one image in five of the training split is taken for it, see
    `choose_validation`. The metadata then has ``made_split``: {"train", "val": paths of the images
    relative to the data's folder}. A test split is registered, too, but is not in ``test``.
    Images that two splits share are named in a warning.

    Args:
        path: file or folder.
        prefix: of the names of the sets. Registering the same path again reads it again.
        split: the ``made_split`` of an earlier call, to be used again.

    Raises:
        FileNotFoundError: the path, or a file that it names, does not exist.
        ValueError: the layout is none of these, or several; naming the file, anything in it that is
            not as expected; other data has the names; ``split`` names other images.
    """
    path = Path(path).expanduser()
    check_exists(path)
    if path.suffix == ".py":
        runpy.run_path(str(path))
        return OwnData()
    source = _read(path)
    splits = source.splits
    full = splits.get("train") or splits["all"]
    identity = str(path.resolve())
    _remove_earlier(prefix, identity)
    names = {role: f"{prefix}_{role}" for role in ("train", "val", "test")}
    made = "val" not in splits
    if made:
        folder = path if path.is_dir() else path.parent
        relative = {image: Path(os.path.relpath(image, folder)).as_posix() for image in full.images}
        if split is None:
            validation = choose_validation(full.images)
        else:
            validation = assign_split(relative, split, str(path))
        parts = {
            "train": [name for image, name in relative.items() if image not in validation],
            "val": [name for image, name in relative.items() if image in validation],
        }
        whole = f"{prefix}_all"
        full.register(whole)
        for role, is_validation in (("train", False), ("val", True)):
            _register_part(names[role], whole, validation, is_validation, source.classes)
            MetadataCatalog.get(names[role]).set(made_split=parts)
        counts = {"train": len(full.images) - len(validation), "val": len(validation)}
    else:
        for role in ("train", "val"):
            splits[role].register(names[role])
        counts = {role: len(splits[role].images) for role in ("train", "val")}
    if "test" in splits:
        splits["test"].register(names["test"])
        counts["test"] = len(splits["test"].images)
    for name in (*names.values(), f"{prefix}_all"):
        if name in DatasetCatalog:
            MetadataCatalog.get(name).set(own_data=identity)
    _warn_of_shared_images(path, source)
    parts = [f"{names[role]} with {count} image(s)" for role, count in counts.items()]
    if made:
        parts[1] += " (taken from the training images, as there is no validation split)"
    summary = f"{path}: {source.kind}, {len(source.classes)} classes: {', '.join(parts)}"
    return OwnData((names["train"],), (names["val"],), source.classes, summary, identity)


def _read(path: Path) -> DataSource:
    if path.suffix.lower() == ".json":
        return read_coco({"all": path})
    if path.suffix.lower() in (".yaml", ".yml"):
        return read_yolo_yaml(path)
    if not path.is_dir():
        raise ValueError(
            f"{path}: expected a Python file, YOLO's data.yaml, COCO's json, or a folder"
        )
    layouts = find_layouts(path)
    if len(layouts) == 1:
        return next(iter(layouts.values()))()
    if layouts:
        raise ValueError(
            f"{path}: the folder may be each of {'; '.join(layouts)}; name the yaml or json file, "
            "or move the others away"
        )
    counts = Counter(
        f"folder {one.name}" if one.is_dir() else one.suffix or "files without suffix"
        for one in sorted(path.iterdir())
    )
    found = join_first(f"{what} ({n})" if n > 1 else what for what, n in counts.items())
    raise ValueError(
        f"{path}: neither YOLO (data.yaml), COCO (a json, in the folder or in annotations) nor VOC "
        f"(xml in Annotations); found {found or 'nothing'}"
    )


def find_layouts(folder: Path) -> dict[str, Callable[[], DataSource]]:
    """{what was found: a function that reads it}, for each layout that a folder may have."""
    found: dict[str, Callable[[], DataSource]] = {}
    for file in sorted([*folder.glob("*.yaml"), *folder.glob("*.yml")]):
        if file.stem == "data" or re.search(r"^names\s*:", read_text(file), flags=re.M):
            found[f"YOLO ({file.name})"] = functools.partial(read_yolo_yaml, file)
    if not found and role_folders(folder, is_yolo_folder):
        found["YOLO (folders of images with text files)"] = functools.partial(
            read_yolo_folder, folder
        )
    places = [
        ([folder / name / ROBOFLOW_JSON for name in ROLES], lambda path: path.parent.name),
        (sorted((folder / "annotations").glob("*.json")), lambda path: path.stem),
        (filter(is_coco, sorted(folder.glob("*.json"))), lambda path: path.stem),
    ]
    for files, naming in places:
        if files := [file for file in files if file.is_file()]:
            names = join_first((str(file.relative_to(folder)) for file in files), 4)
            found[f"COCO ({names})"] = functools.partial(read_coco_files, folder, files, naming)
    if folders := role_folders(folder, find_xml_folder):
        names = join_first(str(find_xml_folder(one).relative_to(folder)) for one in folders)
        found[f"VOC (xml in {names})"] = functools.partial(read_voc, folder, folders)
    return found


def _remove_earlier(prefix: str, identity: str) -> None:
    """Remove the sets of an earlier call from the catalogs.

    Raises:
        ValueError: they are of other data.
    """
    for role in ("all", "train", "val", "test"):
        name = f"{prefix}_{role}"
        if name not in DatasetCatalog:
            continue
        known = MetadataCatalog.get(name).get("own_data")
        if known != identity:
            raise ValueError(
                f"data set {name!r} is registered already, from {known or 'elsewhere'}; expected "
                f"another prefix, or the same data ({identity})"
            )
        DatasetCatalog.pop(name)
        MetadataCatalog.pop(name)


def _register_part(
    name: str,
    whole: str,
    validation: frozenset[str],
    is_validation: bool,
    classes: tuple[str, ...],
) -> None:
    def load(keep_odd_boxes: bool = False) -> list[dict]:
        # The whole set is checked, so that a json's broken polygons are reported.
        records = load_dataset(whole, keep_odd_boxes=keep_odd_boxes)
        return [one for one in records if (one["file_name"] in validation) == is_validation]

    DatasetCatalog.register(name, load)
    known = MetadataCatalog.get(whole).as_dict()
    keypoints = {key: value for key, value in known.items() if key.startswith("keypoint_")}
    MetadataCatalog.get(name).set(thing_classes=list(classes), evaluator_type="coco", **keypoints)


def _warn_of_shared_images(path: Path, source: DataSource) -> None:
    roles = list(source.splits)
    for number, first in enumerate(roles):
        for second in roles[number + 1 :]:
            shared = find_shared_images(source.splits[first].images, source.splits[second].images)
            if shared:
                warn_once(
                    f"{path}: {len(shared)} image(s) of {second} are also in {first}: "
                    f"{join_first(map(os.path.basename, shared))}"
                )
