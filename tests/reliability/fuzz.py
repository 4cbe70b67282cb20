#!/usr/bin/env python3
"""Damages files by chance, and looks at what becomes of them.

    python tests/reliability/fuzz.py --count 2000 --seed 0

A case is a small data set, image or checkpoint with one file of it damaged: cut, bytes flipped,
values of other types, huge numbers, entity bombs, paths that lead out, and so on. It takes one of
the ways that files of others come in, and has to end in a right result, or in a ValueError, an
OSError or a FloatingPointError that names a file of the case. Everything else is a fault: another
error, a message without a name, a process that dies, a case that takes too long, a file opened
outside of the case, a program started or a connection made. The exit status is 1 where there is a
fault.

Cases depend on the seed and their number alone: ``--only 17`` runs one, and shows what came of it.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import functools
import io
import json
import logging
import math
import multiprocessing
import os
import pickle
import random
import struct
import sys
import tempfile
import time
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

HEIGHT, WIDTH = 30, 40
SECONDS = 60.0  # that a case may take: most take hundredths, but machines are busy at times
MEMORY = 4 * 2**30  # bytes that a case may take beyond what the process had before
FAULTS = ("unnamed", "hang", "died", "outside")
OUTCOMES = ("right", "named", *FAULTS)


class Result(NamedTuple):
    outcome: str
    message: str


class Case(NamedTuple):
    """``way`` is a key of `WAYS`; ``kind`` is the format of the damaged file."""

    way: str
    kind: str
    damage: str


# Damage to bytes, of any format


def cut(rng: random.Random, data: bytes) -> bytes:
    return data[: rng.randrange(len(data))]


def flip(rng: random.Random, data: bytes) -> bytes:
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 3, 20))):
        out[rng.randrange(len(out))] ^= 1 << rng.randrange(8)
    return bytes(out)


def overwrite(rng: random.Random, data: bytes) -> bytes:
    at, length = rng.randrange(len(data)), rng.choice((1, 4, 30))
    filling = rng.choice((b"\0", b"\xff", rng.randbytes(1))) * length
    return data[:at] + filling + data[at + length :]


def insert(rng: random.Random, data: bytes) -> bytes:
    at = rng.randrange(len(data))
    return data[:at] + rng.randbytes(rng.choice((1, 7, 300))) + data[at:]


def remove(rng: random.Random, data: bytes) -> bytes:
    at = rng.randrange(len(data))
    return data[:at] + data[at + rng.choice((1, 3, 40)) :]


def repeat(rng: random.Random, data: bytes) -> bytes:
    at = rng.randrange(len(data))
    return data[:at] + data[at : at + 60] * rng.choice((2, 500)) + data[at:]


def replace(rng: random.Random, data: bytes) -> bytes:
    """Something else under the same name, an EPS too, for which Pillow would start Ghostscript."""
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 40 30\n%%EndComments\nshowpage\n%%EOF\n"
    other = (b"", b"\0", b"text", b"<a/>", b"{}", b"[]", b"null", rng.randbytes(500), eps)
    return rng.choice((*other, *(image_bytes(kind) for kind in IMAGE_KINDS)))


BYTES = (cut, flip, overwrite, insert, remove, repeat, replace)


# Damage to values


def odd_text(rng: random.Random, secret: Path) -> str:
    return rng.choice(
        (
            "", " ", "abc", "-1", "0", "1.5", "1e999", "-1e308", "nan", "inf", "9" * 30, "9" * 6000,
            "0x10", "\u0663", "None", "true", "\u202e", "a" * 10**5, str(secret),
            f"../{secret.name}",
            "../" * 20 + "etc/passwd", "/etc/passwd", "file:///etc/passwd", "NUL", ".", "..", "~",
            "%s%n{0}", "1,5", "[]",
        )
    )  # fmt: skip


def odd_value(rng: random.Random, secret: Path):
    nested: list = []
    for _ in range(200):
        nested = [nested]
    return rng.choice(
        (
            None, True, False, 0, -1, 1.5, 1e308, -1e308, math.nan, math.inf, -math.inf, 10**30,
            -(10**30), 10**400, [], {}, [[]], [{}], [None], [1], [1, 2, 3], [math.nan] * 4,
            [1e308] * 4, ["a"] * 4, {"id": 1}, nested, odd_text(rng, secret), odd_text(rng, secret),
        )
    )  # fmt: skip


def damage_json(rng: random.Random, data: bytes, secret: Path) -> bytes:
    """One to three values replaced, deleted or repeated, anywhere in the tree."""
    content = json.loads(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        places = list(_places(content))
        if not places:
            break
        holder, key = rng.choice(places)
        action = rng.random()
        if action < 0.65:
            holder[key] = odd_value(rng, secret)
        elif action < 0.85:
            del holder[key]
        elif isinstance(holder, list):
            holder.extend(holder[key : key + 1] * rng.choice((1, 3)))
        else:
            holder[f"{key}x"] = holder.pop(key)
    return json.dumps(content).encode()


def _places(tree):
    """(container, key) of every value."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree)
    for key, value in list(items):
        yield tree, key
        if isinstance(value, (dict, list)):
            yield from _places(value)


