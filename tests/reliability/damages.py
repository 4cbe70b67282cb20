"""How the fuzzer damages files: bytes of any format, values of json and xml, images.

A damage is a function ``(rng, data, secret) -> data``; ``secret`` is a file that must stay unread.
"""

from __future__ import annotations

import functools
import io
import json
import math
import os
import random
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

HEIGHT, WIDTH = 30, 40

Damage = Callable[[random.Random, bytes, Path], bytes]


# Bytes of any format


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
    """Another file under the same name; for an EPS file Pillow would start Ghostscript."""
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 40 30\n%%EndComments\nshowpage\n%%EOF\n"
    other = (b"", b"\0", b"text", b"<a/>", b"{}", b"[]", b"null", rng.randbytes(500), eps)
    return rng.choice((*other, *(image_bytes(kind) for kind in IMAGE_KINDS)))


BYTES = (cut, flip, overwrite, insert, remove, repeat, replace)


# Values


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
    """Bombs, external entities, unusual encodings, trees that are too deep or too wide."""
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


# Images


def image_bytes(kind: str, size: tuple[int, int] = (HEIGHT, WIDTH), mode: str = "RGB") -> bytes:
    pixels = np.random.default_rng(0).integers(0, 255, (*size, 3), np.uint8)
    out, exif = io.BytesIO(), Image.Exif()
    exif[274], exif[305] = 1, "a camera"
    options = {"exif": exif} if kind in ("jpeg", "png", "webp") else {}
    Image.fromarray(pixels).convert(mode).save(out, kind, **options)
    return out.getvalue()


IMAGE_KINDS = ("jpeg", "png", "bmp", "gif", "tiff", "webp")


def chunk(name: bytes, body: bytes) -> bytes:
    """A chunk of a png file, with its checksum."""
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def hostile_png(rng: random.Random, data: bytes, secret: Path) -> bytes:
    """Valid checksums, but wrong sizes, unusual depths and compressed bombs."""
    head, rest = data[:8], data[33:]
    w, h = rng.choice(((1, 1), (2**31 - 1, 2**31 - 1), (30000, 30000), (0, 0), (WIDTH, 10**6)))
    depth, color = rng.choice(((8, 2), (8, 6), (16, 2), (1, 3), (7, 9)))
    bomb = zlib.compress(bytes(2**26))
    text = rng.choice((chunk(b"zTXt", b"a\0\0" + bomb), chunk(b"iCCP", b"a\0\0" + bomb)))
    sized = chunk(b"IHDR", struct.pack(">IIBBBBB", w, h, depth, color, 0, 0, 0))
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
    """A valid image of another size, mode or format."""
    size = rng.choice(((1, 1), (1, 5000), (5000, 1), (HEIGHT, WIDTH), (WIDTH, HEIGHT)))
    kind = rng.choice(IMAGE_KINDS)
    modes = {"jpeg": ("RGB", "L", "CMYK"), "tiff": ("RGB", "L", "1", "CMYK"), "webp": ("RGB",)}
    mode = rng.choice(modes.get(kind, ("RGB", "L", "1", "P")))
    return image_bytes(kind, size, mode)


def damage_exif(rng: random.Random, data: bytes, secret: Path) -> bytes:
    """Bytes of the Exif data changed, which are at the start of a jpeg."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 3, 10))):
        out[rng.randrange(20, 90)] = rng.randrange(256)
    return bytes(out)


# Tables


def _plain(function: Callable[[random.Random, bytes], bytes]) -> Damage:
    @functools.wraps(function)
    def damage(rng: random.Random, data: bytes, secret: Path) -> bytes:
        return function(rng, data)

    return damage


ON_BYTES = tuple(map(_plain, BYTES))
# Values are damaged as often as bytes, as the parser finds most damage to bytes.
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
