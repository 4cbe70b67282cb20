"""The stock dataset mapper, with errors that name the image."""

import os

from detectron2.data import DatasetMapper
from detectron2.data.detection_utils import SizeMismatchError, read_image

from hypernet_d2.utils.images import refuse_programs


def read_named(path: str | os.PathLike, format: str = "BGR"):
    """detectron2's ``read_image``, whose errors name the file.

    Raises:
        ValueError: it is missing, truncated or no image.
    """
    try:
        _refuse_programs(path)
        return read_image(str(path), format=format)
    except Exception as error:  # Pillow's are of every kind for damaged files
        raise ValueError(f"{path}: cannot be read as an image: {error}") from error


def _refuse_programs(path: str | os.PathLike) -> None:
    if "://" not in str(path):  # detectron2 fetches such
        refuse_programs(path)


class NamedErrorDatasetMapper(DatasetMapper):
    """`detectron2.data.DatasetMapper`, but an image that cannot be used is named.

    Raises:
        ValueError: the image of the dataset dict is missing, truncated, no image or of another
            size than the dict says, or its annotations do not fit the settings.
    """

    def __call__(self, dataset_dict: dict) -> dict:
        file_name = dataset_dict["file_name"]
        try:
            _refuse_programs(file_name)
            return super().__call__(dataset_dict)
        except SizeMismatchError:
            raise
        except Exception as error:
            # Reading it once more tells what was wrong; good images never come here.
            read_named(file_name, self.image_format)
            if str(file_name) in str(error):
                raise
            message = f"{file_name}: cannot be used: {type(error).__name__}: {error}"
            raise ValueError(message) from error