def deep_json(rng: random.Random, data: bytes, secret: Path) -> bytes:
    opening, closing = rng.choice((("[", "]"), ('{"a":', "}")))
    inside = opening * 10**5 + closing * rng.choice((0, 10**5))
    return rng.choice((inside, '{"images": ' + inside + "}")).encode()


def damage_xml(rng: random.Random, data: bytes, secret: Path) -> bytes:
    """The text of an element replaced, or the element deleted, repeated or renamed."""
    from xml.etree import ElementTree

    root = ElementTree.fromstring(data)
    for _ in range(rng.choice((1, 1, 2))):
        parents = [e for e in root.iter() if len(e)]
        parent = rng.choice(parents)
        child = rng.choice(list(parent))
        action = rng.random()
        if action < 0.6:
            leaf = rng.choice([e for e in root.iter() if not len(e)] or [root])
            leaf.text = odd_text(rng, secret)
        elif action < 0.8:
            parent.remove(child)
        elif action < 0.9:
            parent.extend([child] * rng.choice((1, 50)))
        else:
            child.tag = rng.choice(("bndbox", "object", "name", "x", "size", "filename", "path"))
        if not [e for e in root.iter() if len(e)]:
            break
    return ElementTree.tostring(root)


def hostile_xml(rng: random.Random, data: bytes, secret: Path) -> bytes:
    """Bombs, entities from outside, odd encodings, and trees that are too deep or too wide."""
    text = data.decode()
    laughs = "".join(f'<!ENTITY a{i} "{f"&a{i - 1};" * 10}">' for i in range(1, 12))
    entity = f'<!ENTITY e SYSTEM "{rng.choice(("", "file://"))}{secret}">'
    with_entity = text.replace("cell", "&e;", 1)
    hostile = (
        f'<!DOCTYPE a [<!ENTITY a0 "ha">{laughs}]>' + text.replace("cell", "&a11;", 1),
        f'<!DOCTYPE a [<!ENTITY e "{"a" * 10**5}">]>' + text.replace("cell", "&e;" * 1000, 1),
        f"<!DOCTYPE a [{entity}]>{with_entity}",
        f'<!DOCTYPE a [<!ENTITY % p SYSTEM "file://{secret}"> %p;]>{text}',
        f'<!DOCTYPE a SYSTEM "file://{secret}">{text}',
        f'<!DOCTYPE a PUBLIC "-//x" "http://127.0.0.1:9/x.dtd">{with_entity}',
        with_entity,
        text.replace(
            "<size>",
            '<xi:include xmlns:xi="http://www.w3.org/2001/XInclude" parse="text" '
            f'href="{secret}"/><size>',
        ),
        f'<?xml-stylesheet href="{secret}"?>{text}',
        text.replace("</annotation>", "<a>" * 10**5 + "</a>" * 10**5 + "</annotation>"),
        text.replace("</annotation>", "<a>" * 10**5),
        text.replace("</annotation>", "<object/>" * 10**4 + "</annotation>"),
        text.replace("<size>", "<size " + " ".join(f'a{i}="1"' for i in range(10**4)) + ">"),
        f'<?xml version="1.0" encoding="{rng.choice(("utf-7", "x", "utf-16", "cp037", "big5"))}"?>'
        + text,
    )
    chosen = rng.choice(hostile)
    encoding = rng.choice(("utf-8", "utf-8", "utf-8", "utf-16", "utf-16-le", "utf-32"))
    return chosen.encode(encoding)


