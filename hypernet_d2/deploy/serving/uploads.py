"""The pictures of a request, read within limits of bytes, pixels and time."""

from __future__ import annotations

import asyncio
import io
from dataclasses import dataclass
from typing import NoReturn

import anyio
import numpy as np
from fastapi import HTTPException, Request
from PIL import Image, UnidentifiedImageError
from starlette.datastructures import UploadFile

from hypernet_d2.utils.images import IMAGE_FORMATS, bgr_array

__all__ = ["Limits", "Upload", "decode", "read_uploads"]

# The last one is what curl --data-binary says of any file.
_RAW_TYPES = ("", "application/octet-stream", "application/x-www-form-urlencoded")
# How long the rest of a body that is refused is read.
DRAIN_SECONDS = 1.0


@dataclass(frozen=True)
class Limits:
    """What a request may take."""

    max_bytes: int = 10_000_000  # of a request's body
    max_pixels: int = 50_000_000  # of a picture
    max_pictures: int = 16  # of a request
    max_waiting: int = 32  # pictures in the queue, and requests whose body is being read
    seconds: float = 30.0  # from the start of a request to its reply


@dataclass(frozen=True)
class Upload:
    """A picture as it was sent."""

    name: str  # as the client says, or ""; only to be shown
    content: bytes
    label: str = "the picture"  # how messages name it


async def read_uploads(request: Request, limits: Limits) -> list[Upload]:
    """The pictures in the body of a request, one or more; their headers have been checked.

    The body is one picture, or a form (``multipart/form-data``) with a picture in each field.

    Raises:
        HTTPException: 413 (too many bytes, pixels or pictures), 415 (another type of body or of
            picture), 422 (no picture, or a damaged one) or 400 (a damaged form).
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    length = request.headers.get("content-length", "0")
    if length.isdigit() and int(length) > limits.max_bytes:
        await _refuse_size(request, limits)
    limited = Request(request.scope, _limited(request, limits))
    if kind == "multipart/form-data":
        uploads = await _read_form(limited, limits)
    elif kind in _RAW_TYPES or kind.startswith("image/"):
        uploads = [Upload("", await limited.body())]
    else:
        raise HTTPException(
            415, f"the body's type is {kind[:80]!r}; expected image/*, or multipart/form-data"
        )
    for upload in uploads:
        # In a thread, as a crafted header takes time.
        await asyncio.to_thread(_check_header, upload, limits)
    return uploads


def decode(upload: Upload) -> np.ndarray:
    """(H, W, 3) uint8, BGR, of an upload that `read_uploads` returned.

    Raises:
        HTTPException: 422, if it is damaged.
    """
    try:
        with Image.open(io.BytesIO(upload.content), formats=IMAGE_FORMATS) as image:
            return bgr_array(image)
    except Exception as error:  # damaged files make Pillow raise errors of every kind
        raise _damaged(upload, error) from error


def _limited(request: Request, limits: Limits):
    """The ASGI channel of a request, which ends when the body exceeds its limit."""
    size = 0

    async def receive():
        nonlocal size
        message = await request.receive()
        size += len(message.get("body", b""))
        if size > limits.max_bytes:
            await _refuse_size(request, limits)
        return message

    return receive


async def _read_form(request: Request, limits: Limits) -> list[Upload]:
    # The limits of fields are on text, of which there must be none.
    async with request.form(max_files=limits.max_pictures, max_fields=16) as form:
        uploads, items = [], form.multi_items()
        for field, value in items:
            if not isinstance(value, UploadFile):
                raise HTTPException(
                    422, f"the field {field[:80]!r} is text; expected files (filename=...) only"
                )
            name = value.filename or ""
            label = f"picture {len(uploads) + 1} of {len(items)} ({name[:80]!r})"
            uploads.append(Upload(name, await value.read(), label))
    if not uploads:
        raise HTTPException(422, "the form has no file; expected a picture in each field")
    return uploads


def _check_header(upload: Upload, limits: Limits) -> None:
    """Refuse what is no picture or has too many pixels, without decoding it."""
    if not upload.content:
        raise HTTPException(422, f"{upload.label} has no content; expected a picture")
    try:
        with Image.open(io.BytesIO(upload.content), formats=IMAGE_FORMATS) as image:
            width, height = image.size
    except UnidentifiedImageError as error:
        raise HTTPException(
            415,
            f"{upload.label} is no picture that can be read; expected {', '.join(IMAGE_FORMATS)}",
        ) from error
    except Image.DecompressionBombError as error:
        raise HTTPException(
            413, f"{upload.label} has more than {limits.max_pixels} pixels"
        ) from error
    except Exception as error:  # as in decode()
        raise _damaged(upload, error) from error
    if width * height > limits.max_pixels:
        raise HTTPException(
            413,
            f"{upload.label} has {width} x {height} pixels; expected at most {limits.max_pixels}",
        )


def _damaged(upload: Upload, error: Exception) -> HTTPException:
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    return HTTPException(422, f"{upload.label} cannot be read: {reason}")


async def _refuse_size(request: Request, limits: Limits) -> NoReturn:
    """Raise the HTTPException of a body with too many bytes."""
    # Most clients read no reply before they have sent all. What arrives is not kept.
    with anyio.move_on_after(DRAIN_SECONDS):
        while (await request.receive()).get("more_body"):
            pass
    raise HTTPException(
        413, f"the body has more than {limits.max_bytes} bytes", {"Connection": "close"}
    )
