"""What the detector takes as an image."""

from __future__ import annotations

import contextlib
import os

import numpy as np
from PIL import Image

from hypernet_d2.utils.images import bgr_array, read_image
from hypernet_d2.utils.large_images import LargeImage, in_memory, open_large_image

__all__ = ["ImageLike", "check_image", "open_image"]

ImageLike = np.ndarray | Image.Image | str | os.PathLike


def check_image(image: ImageLike) -> np.ndarray:
    """The image as (H, W, 3) uint8, BGR.

    Raises:
        FileNotFoundError: there is no such image file.
        ValueError: not an image.
    """
    if isinstance(image, (str, os.PathLike)):
        image = read_image(image)
    elif isinstance(image, Image.Image):
        try:
            image = bgr_array(image)
        except Exception as error:  # damaged files make Pillow raise errors of every kind
            raise ValueError(f"image: cannot be used: {error}") from error
    image = np.asarray(image)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise ValueError(
            f"image: expected uint8 of shape (H, W, 3), got {image.dtype} of {image.shape}"
        )
    return image


def open_image(image: ImageLike) -> contextlib.AbstractContextManager[LargeImage]:
    """The image to read parts of; of a file only these are read, where the file allows it.

    Raises:
        FileNotFoundError, ValueError: as `check_image`, and as `open_large_image`.
    """
    if isinstance(image, (str, os.PathLike)):
        return open_large_image(image)
    return contextlib.nullcontext(in_memory(check_image(image)))