def damage_split(rng: random.Random, data: bytes, secret: Path) -> bytes:
    lines = data.decode().splitlines()
    odd = odd_text(rng, secret).replace("\0", "")
    outside = os.path.relpath(secret.with_suffix(""), secret.parent / "set" / "JPEGImages")
    lines[rng.randrange(len(lines))] = rng.choice(
        (odd, odd, outside, str(secret.with_suffix("")), "a\0b", "a 1", "a" * 5000, lines[0])
    )
    return "\n".join(lines).encode("utf-8", "surrogateescape")


# Damage to images


def image_bytes(kind: str, size: tuple[int, int] = (HEIGHT, WIDTH), mode: str = "RGB") -> bytes:
    pixels = np.random.default_rng(0).integers(0, 255, (*size, 3), np.uint8)
    out, exif = io.BytesIO(), Image.Exif()
    exif[274], exif[305] = 1, "a camera"
    options = {"exif": exif} if kind in ("jpeg", "png", "webp") else {}
    Image.fromarray(pixels).convert(mode).save(out, kind, **options)
    return out.getvalue()


IMAGE_KINDS = ("jpeg", "png", "bmp", "gif", "tiff", "webp")


def chunk(name: bytes, body: bytes) -> bytes:
    """Of a png file, with its right checksum."""
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def hostile_png(rng: random.Random, data: bytes, secret: Path) -> bytes:
    """Right checksums, but sizes that are not the image's, odd depths and compressed bombs."""
    head, rest = data[:8], data[33:]
    w, h = rng.choice(((1, 1), (2**31 - 1, 2**31 - 1), (30000, 30000), (0, 0), (WIDTH, 10**6)))
    depth, colour = rng.choice(((8, 2), (8, 6), (16, 2), (1, 3), (7, 9)))
    bomb = zlib.compress(bytes(2**26))
    text = rng.choice((chunk(b"zTXt", b"a\0\0" + bomb), chunk(b"iCCP", b"a\0\0" + bomb)))
    sized = chunk(b"IHDR", struct.pack(">IIBBBBB", w, h, depth, colour, 0, 0, 0))
    return rng.choice(
        (
            head + sized + rest,
            head + sized + chunk(b"IDAT", bomb) + chunk(b"IEND", b""),
            data[:33] + text + rest,
            data[:33] + text * 20 + rest,
            data[:33] + chunk(b"eXIf", rng.randbytes(40)) + rest,
        )
    )


def odd_image(rng: random.Random, data: bytes, secret: Path) -> bytes:
    """A whole image, but of another size, mode or format, or turned by its Exif data."""
    size = rng.choice(((1, 1), (1, 5000), (5000, 1), (HEIGHT, WIDTH), (WIDTH, HEIGHT)))
    kind = rng.choice(IMAGE_KINDS)
    modes = {"jpeg": ("RGB", "L", "CMYK"), "tiff": ("RGB", "L", "1", "CMYK"), "webp": ("RGB",)}
    mode = rng.choice(modes.get(kind, ("RGB", "L", "1", "P")))
    return image_bytes(kind, size, mode)


