"""Data sets in the layout of PASCAL VOC, with any list of classes, read defensively.

    root/Annotations/<id>.xml
    root/ImageSets/Main/<split>.txt       one id a line
    root/JPEGImages/<id>.jpg              or .jpeg, .png, each also in capitals

detectron2's own loader of VOC data trusts its input. People's own xml has missing sizes, boxes
beyond the image and split files that name what is not there; here each is an error or a logged
count when the set is loaded, before any training.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from xml.etree import ElementTree

from detectron2.structures import BoxMode

from hypernet_d2.data.checks import log_odd_boxes
from hypernet_d2.utils.coco_json import is_outside_folder
from hypernet_d2.utils.images import image_size

from .common import check_classes, clip_box, register_set

SUFFIXES = (".jpg", ".jpeg", ".png", ".JPG", ".JPEG", ".PNG")
STARTS_AT_0 = "with a corner at 0, but VOC counts from 1 (one_based=False reads xml from 0)"


def register_voc_style(
    name: str,
    root: str | Path,
    split: str,
    classes: Sequence[str],
    year: int = 2012,
    *,
    one_based: bool = True,
) -> None:
    """Register a VOC-style set in detectron2's catalogs; nothing is read before it is used.

    The set is evaluated with COCO's AP (``evaluator_type`` is "coco"), or with VOC's under
    ``MODEL.HYPERNET.EVALUATOR`` "pascal_voc". The metadata also has what detectron2's own
    ``PascalVOCDetectionEvaluator`` reads.

    Args:
        name: name in ``DATASETS.TRAIN`` and ``DATASETS.TEST``. Registering the same set under the
            same name again does nothing.
        root: folder with ``Annotations``, ``ImageSets`` and ``JPEGImages``.
        split: name of a file in ``ImageSets/Main``, without ".txt".
        classes: class names; their order gives the category ids.
        year: 2007 for the 11-point AP of VOC's evaluation, 2012 for the area.
        one_based: whether the xml counts pixels from 1 and includes the last one, as VOC does. With
            False, corners are continuous coordinates from 0, as many labeling tools write them.

    Raises:
        ValueError: the classes are not distinct names, the year is neither 2007 nor 2012, or
            another set has the name.
    """
    classes = check_classes(classes)
    if year not in (2007, 2012):
        raise ValueError(f"year of data set {name!r} is {year!r}, expected 2007 or 2012")
    metadata = {
        "thing_classes": list(classes),
        "dirname": str(Path(root).expanduser()),
        "split": split,
        "year": year,
        "one_based": one_based,
        "evaluator_type": "coco",
    }

    def load(keep_odd_boxes: bool = False) -> list[dict]:
        return load_voc_style(
            root, split, classes, one_based=one_based, keep_odd_boxes=keep_odd_boxes
        )

    register_set(name, load, metadata)


def load_voc_style(
    root: str | Path,
    split: str,
    classes: Sequence[str],
    *,
    one_based: bool = True,
    keep_odd_boxes: bool = False,
) -> list[dict]:
    """Read a VOC-style split into detectron2's standard dataset dicts.

    VOC counts pixels from 1 and includes both ends, so ``xmin - 1`` and ``xmax`` are a box's
    sides in continuous coordinates, as in detectron2's own VOC loader. Objects marked difficult
    stay in, as they do there, and carry ``"difficult": True``. An image without objects is kept,
    with an empty list (detectron2 removes it from training under
    ``DATALOADER.FILTER_EMPTY_ANNOTATIONS``).

    Boxes with ``xmax <= xmin`` or ``ymax <= ymin`` have no area: no labeling tool writes a single
    pixel on purpose, though VOC's convention would allow it. They and boxes wholly outside the
    image are removed; boxes partly outside are clipped. Each kind is counted and logged once with
    the names of its files, except clipping by one pixel, which is rounding. Corners at 0, which
    VOC does not have, are logged as well: they show that the xml counts from 0.

    Where ``JPEGImages`` has several images of one id, as ``a.jpg`` and ``a.png``, the xml's
    ``filename`` chooses.

    Args:
        root, split, classes, one_based: as in `register_voc_style`.
        keep_odd_boxes: whether boxes without area or outside of the image stay, and boxes partly
            outside are not clipped, to be looked at. Images are not opened then, so that one that
            cannot be read does not hide the rest of the set.

    Returns:
        One dict an image, in the order of the split file, with ``file_name``, ``image_id`` (str),
        ``height``, ``width`` (pixels, as the image is shown, that is after Exif rotation) and
        ``annotations``, each with ``bbox`` (x1, y1, x2, y2 in pixels), ``bbox_mode``,
        ``category_id``, ``iscrowd`` (0) and ``difficult``.

    Raises:
        FileNotFoundError: the split file, or an image or xml that it names, is missing.
        ValueError: naming the file: the split is empty, or names an image twice or a file outside
            of ``root``; the image cannot be read, or an id has several; the xml does not parse or
            declares a document type, its size is missing or is not that of the image, a class is
            not in ``classes``, or a coordinate is missing or no number.
    """
    classes = check_classes(classes)
    root = Path(root).expanduser()
    split_file = root / "ImageSets" / "Main" / f"{split}.txt"
    entries = _find_files(root, read_split(split_file), split_file)
    return load_voc_entries(
        entries,
        classes,
        str(split_file),
        f" in {root / 'Annotations'}",
        one_based=one_based,
        keep_odd_boxes=keep_odd_boxes,
    )


def load_voc_entries(
    entries: Iterable[tuple[str, Path, list[Path]]],
    classes: tuple[str, ...],
    source: str,
    where: str = "",
    *,
    one_based: bool = True,
    keep_odd_boxes: bool = False,
) -> list[dict]:
    """`load_voc_style` for xml and images in any folders.

    Args:
        entries: (id, xml file, its images, of which the xml names one if there are several).
        classes, one_based, keep_odd_boxes: as in `load_voc_style`.
        source, where: start and end of the messages that are logged.
    """
    odd_boxes: dict[str, list[str]] = defaultdict(list)
    dicts = [
        _load_image(*entry, classes, odd_boxes, one_based, keep_odd_boxes) for entry in entries
    ]
    if not keep_odd_boxes:
        log_odd_boxes(odd_boxes, source, where)
    return dicts


def _find_files(
    root: Path, ids: list[str], split_file: Path
) -> Iterator[tuple[str, Path, list[Path]]]:
    for image_id in ids:
        images = _find_images(root / "JPEGImages", image_id, split_file)
        xml_file = root / "Annotations" / f"{image_id}.xml"
        if not xml_file.is_file():
            raise FileNotFoundError(f"{xml_file}: no such annotation, but {split_file} names it")
        yield image_id, xml_file, images


def read_split(split_file: Path) -> list[str]:
    if not split_file.is_file():
        others = sorted(p.stem for p in split_file.parent.glob("*.txt"))
        raise FileNotFoundError(
            f"{split_file}: no such split file; expected one image id a line"
            + (f" (splits that are there: {', '.join(others)})" if others else "")
        )
    try:
        lines = split_file.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{split_file}: expected text in UTF-8, but {error}") from error
    ids = [line.strip() for line in lines if line.strip()]
    if not ids:
        raise ValueError(f"{split_file}: names no image, expected one image id a line")
    seen: set[str] = set()
    for image_id in ids:
        if image_id in seen:
            raise ValueError(f"{split_file}: names {image_id!r} twice, expected distinct ids")
        if is_outside_folder(image_id):
            raise ValueError(
                f"{split_file}: names {image_id!r}, which lies outside of the data set; expected "
                "the name of a file in JPEGImages without its suffix"
            )
        seen.add(image_id)
    return ids


def _load_image(
    image_id: str,
    xml_file: Path,
    image_files: list[Path],
    classes: tuple[str, ...],
    odd_boxes: dict[str, list[str]],
    one_based: bool,
    keep_odd_boxes: bool,
) -> dict:
    annotation = parse_xml(xml_file)
    image_file = _choose_image(image_files, annotation, xml_file)
    width, height = _check_size(annotation, xml_file, image_file, trust_xml=keep_odd_boxes)
    annotations = []
    for number, element in enumerate(annotation.findall("object"), start=1):
        where = f"{xml_file}: object {number}"
        name = (element.findtext("name") or "").strip()
        if name not in classes:
            raise ValueError(f"{where} is of class {name!r}, expected one of {list(classes)}")
        xmin, ymin, xmax, ymax = _read_corners(element, where)
        if one_based:
            if 0 <= xmin < 1 or 0 <= ymin < 1:
                odd_boxes[STARTS_AT_0].append(xml_file.name)
            xmin, ymin = xmin - 1, ymin - 1
        box, problem = clip_box((xmin, ymin, xmax, ymax), width, height, one_based)
        if problem is not None:
            odd_boxes[problem].append(xml_file.name)
        if keep_odd_boxes:
            box = [xmin, ymin, xmax, ymax]
        if box is None:
            continue
        annotations.append(
            {
                "bbox": box,
                "bbox_mode": BoxMode.XYXY_ABS,
                "category_id": classes.index(name),
                "iscrowd": 0,
                "difficult": (element.findtext("difficult") or "").strip() == "1",
            }
        )
    return {
        "file_name": str(image_file),
        "image_id": image_id,
        "height": height,
        "width": width,
        "annotations": annotations,
    }


def _find_images(folder: Path, image_id: str, split_file: Path) -> list[Path]:
    """All images of one id."""
    found: list[Path] = []
    for suffix in SUFFIXES:
        path = folder / f"{image_id}{suffix}"
        # Where the file system ignores case, a.jpg and a.JPG are one file.
        if path.is_file() and not any(path.samefile(other) for other in found):
            found.append(path)
    if not found:
        raise FileNotFoundError(
            f"{folder / image_id}: no such image ({', '.join(SUFFIXES[:3])}), but {split_file} "
            "names it"
        )
    return found


def _choose_image(files: list[Path], annotation: ElementTree.Element, xml_file: Path) -> Path:
    if len(files) == 1:
        return files[0]
    # Tools on Windows write a path.
    name = (annotation.findtext("filename") or "").strip().replace("\\", "/").rpartition("/")[2]
    named = [path for path in files if path.name == name]
    if not named:
        raise ValueError(
            f"{xml_file}: {' and '.join(map(str, files))} have its name, and its filename {name!r} "
            "is neither; expected one image"
        )
    return named[0]


def parse_xml(xml_file: Path) -> ElementTree.Element:
    """The root element. Xml with a document type is refused, since entities need one.

    The bytes are searched before the parser can expand an entity. Without their NUL bytes, UTF-16
    and UTF-32 contain the ASCII text, as all other encodings do that the parser reads.
    """
    content = xml_file.read_bytes()
    if b"<!DOCTYPE" in content.replace(b"\0", b""):
        raise ValueError(f"{xml_file}: has a document type (<!DOCTYPE), expected plain VOC xml")
    try:
        return ElementTree.fromstring(content)
    except (ElementTree.ParseError, LookupError, ValueError) as error:
        raise ValueError(f"{xml_file}: expected VOC xml, but {error}") from error


def _check_size(
    annotation: ElementTree.Element, xml_file: Path, image_file: Path, trust_xml: bool
) -> tuple[int, int]:
    """(width, height) in pixels, which must be the same in the xml and in the image's header.

    With ``trust_xml`` the image is not opened if the xml has a size.
    """
    texts = [annotation.findtext(f"size/{side}") for side in ("width", "height")]
    if trust_xml and all(text is not None and text.strip().isdecimal() for text in texts):
        return int(texts[0]), int(texts[1])
    size = image_size(image_file)
    if any(text is None for text in texts):
        raise ValueError(
            f"{xml_file}: no size, expected <size> with width {size[0]} and height {size[1]} "
            f"as {image_file} has"
        )
    try:
        same = tuple(float(text) for text in texts) == size
    except ValueError:
        same = False
    if not same:
        raise ValueError(
            f"{xml_file}: the size is {texts[0]} x {texts[1]} (width x height), but "
            f"{image_file} is {size[0]} x {size[1]}, after any rotation that its Exif data asks for"
        )
    return size


def _read_corners(element: ElementTree.Element, where: str) -> tuple[float, ...]:
    corners = []
    for key in ("xmin", "ymin", "xmax", "ymax"):
        text = element.findtext(f"bndbox/{key}")
        try:
            value = float(text)
        except (TypeError, ValueError):
            value = math.nan
        if not math.isfinite(value):
            raise ValueError(f"{where}: bndbox/{key} is {text!r}, expected a number of pixels")
        corners.append(value)
    return tuple(corners)
