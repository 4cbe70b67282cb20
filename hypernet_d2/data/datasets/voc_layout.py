"""Finds VOC's xml and images in the folders that people have."""

from __future__ import annotations

import functools
from collections import defaultdict
from pathlib import Path

from detectron2.data import DatasetCatalog, MetadataCatalog

from hypernet_d2.utils.coco_json import join_first
from hypernet_d2.utils.images import list_images

from .common import warn_once
from .data_source import DataSource, Split, assign_roles
from .voc_style import load_voc_entries, parse_xml, read_split

__all__ = ["find_xml_folder", "read_voc"]


def find_xml_folder(folder: Path) -> Path | None:
    for place in (folder / "Annotations", folder / "annotations", folder):
        if place.is_dir() and next(place.glob("*.xml"), None):
            return place
    return None


def read_voc(folder: Path, folders: dict[Path, str]) -> DataSource:
    roles = assign_roles(folders, folders.values(), folder)
    entries: dict[str, list] = {}
    for role, place in roles.items():
        splits = _voc_entries(place)
        if role != "all" and len(splits) == 1:
            splits = {role: next(iter(splits.values()))}
        entries.update(splits)
    names = set()
    for split in entries.values():
        for _, xml_file, _ in split:
            objects = parse_xml(xml_file).iterfind("object")
            names |= {(one.findtext("name") or "").strip() for one in objects}
    names.discard("")  # named when the set is loaded
    if not names:
        raise ValueError(f"{folder}: no xml has an object with a name")
    classes = tuple(sorted(names))
    splits = {}
    for role, split in entries.items():
        source = str(folder)
        register = functools.partial(_register_voc, split=split, source=source, classes=classes)
        splits[role] = Split([str(images[0]) for _, _, images in split], register)
    return DataSource("VOC", splits, classes)


Entry = tuple[str, Path, list[Path]]  # id, xml, images


def _register_voc(name: str, split: list[Entry], source: str, classes: tuple[str, ...]) -> None:
    def load(keep_odd_boxes: bool = False) -> list[dict]:
        return load_voc_entries(split, classes, source, keep_odd_boxes=keep_odd_boxes)

    MetadataCatalog.get(name).set(thing_classes=list(classes), evaluator_type="coco", year=2012)
    DatasetCatalog.register(name, load)


def _voc_entries(folder: Path) -> dict[str, list[Entry]]:
    """The entries of each split of ``ImageSets/Main``, or of all xml without it."""
    xml_folder = find_xml_folder(folder)
    xml_files = {path.stem: path for path in sorted(xml_folder.glob("*.xml"))}
    images = _find_images(folder, xml_folder, set(xml_files))
    found = {stem: _images_of(path, images) for stem, path in xml_files.items()}
    files = _find_split_files(folder / "ImageSets" / "Main")
    if files:
        return {
            role: [_get_entry(image_id, file, xml_files, found) for image_id in read_split(file)]
            for role, file in files.items()
        }
    without_image = [xml_files[stem].name for stem, paths in found.items() if not paths]
    if without_image:
        warn_once(
            f"{xml_folder}: {len(without_image)} xml file(s) without an image are left out: "
            f"{join_first(without_image)}"
        )
    used = {path for paths in found.values() for path in paths}
    without_xml = [path.name for paths in images.values() for path in paths if path not in used]
    if without_xml:
        warn_once(
            f"{folder}: {len(without_xml)} image(s) without xml are left out, since an image "
            f"without objects has an xml in VOC: {join_first(without_xml)}"
        )
    return {"all": [(stem, xml_files[stem], paths) for stem, paths in found.items() if paths]}


def _get_entry(
    image_id: str, file: Path, xml_files: dict[str, Path], found: dict[str, list[Path]]
) -> Entry:
    if image_id not in xml_files:
        raise FileNotFoundError(f"{file}: names {image_id!r}, but there is no xml of that name")
    if not found[image_id]:
        raise FileNotFoundError(f"{file}: names {image_id!r}, but there is no image of that name")
    return image_id, xml_files[image_id], found[image_id]


def _find_split_files(folder: Path) -> dict[str, Path]:
    """{role: text file}; {} without such a folder."""
    files = {path.stem: path for path in sorted(folder.glob("*.txt"))}
    chosen = {role: files[role] for role in ("train", "val", "test") if role in files}
    if "train" not in chosen and "trainval" in files:
        chosen = {"train": files["trainval"], **chosen}
        chosen.pop("val", None)  # a part of trainval
    if "train" not in chosen and len(files) == 1:
        return {"all": next(iter(files.values()))}
    if files and "train" not in chosen:
        raise ValueError(
            f"{folder}: expected train.txt, or a single file, but found "
            f"{', '.join(path.name for path in files.values())}"
        )
    return chosen


def _find_images(folder: Path, xml_folder: Path, stems: set[str]) -> dict[str, list[Path]]:
    """{stem: images} of the folder that has images named as the xml."""
    found: dict[Path, dict[str, list[Path]]] = {}
    for place in dict.fromkeys((folder / "JPEGImages", folder / "images", folder, xml_folder)):
        if place.is_dir():
            images = defaultdict(list)
            for path in list_images(place):
                images[path.stem].append(path)
            if images:
                found[place] = images
    if not found:
        raise FileNotFoundError(
            f"{xml_folder}: there is xml, but no image in JPEGImages, in images, or beside it"
        )
    matches = {place: len(stems & images.keys()) for place, images in found.items()}
    best = [place for place, count in matches.items() if count == max(matches.values())]
    if len(best) > 1:
        raise ValueError(
            f"{folder}: the images of its xml may be in {' and in '.join(map(str, best))}; "
            "expected one folder"
        )
    return found[best[0]]


def _images_of(xml_file: Path, images: dict[str, list[Path]]) -> list[Path]:
    """The images with the name of the xml, or else the one that its ``filename`` names."""
    if xml_file.stem in images:
        return images[xml_file.stem]
    name = (parse_xml(xml_file).findtext("filename") or "").replace("\\", "/").rpartition("/")[2]
    paths = images.get(Path(name.strip()).stem, [])
    return [path for path in paths if path.name == name.strip()]