def damage_exif(rng: random.Random, data: bytes, secret: Path) -> bytes:
    """Bytes of the Exif data flipped, which lie at the beginning of a jpeg."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 3, 10))):
        out[rng.randrange(20, 90)] = rng.randrange(256)
    return bytes(out)


# What a case must not do


class Watch:
    """Notes what is opened outside of a folder, what is started, and what is connected to."""

    def __init__(self):
        self.folder, self.seen = "", []
        # Modules that are imported late, fonts, and what the system says of itself.
        own = (sys.prefix, sys.base_prefix, ROOT, *sys.path, "/proc", "/dev", "/sys", "/usr/share")
        self.allowed = tuple(os.path.realpath(path) + os.sep for path in own)
        sys.addaudithook(self._note)

    @contextlib.contextmanager
    def over(self, folder: Path) -> Iterator[None]:
        self.seen = []
        self.folder = os.path.realpath(folder) + os.sep
        try:
            yield
        finally:
            self.folder = ""

    def _note(self, event: str, args: tuple) -> None:
        if not self.folder:
            return
        if event in ("open", "os.listdir", "os.scandir"):
            if isinstance(args[0], (str, bytes, os.PathLike)):
                path = os.path.realpath(os.fsdecode(args[0])) + os.sep
                if not path.startswith((self.folder, *self.allowed)):
                    self.seen.append(f"{event} {path[:-1]}")
        elif event in ("subprocess.Popen", "os.system", "os.exec", "socket.connect"):
            self.seen.append(f"{event} {str(args)[:200]}")


# Cases: what is damaged, and how

Damage = Callable[[random.Random, bytes, Path], bytes]


def _plain(function: Callable[[random.Random, bytes], bytes]) -> Damage:
    @functools.wraps(function)
    def damage(rng: random.Random, data: bytes, secret: Path) -> bytes:
        return function(rng, data)

    return damage


ON_BYTES = tuple(map(_plain, BYTES))
# Values are damaged as often as bytes: most damage to the bytes is found by the parser.
DAMAGES: dict[str, tuple[Damage, ...]] = {
    "xml": (*ON_BYTES, *[damage_xml] * 5, *[hostile_xml] * 5),
    "split": (*ON_BYTES, *[damage_split] * 5),
    "json": (*ON_BYTES, *[damage_json] * 12, deep_json),
    "jpeg": (*ON_BYTES, *[odd_image] * 2, *[damage_exif] * 3),
    "png": (*ON_BYTES, *[odd_image] * 2, *[hostile_png] * 4),
    **{kind: (*ON_BYTES, odd_image) for kind in ("bmp", "gif", "tiff", "webp")},
    "pkl": ON_BYTES,
    "pth": ON_BYTES,
    "onnx": ON_BYTES,
    "pt2": ON_BYTES,
}
# Formats of each way, the commoner ones several times.
WAYS = {
    "voc": ("xml", "xml", "xml", "xml", "split", "jpeg", "png"),
    "coco": ("json", "json", "json", "json", "json", "jpeg", "png"),
    "demo": ("jpeg", "jpeg", "png", "png", "bmp", "gif", "tiff", "webp"),
    "deploy": ("jpeg", "png", "png", "tiff"),
    "checkpoint": ("pkl", "pth"),
    "model": ("onnx", "pt2"),
}
# Of twenty cases, how many take which way.
SHARES = [*["voc", "coco"] * 6, *["demo"] * 4, *["deploy", "checkpoint"], "checkpoint", "model"]


def draw(seed: int, number: int) -> tuple[random.Random, Case, Damage]:
    rng = random.Random(f"{seed}/{number}")
    way = SHARES[number % len(SHARES)]
    kind = rng.choice(WAYS[way])
    damage = rng.choice(DAMAGES[kind])
    return rng, Case(way, kind, damage.__name__), damage


def run_case(seed: int, number: int, folder: Path, watch: Watch) -> tuple[Case, Result]:
    """Make a case in an empty folder, and see what becomes of it."""
    rng, case, damage = draw(seed, number)
    root, secret = folder / "set", folder / "secret.jpg"  # beside the set, and not of it
    secret.write_bytes(image_bytes("jpeg"))
    root.mkdir()
    take = _prepare(case, root, lambda data: damage(rng, data, secret))
    result = Result("right", "")
    try:
        with open(os.devnull, "w") as null, contextlib.redirect_stdout(null), watch.over(root):
            take()
    except (ValueError, OSError, FloatingPointError) as error:
        names = {path.name for path in root.rglob("*.*")} | {str(root)}
        named = any(name in str(error) for name in names)
        result = Result("named" if named else "unnamed", f"{type(error).__name__}: {error}")
    except BaseException as error:
        result = Result("unnamed", f"{type(error).__name__}: {error}")
    if watch.seen:
        result = Result("outside", "; ".join(watch.seen))
    return case, result


def _prepare(case: Case, root: Path, damage: Callable[[bytes], bytes]) -> Callable[[], None]:
    """Write the files of a case, one of them damaged; gives what reads them."""
    return {
        "voc": _prepare_voc,
        "coco": _prepare_coco,
        "demo": _prepare_demo,
        "deploy": _prepare_deploy,
        "checkpoint": _prepare_checkpoint,
        "model": _prepare_model,
    }[case.way](case.kind, root, damage)


VOC_XML = (
    "<annotation><folder>x</folder><filename>a.jpg</filename><path>/home/me/a.jpg</path>"
    f"<size><width>{WIDTH}</width><height>{HEIGHT}</height><depth>3</depth></size>"
    "<object><name>cell</name><difficult>0</difficult><bndbox><xmin>5</xmin><ymin>6</ymin>"
    "<xmax>15</xmax><ymax>16</ymax></bndbox></object><object><name>dust</name><bndbox>"
    "<xmin>1</xmin><ymin>1</ymin><xmax>40</xmax><ymax>30</ymax></bndbox></object></annotation>"
)


def _prepare_voc(kind: str, root: Path, damage: Callable[[bytes], bytes]) -> Callable[[], None]:
    from hypernet_d2.data import register_voc_style

    for name in ("Annotations", "ImageSets/Main", "JPEGImages"):
        (root / name).mkdir(parents=True)
    image = "png" if kind == "png" else "jpeg"
    files = {"xml": "Annotations/b.xml", "split": "ImageSets/Main/all.txt"}
    for stem in "ab":
        (root / f"JPEGImages/{stem}.{image}").write_bytes(image_bytes(image))
        (root / f"Annotations/{stem}.xml").write_text(VOC_XML)
    (root / "ImageSets/Main/all.txt").write_text("a\nb\n")
    _damage(root / files.get(kind, f"JPEGImages/b.{image}"), damage)

    def take() -> None:
        _forget("fuzz")
        register_voc_style("fuzz", root, "all", ["cell", "dust"])
        _train_on("fuzz")

    return take


def coco_content() -> dict:
    from pycocotools import mask

    disc = np.hypot(*np.mgrid[-15:15, -20:20]) < 9
    code = mask.encode(np.asfortranarray(disc.astype(np.uint8)))
    shapes = (
        [[5, 6, 15, 6, 15, 18]],
        {"size": [HEIGHT, WIDTH], "counts": [31, 40, HEIGHT * WIDTH - 71]},
        {"size": [HEIGHT, WIDTH], "counts": code["counts"].decode()},
    )
    annotations = [
        {
            "id": i + 1,
            "image_id": 1 + i % 2,
            "category_id": 1 + i % 2,
            "bbox": [5, 6, 10, 12],
            "area": 120,
            "iscrowd": int(i == 3),
            "segmentation": shapes[i % 3],
            "keypoints": [8, 8, 2, 9, 9, 1],
            "num_keypoints": 2,
        }
        for i in range(4)
    ]
    images = [
        {"id": i + 1, "file_name": f"{name}.jpeg", "height": HEIGHT, "width": WIDTH}
        for i, name in enumerate("ab")
    ]
    categories = [{"id": 1, "name": "cell"}, {"id": 2, "name": "dust"}]
    return {"info": {}, "images": images, "annotations": annotations, "categories": categories}


def _prepare_coco(kind: str, root: Path, damage: Callable[[bytes], bytes]) -> Callable[[], None]:
    from detectron2.data.datasets import register_coco_instances

    content = coco_content()
    image = "png" if kind == "png" else "jpeg"
    for entry in content["images"]:
        entry["file_name"] = str(Path(entry["file_name"]).with_suffix(f".{image}"))
        (root / entry["file_name"]).write_bytes(image_bytes(image))
    (root / "labels.json").write_text(json.dumps(content))
    _damage(root / ("labels.json" if kind == "json" else f"b.{image}"), damage)

    def take() -> None:
        _forget("fuzz")
        metadata = {"keypoint_names": ["p", "q"], "keypoint_flip_map": [["p", "q"]]}
        register_coco_instances("fuzz", metadata, str(root / "labels.json"), str(root))
        _train_on("fuzz", use_instance_mask=True, use_keypoint=True, instance_mask_format="bitmask")
        _evaluate_on("fuzz", root)

    return take


def _forget(name: str) -> None:
    from detectron2.data import DatasetCatalog, MetadataCatalog

    DatasetCatalog.pop(name, None)
    MetadataCatalog.pop(name, None)


def _train_on(name: str, **options) -> None:
    """Load the set as the trainer does, and map every image of it."""
    from detectron2.data import transforms as T

    from hypernet_d2.data import NamedErrorDatasetMapper, load_dataset

    records = load_dataset(name, evaluated=True)
    if options.get("use_keypoint"):
        options["keypoint_hflip_indices"] = np.array([1, 0])
    resize = T.ResizeShortestEdge(32, 100)
    mapper = NamedErrorDatasetMapper(True, augmentations=[resize], image_format="BGR", **options)
    for record in records:
        mapped = mapper(record)
        h, w = mapped["image"].shape[1:]
        boxes = mapped["instances"].gt_boxes.tensor.numpy()
        assert np.isfinite(boxes).all() and (boxes >= 0).all()
        assert (boxes <= [w, h, w, h]).all() and (boxes[:, 2:] > boxes[:, :2]).all()
        assert (mapped["instances"].gt_classes.numpy() < 2).all()


def _evaluate_on(name: str, root: Path) -> None:
    """COCO's box AP of the ground truth itself, if there is any."""
    import torch
    from detectron2.structures import Boxes, BoxMode, Instances

    from hypernet_d2.data import load_dataset
    from hypernet_d2.evaluation import build_evaluator
    from tests.helpers import tiny_cfg

    evaluator = build_evaluator(tiny_cfg(), name, str(root / "inference"))
    evaluator.reset()
    for record in load_dataset(name):
        found = Instances((record["height"], record["width"]))
        boxes = [
            BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS)
            for a in record["annotations"]
        ]
        found.pred_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
        found.scores = torch.ones(len(boxes))
        found.pred_classes = torch.tensor([a["category_id"] for a in record["annotations"]]).long()
        evaluator.process([record], [{"instances": found}])
    evaluator.evaluate()


