"""Data sets with YOLO's text files, with any list of classes, read defensively.

Each image has a text file of its name, with one object a line: ``class cx cy w h``, or ``class x y
x y x y ...`` for a polygon. Coordinates are fractions of the image's width and height. The text
files lie in a folder ``labels`` instead of ``images``, in a folder ``labels`` beside the images, or
with the images:

    root/images/train/a.jpg    root/train/images/a.jpg    root/train/a.jpg
    root/labels/train/a.txt    root/train/labels/a.txt    root/train/a.txt
"""

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

from detectron2.structures import BoxMode

from hypernet_d2.data.checks import log_odd_boxes
from hypernet_d2.utils.coco_json import join_first, shorten
from hypernet_d2.utils.images import IMAGE_SUFFIXES, image_size

from .common import check_classes, clip_box, read_text, register_set, warn_once

TOLERANCE = 1e-3  # of a coordinate beyond 0 or 1, from rounding
# Text files among the labels that are none, by the first word of their names.
OTHER_TEXTS = ("classes", "labels", "license", "notes", "predefined_classes", "readme")


def register_yolo_style(
    name: str, root: str | Path, split: str | Path | Sequence[str | Path], classes: Sequence[str]
) -> None:
    """Register a YOLO-style set in detectron2's catalogs; nothing is read before it is used.

    The set is evaluated with COCO's AP (``evaluator_type`` is "coco"), or with VOC's under
    ``MODEL.HYPERNET.EVALUATOR`` "pascal_voc".

    Args:
        name: name in ``DATASETS.TRAIN`` and ``DATASETS.TEST``. Registering the same set under the
            same name again does nothing.
        root: folder of the data set.
        split: folder of images, or text file with the path of an image a line, relative to
            ``root``, as in a ``data.yaml``; or several of them. If there is no ``train``, "train"
            is ``images/train`` or ``train.txt``. Of a folder with ``images`` in it, that folder is
            taken. Folders in it are searched, too. "." is ``root`` itself.
        classes: class names; their order gives the numbers in the text files.

    Raises:
        ValueError: the classes are not distinct names, or another set has the name.
    """
    classes = check_classes(classes)
    split = str(split) if isinstance(split, (str, Path)) else [str(entry) for entry in split]

    def load(keep_odd_boxes: bool = False) -> list[dict]:
        return load_yolo_style(root, split, classes, keep_odd_boxes=keep_odd_boxes)

    metadata = {
        "thing_classes": list(classes),
        "dirname": str(Path(root).expanduser()),
        "split": split,
        "evaluator_type": "coco",
    }
    register_set(name, load, metadata)


def load_yolo_style(
    root: str | Path,
    split: str | Path | Sequence[str | Path],
    classes: Sequence[str],
    *,
    keep_odd_boxes: bool = False,
) -> list[dict]:
    """Read a YOLO-style split into detectron2's standard dataset dicts.

    An image without a text file, or with an empty one, is an image without objects; missing text
    files are counted and logged once, and text files without an image are named in one warning.
    Lines that repeat a line of their file are counted, logged once and left out. Boxes are removed
    and clipped as in `load_voc_style`.

    Args:
        root, split, classes: as in `register_yolo_style`.
        keep_odd_boxes: whether repeated lines, boxes without area and boxes outside of the image
            stay, and boxes partly outside are not clipped, to be looked at.

    Returns:
        One dict an image, sorted by path, or in the order of a text file, with ``file_name``,
        ``image_id`` (str; the name without suffix, or the path where names are repeated),
        ``height``, ``width`` (pixels, as the image is shown, that is after Exif rotation) and
        ``annotations``, each with ``bbox`` (x1, y1, x2, y2 in pixels), ``bbox_mode``,
        ``category_id``, ``iscrowd`` (0), and for a polygon ``segmentation``.

    Raises:
        FileNotFoundError: the split or an image that it names is missing, or no image has a text
            file.
        ValueError: the split has no image or names one twice; two images have the same text file;
            an image cannot be read; or, naming file and line, the class is not in ``classes``, or
            a coordinate is no number or lies outside of 0 to 1 by more than 0.001.
    """
    classes = check_classes(classes)
    images = list_yolo_images(root, split)
    label_files = _find_label_files(images)
    names = Counter(image.stem for image in images)
    odd_boxes: dict[str, list[str]] = defaultdict(list)
    dicts = []
    for image in images:
        width, height = image_size(image)
        annotations = []
        if (file := label_files.get(image)) is not None:
            annotations = _read_label_file(
                file, classes, (width, height), odd_boxes, keep_odd_boxes
            )
        repeated = names[image.stem] > 1
        dicts.append(
            {
                "file_name": str(image),
                "image_id": image.with_suffix("").as_posix() if repeated else image.stem,
                "height": height,
                "width": width,
                "annotations": annotations,
            }
        )
    missing = [image.name for image in images if image not in label_files]
    if missing and not keep_odd_boxes:
        warn_once(
            f"{_name_split(root, split)}: {len(missing)} of {len(images)} image(s) have no text "
            f"file, and so no objects: {join_first(missing)}"
        )
    if not keep_odd_boxes:
        log_odd_boxes(odd_boxes, _name_split(root, split))
    return dicts


