"""The stock dataset mapper, with errors that name the image."""

import struct
import zlib

from detectron2.data import DatasetMapper
from PIL import Image

# What Pillow raises for broken files; its message for a truncated one does not name the file.
BROKEN_IMAGE = (OSError, SyntaxError, Image.DecompressionBombError, struct.error, zlib.error)


class NamedErrorDatasetMapper(DatasetMapper):
    """`detectron2.data.DatasetMapper`, but an image that cannot be read is named.

    Raises:
        ValueError: the image of the dataset dict is missing, truncated or no image.
    """

    def __call__(self, dataset_dict: dict) -> dict:
        try:
            return super().__call__(dataset_dict)
        except BROKEN_IMAGE as error:
            raise ValueError(
                f"{dataset_dict['file_name']}: cannot be read as an image: {error}"
            ) from error
