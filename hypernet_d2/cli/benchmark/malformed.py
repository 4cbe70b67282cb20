"""Malformed HTTP requests, by which a server is tested."""

from __future__ import annotations

import random
from collections.abc import Callable

__all__ = ["KINDS", "malformed_request"]

BOUNDARY = b"picture-boundary"


def malformed_request(kind: str, picture: bytes, rng: random.Random) -> bytes:
    """The bytes of a request of a kind in `KINDS`."""
    return KINDS[kind](picture, rng)


def _post(body: bytes, content_type: bytes = b"image/png", length: int | None = None) -> bytes:
    size = len(body) if length is None else length
    return (
        b"POST /detect HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
        b"Content-Type: %s\r\nContent-Length: %d\r\n\r\n%s" % (content_type, size, body)
    )


def _form(content: bytes) -> bytes:
    """The body of a form with one file."""
    head = b'--%s\r\nContent-Disposition: form-data; name="a"; filename="a.png"' % BOUNDARY
    return b"%s\r\n\r\n%s\r\n--%s--" % (head, content, BOUNDARY)


def _flip(content: bytes, rng: random.Random, count: int = 8) -> bytes:
    """Other bytes at up to ``count`` places."""
    changed = bytearray(content)
    for _ in range(rng.randint(1, count)):
        changed[rng.randrange(len(changed))] = rng.randrange(256)
    return bytes(changed)


def _cut(content: bytes, rng: random.Random) -> bytes:
    return content[: rng.randrange(len(content))]


FORM_TYPE = b"multipart/form-data; boundary=" + BOUNDARY
KINDS: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "picture with other bytes": lambda p, r: _post(_flip(p, r)),
    "picture cut off": lambda p, r: _post(_cut(p, r)),
    "header of a picture with other bytes": lambda p, r: _post(_flip(p[:40], r) + p[40:]),
    "random bytes": lambda p, r: _post(r.randbytes(r.randrange(5000))),
    "form with other bytes": lambda p, r: _post(_flip(_form(p), r), FORM_TYPE),
    "form with other bytes in its header": lambda p, r: _post(
        _flip(_form(p)[:90], r) + _form(p)[90:], FORM_TYPE
    ),
    "form cut off": lambda p, r: _post(_cut(_form(p), r), FORM_TYPE),
    "other content type": lambda p, r: _post(p, r.randbytes(9).hex().encode()),
    "body shorter than its length": lambda p, r: _post(_cut(p, r), length=len(p)),
    "body longer than its length": lambda p, r: _post(p, length=r.randrange(len(p))),
    "huge length": lambda p, r: _post(p, length=10 ** r.randint(8, 30)),
    "damaged chunks": lambda p, r: (
        b"POST /detect HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
        + _flip(b"%x\r\n%s\r\n0\r\n\r\n" % (len(p), p), r)
    ),
    "request with other bytes": lambda p, r: _flip(_post(p)[:120], r) + _post(p)[120:],
    "no HTTP": lambda p, r: r.randbytes(r.randint(1, 5000)),
}