def list_yolo_images(root: str | Path, split: str | Path | Sequence[str | Path]) -> list[Path]:
    """The images of a split.

    Raises:
        FileNotFoundError, ValueError: see `load_yolo_style`.
    """
    root = Path(root).expanduser()
    entries = [split] if isinstance(split, (str, Path)) else list(split)
    images: list[Path] = []
    for entry in entries:
        place = _find_split(root, entry)
        if place.is_file():
            images += _read_list(place, root)
        else:
            files = (path for path in place.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
            images += sorted(path for path in files if path.is_file())
    if not images:
        raise ValueError(f"{_name_split(root, split)}: no image ({', '.join(IMAGE_SUFFIXES)})")
    for image, count in Counter(images).items():
        if count > 1:
            raise ValueError(
                f"{_name_split(root, split)}: names {image} twice, expected distinct images"
            )
    return images


def _name_split(root: str | Path, split: str | Path | Sequence[str | Path]) -> str:
    entries = [split] if isinstance(split, (str, Path)) else split
    return ", ".join(str(Path(root).expanduser() / entry) for entry in entries)


def _find_split(root: Path, entry: str | Path) -> Path:
    """The folder of images, or the text file, that an entry names."""
    others = [root / "images" / entry, root / f"{entry}.txt"]
    places = [root / entry] if (root / entry).exists() else others
    found = [place for place in places if place.exists()]
    if not found:
        raise FileNotFoundError(
            f"{root / entry}: no such folder of images or text file with paths of images; also "
            f"looked for {' and '.join(map(str, others))}"
        )
    if len(found) > 1:
        raise ValueError(
            f"{root}: {' and '.join(map(str, found))} are there for {str(entry)!r}; expected one, "
            "or its path as split"
        )
    inner = found[0] / "images"
    return inner if inner.is_dir() else found[0]


def _read_list(file: Path, root: Path) -> list[Path]:
    """The images that a text file names, relative to its own folder, to the root, or absolute."""
    images = []
    for number, line in enumerate(read_text(file).splitlines(), start=1):
        if not (name := line.strip()):
            continue
        places = [file.parent / name, root / name]
        image = next((place for place in places if place.is_file()), None)
        if image is None:
            raise FileNotFoundError(f"{file}: line {number}: no such image: {name}")
        images.append(image)
    return images


def _find_label_files(images: list[Path]) -> dict[Path, Path]:
    """{image: its text file}, and a warning that names text files without an image."""
    folders: dict[Path, dict[str, Path]] = defaultdict(dict)
    for image in images:
        other = folders[image.parent].setdefault(image.stem, image)
        if other != image:
            raise ValueError(
                f"{other} and {image} have the same text file {image.stem}.txt; expected one image"
            )
    found: dict[Path, Path] = {}
    without_image: list[str] = []
    for folder, stems in folders.items():
        texts = _find_label_folder(folder, set(stems))
        found.update({stems[stem]: path for stem, path in texts.items() if stem in stems})
        # The images that a text file lists may be a part of their folder.
        known = {path.stem for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES}
        without_image += [
            str(path)
            for stem, path in sorted(texts.items())
            if stem not in known and stem.lower().partition(".")[0] not in OTHER_TEXTS
        ]
    if not found:
        raise FileNotFoundError(
            f"{images[0]}: no text file with its objects, nor for another of the {len(images)} "
            f"images; looked in {', '.join(map(str, _label_folders(images[0].parent)))}"
        )
    if without_image:
        warn_once(
            f"{len(without_image)} text file(s) without an image: {join_first(without_image)}"
        )
    return found


def _label_folders(folder: Path) -> list[Path]:
    """Where the text files of a folder of images may lie."""
    places = [folder / "labels", folder]
    for number in reversed(range(len(folder.parts))):
        if folder.parts[number].lower() == "images":
            parts = folder.parts[:number], folder.parts[number + 1 :]
            places[:0] = [Path(*parts[0], name, *parts[1]) for name in ("labels", "Labels")]
            break
    return places


def _find_label_folder(folder: Path, stems: set[str]) -> dict[str, Path]:
    """{stem: text file} of the folder with the text files of images; {} if there is none."""
    found: list[tuple[Path, dict[str, Path]]] = []
    for place in _label_folders(folder):
        if not place.is_dir() or any(place.samefile(other) for other, _ in found):
            continue
        texts = {path.stem: path for path in place.iterdir() if path.suffix.lower() == ".txt"}
        if stems & texts.keys():
            found.append((place, texts))
    if len(found) > 1:
        raise ValueError(
            f"{folder}: {' and '.join(str(place) for place, _ in found)} have text files of its "
            "images; expected one folder"
        )
    return found[0][1] if found else {}


def _read_label_file(
    file: Path,
    classes: tuple[str, ...],
    size: tuple[int, int],
    odd_boxes: dict[str, list[str]],
    keep_odd_boxes: bool,
) -> list[dict]:
    annotations = []
    seen: set[tuple[str, ...]] = set()
    for number, line in enumerate(read_text(file).splitlines(), start=1):
        words = tuple(line.split())
        if not words:
            continue
        label, coordinates = _parse_line(words, classes, f"{file}: line {number}")
        if words in seen:
            odd_boxes["in a line that repeats another left out"].append(file.name)
            if not keep_odd_boxes:
                continue
        seen.add(words)
        raw, polygon = _to_pixels(coordinates, size)
        box, problem = clip_box(raw, *size)
        if problem is not None:
            odd_boxes[problem].append(file.name)
        if keep_odd_boxes:
            box = raw
        if box is None:
            continue
        annotation = {
            "bbox": [float(value) for value in box],
            "bbox_mode": BoxMode.XYXY_ABS,
            "category_id": label,
            "iscrowd": 0,
        }
        if polygon is not None:
            annotation["segmentation"] = [polygon]
        annotations.append(annotation)
    return annotations


def _parse_line(
    words: tuple[str, ...], classes: tuple[str, ...], where: str
) -> tuple[int, list[float]]:
    """The class, and the center and size of a box or the corners of a polygon, as fractions."""
    if len(words) != 5 and (len(words) < 7 or len(words) % 2 == 0):
        raise ValueError(
            f"{where}: {len(words)} value(s), expected 5 (class, center x, center y, width, "
            "height), or a class and x, y of 3 or more points"
        )
    values = []
    for word in words:
        try:
            values.append(float(word))
        except ValueError:
            values.append(math.nan)
        if not math.isfinite(values[-1]):
            raise ValueError(f"{where}: {shorten(word)} is no number")
    label, *coordinates = values
    if label not in range(len(classes)):
        raise ValueError(
            f"{where}: class {shorten(words[0])}, expected a number from 0 to {len(classes) - 1} "
            f"for {list(classes)}"
        )
    for word, value in zip(words[1:], coordinates, strict=True):
        if not -TOLERANCE <= value <= 1 + TOLERANCE:
            raise ValueError(
                f"{where}: coordinate {shorten(word)}, expected a number from 0 to 1: pixels "
                "divided by the image's width or height"
            )
    return int(label), coordinates


def _to_pixels(
    coordinates: list[float], size: tuple[int, int]
) -> tuple[list[float], list[float] | None]:
    """Box (x1, y1, x2, y2), and polygon clipped to the image or None, in pixels."""
    width, height = size
    if len(coordinates) == 4:
        cx, cy, w, h = coordinates
        box = [(cx - w / 2) * width, (cy - h / 2) * height]
        return [*box, (cx + w / 2) * width, (cy + h / 2) * height], None
    clipped = [min(max(value, 0.0), 1.0) for value in coordinates]
    xs = [value * width for value in clipped[::2]]
    ys = [value * height for value in clipped[1::2]]
    polygon = [value for point in zip(xs, ys, strict=True) for value in point]
    return [min(xs), min(ys), max(xs), max(ys)], polygon