def _prepare_demo(kind: str, root: Path, damage: Callable[[bytes], bytes]) -> Callable[[], None]:
    """demo.py's way of files, with a model that shows the image as it is."""
    from hypernet_d2.cli.views import View

    path = root / f"photo.{kind}"
    path.write_bytes(image_bytes(kind))
    _damage(path, damage)
    demo = _demo()

    def take() -> None:
        output = root / "output"
        output.mkdir()
        args = argparse.Namespace(files=[path], output=output, webcam=None, codec="mp4v")
        show = lambda image: View(np.ascontiguousarray(image[:, :, ::-1]), "")  # noqa: E731
        failures = demo["run"](args, show, None)
        if failures:
            raise ValueError(failures[0])
        (picture,) = output.iterdir()
        with Image.open(picture) as drawn:
            drawn.load()

    return take


@functools.cache
def _demo() -> dict:
    from hypernet_d2.cli import detect

    module = vars(detect)
    quiet = lambda sources, **_: sources  # noqa: E731
    module["run"].__globals__["tqdm"] = quiet
    return module


def _prepare_deploy(kind: str, root: Path, damage: Callable[[bytes], bytes]) -> Callable[[], None]:
    from hypernet_d2.deploy import read_image

    path = root / f"photo.{kind}"
    path.write_bytes(image_bytes(kind))
    _damage(path, damage)

    def take() -> None:
        image = read_image(path)
        assert image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3

    return take


