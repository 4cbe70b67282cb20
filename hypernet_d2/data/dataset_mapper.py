"""The dataset mapper: detectron2's, with images read as everywhere in this package."""

import copy
import os

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import DatasetMapper
from detectron2.data import transforms as T
from detectron2.data.detection_utils import (
    SizeMismatchError,
    annotations_to_instances,
    check_image_size,
    convert_PIL_to_numpy,
    read_image,
    transform_proposals,
)
from detectron2.utils.file_io import PathManager
from PIL import Image

from hypernet_d2.config import hypernet_node
from hypernet_d2.utils.images import as_shown

from .augmentation import add_augmentations, visible_share
from .tiles import tile_transform


def read_named(path: str | os.PathLike, format: str = "BGR") -> np.ndarray:
    """Read an image as `hypernet_d2.utils.images.as_shown` describes, in a format of detectron2's.

    Args:
        path: of a file, or an address that detectron2's ``PathManager`` knows.
        format: "BGR", "YUV-BT.601" or a mode of Pillow, as in detectron2's ``read_image``.

    Raises:
        ValueError: it is missing, truncated or no image; the file is named.
    """
    try:
        with PathManager.open(os.fspath(path), "rb") as file, Image.open(file) as image:
            return convert_PIL_to_numpy(as_shown(image), format)
    except Exception as error:  # damaged files make Pillow raise errors of every kind
        raise ValueError(f"{path}: cannot be read as an image: {error}") from error


class NamedErrorDatasetMapper(DatasetMapper):
    """`detectron2.data.DatasetMapper` with `read_named` as its reader, and errors that name the
    image. It cuts out the ``tile`` of a dataset dict, see `hypernet_d2.data.tiles`.

    Raises:
        ValueError: the image of the dataset dict is missing, truncated, no image or of another
            size than the dict says, or its annotations do not fit the settings.
    """

    @configurable
    def __init__(self, is_train: bool, *, min_visible: float = 0.0, **kwargs):
        """
        Args:
            is_train: whether annotations are loaded.
            min_visible: objects of which the augmented image shows a smaller share of the box are
                left out.
            kwargs: arguments of the stock mapper.
        """
        super().__init__(is_train, **kwargs)
        self.min_visible = min_visible

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> dict:
        """The stock mapper's keys, ``MODEL.HYPERNET.AUGMENT`` and ``TILES.TRAIN_SIZE``."""
        options = super().from_config(cfg, is_train)
        if is_train:
            ours = hypernet_node(cfg)
            options["min_visible"] = ours.AUGMENT.MIN_VISIBLE
            options["augmentations"] = add_augmentations(cfg, options["augmentations"])
            if ours.TILES.TRAIN_SIZE or ours.AUGMENT.SCALE:
                # As the stock one does for crops: around what a tile or a crop shows of a mask.
                options["recompute_boxes"] = options["use_instance_mask"]
        return options

    def __call__(self, dataset_dict: dict) -> dict:
        file_name = dataset_dict["file_name"]
        try:
            image = read_named(file_name, self.image_format)
        except ValueError as error:
            raise ValueError(
                f"{error}; 'python -m hypernet_d2 inspect-data --dataset NAME --check-images' "
                "lists all such images of a data set"
            ) from error
        try:
            return self._map(copy.deepcopy(dataset_dict), image)
        except SizeMismatchError:
            raise
        except Exception as error:
            if str(file_name) in str(error):
                raise
            message = f"{file_name}: cannot be used: {type(error).__name__}: {error}"
            raise ValueError(message) from error

    def _map(self, dataset_dict: dict, image: np.ndarray) -> dict:
        """The stock ``__call__`` after its reading of the image, which has no hook of its own."""
        check_image_size(dataset_dict, image)
        sem_seg = dataset_dict.pop("sem_seg_file_name", None)
        if sem_seg is not None:
            sem_seg = read_image(sem_seg, "L").squeeze(2)
        augmented = T.AugInput(image, sem_seg=sem_seg)
        cut = T.TransformList([])
        if "tile" in dataset_dict:
            cut += T.TransformList([tile_transform(dataset_dict)])
            augmented.transform(cut)
        transforms = cut + self.augmentations(augmented)
        image_shape = augmented.image.shape[:2]
        dataset_dict["image"] = torch.from_numpy(
            np.ascontiguousarray(augmented.image.transpose(2, 0, 1))
        )
        if sem_seg is not None:
            dataset_dict["sem_seg"] = torch.from_numpy(augmented.sem_seg.astype("long"))
        if self.proposal_topk is not None:
            transform_proposals(
                dataset_dict, image_shape, transforms, proposal_topk=self.proposal_topk
            )
        if not self.is_train:
            dataset_dict.pop("annotations", None)
        elif "annotations" in dataset_dict:
            self._transform_annotations(dataset_dict, transforms, image_shape)
        return dataset_dict

    def _transform_annotations(self, dataset_dict, transforms, image_shape) -> None:
        """The stock method, without crowds and objects of which too little is visible."""
        objects = [one for one in dataset_dict["annotations"] if not one.get("iscrowd", 0)]
        if self.min_visible > 0:
            objects = [
                one
                for one in objects
                if visible_share(one, transforms, image_shape) >= self.min_visible
            ]
        if objects:
            dataset_dict["annotations"] = objects
            super()._transform_annotations(dataset_dict, transforms, image_shape)
        else:  # the stock method may compute boxes from masks, of which there are none
            del dataset_dict["annotations"]
            dataset_dict["instances"] = annotations_to_instances([], image_shape)