def _prepare_checkpoint(
    kind: str, root: Path, damage: Callable[[bytes], bytes]
) -> Callable[[], None]:
    import torch

    from hypernet_d2.checkpoint import HyperNetCheckpointer

    path = root / f"model.{kind}"
    weights = {"weight": torch.ones(3, 2), "bias": torch.ones(3)}
    if kind == "pth":
        torch.save({"model": weights, "iteration": 3}, path)
    else:
        arrays = {name: value.numpy() for name, value in weights.items()}
        path.write_bytes(pickle.dumps({"model": arrays, "__author__": "fuzz"}))
    _damage(path, damage)

    def take() -> None:
        model = torch.nn.Linear(2, 3)
        HyperNetCheckpointer(model).load(str(path))
        assert all(p.isfinite().all() for p in model.parameters())

    return take


def _prepare_model(kind: str, root: Path, damage: Callable[[bytes], bytes]) -> Callable[[], None]:
    from hypernet_d2.deploy import Detector

    path = root / f"model.{kind}"
    path.write_bytes(_model(kind))
    _damage(path, damage)

    def take() -> None:
        image = np.random.default_rng(0).integers(0, 255, (48, 64, 3), np.uint8)
        found = Detector(path, threads=1)(image)
        assert len(found.boxes) == len(found.scores) == len(found.classes)

    return take


@functools.cache
def _model(kind: str) -> bytes:
    """Bytes of an exported model: the one that ships, or one that is quickly made."""
    from hypernet_d2.deploy import DIGITS_MODEL
    from tests.deploy import toy

    if kind == "onnx":
        import onnxruntime  # noqa: F401  (what it reads when it is imported is not the case's)

        return DIGITS_MODEL.read_bytes()
    with tempfile.TemporaryDirectory() as folder:
        return toy.write_torch(Path(folder, "model.pt2")).read_bytes()


def _damage(path: Path, damage: Callable[[bytes], bytes]) -> None:
    path.write_bytes(damage(path.read_bytes()))


# Each case runs in a child, which may die or hang


class Worker:
    """A process that runs cases one by one, and is replaced when it is lost."""

    def __init__(self, seed: int, seconds: float = SECONDS):
        self.seed, self.seconds = seed, seconds
        self.child = None

    def run(self, number: int) -> tuple[Case, Result]:
        if self.child is None:
            # Forked, so that the modules that are imported already need not be again.
            context = multiprocessing.get_context("fork")
            self.connection, end = context.Pipe()
            self.child = context.Process(target=_work, args=(end, self.seed), daemon=True)
            self.child.start()
            end.close()
        self.connection.send(number)
        try:
            if self.connection.poll(self.seconds):
                return self.connection.recv()
            outcome = Result("hang", f"not over after {self.seconds} s")
        except EOFError:
            self.child.join()
            outcome = Result("died", f"exit status {self.child.exitcode}")
        self.stop()
        return draw(self.seed, number)[1], outcome

    def stop(self) -> None:
        if self.child is not None:
            self.child.kill()
            self.child.join()
            self.connection.close()
            self.child = None


def _work(connection, seed: int) -> None:
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    # Memory that is asked for beyond this is an error, and does not bring down the machine.
    if sys.platform == "linux":
        import resource

        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    watch = Watch()
    while True:
        number = connection.recv()
        with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
            connection.send(run_case(seed, number, Path(folder), watch))


def warm_up() -> None:
    """Import what the children need, once."""
    import hypernet_d2.data  # noqa: F401
    import hypernet_d2.engine  # noqa: F401

    Image.init()
    _demo()
    for kind in WAYS["model"]:
        _model(kind)


def fuzz(numbers: Iterable[int], seed: int) -> Iterator[tuple[int, Case, Result]]:
    """The outcome of each case."""
    warm_up()
    worker = Worker(seed)
    try:
        for number in numbers:
            yield number, *worker.run(number)
    finally:
        worker.stop()


def table(results: list[tuple[int, Case, Result]]) -> str:
    """Markdown: outcomes by way and format."""
    counts: dict[tuple[str, str], collections.Counter] = {}
    for _, case, result in results:
        for key in ((case.way, case.kind), ("all", "")):
            counts.setdefault(key, collections.Counter())[result.outcome] += 1
    lines = [
        "| way in | damaged | cases | right | named | " + " | ".join(FAULTS) + " |",
        "|---|---|---|---|---|" + "---|" * len(FAULTS),
    ]
    for (way, kind), count in sorted(counts.items(), key=lambda item: (item[0][0] == "all", item)):
        numbers = " | ".join(str(count[outcome]) for outcome in OUTCOMES)
        lines.append(f"| {way} | {kind} | {count.total()} | {numbers} |")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=2000, help="number of cases (default: 2000)")
    parser.add_argument("--seed", type=int, default=0, help="default: 0")
    parser.add_argument("--only", type=int, help="number of the one case to run")
    parser.add_argument("--messages", action="store_true", help="print every outcome")
    args = parser.parse_args(argv)
    warnings.simplefilter("ignore")
    numbers = range(args.count) if args.only is None else [args.only]
    start, results = time.perf_counter(), []
    for number, case, result in fuzz(numbers, args.seed):
        results.append((number, case, result))
        if result.outcome in FAULTS or args.messages or args.only is not None:
            text = result.message if len(result.message) < 300 else f"{result.message[:300]}..."
            print(f"{number} {' '.join(case)}: {result.outcome}: {text}", flush=True)
    faults = sum(result.outcome in FAULTS for _, _, result in results)
    print(f"\n{table(results)}\n")
    print(f"{faults} faults in {len(results)} cases, {time.perf_counter() - start:.0f} s")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
