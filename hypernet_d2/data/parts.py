"""Part labels of objects: their format in dataset dicts, and the mapper that loads them.

An annotation of a dataset dict carries them as ``parts``, either of

- a list with one item per part, in the order of the metadata's ``part_names``: a mask of the part
  as COCO's compressed RLE of the image's size, or None if the object lacks the part. A pixel of
  two parts gets the later one.
- a path of a label image: one channel of integers, of the image's size, 0 for no part of this
  object and p + 1 for its part p, counted from 0.

From a COCO json the key is read with ``load_coco_json(..., extra_annotation_keys=["parts"])``. The
metadata's ``part_flip_map`` lists the pairs of parts that a horizontal flip exchanges, as
``keypoint_flip_map`` does for keypoints; it is not needed if no part is left or right.
"""

from __future__ import annotations

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import MetadataCatalog
from detectron2.data import transforms as T
from detectron2.data.detection_utils import check_metadata_consistency
from detectron2.structures import Instances
from PIL import Image
from pycocotools import mask as coco_mask

from hypernet_d2.utils.coco_json import check_segmentation

from .dataset_mapper import NamedErrorDatasetMapper

__all__ = ["PartDatasetMapper", "has_parts", "load_part_labels"]


def has_parts(cfg: CfgNode) -> bool:
    """Whether the config's model labels parts."""
    return cfg.MODEL.MASK_ON and cfg.MODEL.ROI_MASK_HEAD.NAME == "HypercolumnPartHead"


def load_part_labels(
    parts: str | list[dict | None], image_size: tuple[int, int], num_parts: int, source: str
) -> np.ndarray:
    """The part labels of one object, in one of the formats of this module.

    Args:
        parts: the value of an annotation's ``parts``.
        image_size: (H, W) of the image.
        num_parts: number of parts.
        source: file of the image, for error messages if ``parts`` is no path.

    Returns:
        (H, W) uint8: 0 no part, p + 1 part p.

    Raises:
        ValueError: naming the file, if the labels have another size than the image, are not in 0
            to ``num_parts``, or cannot be read.
    """
    labels = _read_labels(parts) if isinstance(parts, str) else _decode(parts, num_parts, source)
    source = parts if isinstance(parts, str) else source
    if labels.shape != tuple(image_size):
        raise ValueError(
            f"{source}: part labels have the shape {labels.shape}; expected the image's, "
            f"{tuple(image_size)}"
        )
    if labels.max(initial=0) > num_parts or labels.min(initial=0) < 0:
        raise ValueError(
            f"{source}: part labels run from {labels.min()} to {labels.max()}; expected 0 to "
            f"{num_parts}, 0 being no part (MODEL.HYPERNET.HYPERCOLUMN.NUM_PARTS, or part_names)"
        )
    return labels.astype(np.uint8)


def _read_labels(path: str) -> np.ndarray:
    try:
        with Image.open(path) as image:
            return np.array(image)
    except (OSError, SyntaxError) as error:
        raise ValueError(f"{path}: cannot be read as an image of part labels: {error}") from error


def _decode(parts: list[dict | None], num_parts: int, source: str) -> np.ndarray:
    if not isinstance(parts, list) or len(parts) != num_parts or not any(parts):
        raise ValueError(
            f"{source}: an object's parts are {str(parts)[:100]!r}; expected the path of a label "
            f"image or a list of {num_parts} RLEs, None for a part that is not there, but not only "
            "None"
        )
    for rle in filter(None, parts):
        try:
            check_segmentation(rle, None)
        except ValueError as error:
            raise ValueError(f"{source}: parts: {error}") from error
    sizes = {tuple(rle["size"]) for rle in parts if rle}
    if len(sizes) > 1:
        raise ValueError(f"{source}: the parts of an object have several sizes: {sorted(sizes)}")
    labels = np.zeros(sizes.pop(), np.int64)
    for part, rle in enumerate(parts):
        if rle:
            labels[coco_mask.decode(rle) > 0] = part + 1
    return labels


class PartDatasetMapper(NamedErrorDatasetMapper):
    """The stock mapper, which also loads ``parts`` and augments them.

    The instances of a training image get ``gt_parts`` (n, H, W) uint8 in the augmented image: 0 no
    part, p + 1 part p. Masks are not loaded, since the part labels cover the object.

    Raises (when called):
        ValueError: naming the file, for an object without ``parts`` and as
            :func:`load_part_labels` does.
    """

    @configurable
    def __init__(
        self, is_train: bool, *, num_parts: int, hflip_labels: list[int] | None = None, **kwargs
    ):
        """
        Args:
            is_train: whether annotations are loaded.
            num_parts: number of parts.
            hflip_labels: label after a horizontal flip, for each label from 0; None changes none.
            kwargs: arguments of the stock mapper.
        """
        super().__init__(is_train, **kwargs)
        self.num_parts = num_parts
        self.hflip_labels = None if hflip_labels is None else np.array(hflip_labels, np.uint8)

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> dict:
        """The stock mapper's keys and ``MODEL.HYPERNET.HYPERCOLUMN.NUM_PARTS``."""
        num_parts = cfg.MODEL.HYPERNET.HYPERCOLUMN.NUM_PARTS
        return {
            **super().from_config(cfg, is_train),
            "use_instance_mask": False,
            "recompute_boxes": False,
            "num_parts": num_parts,
            "hflip_labels": _hflip_labels(cfg.DATASETS.TRAIN, num_parts),
        }

    def _transform_annotations(self, dataset_dict, transforms, image_shape) -> None:
        # One object at a time, since the stock method removes objects outside of the crop.
        annotations = [a for a in dataset_dict["annotations"] if a.get("iscrowd", 0) == 0]
        if not annotations:
            super()._transform_annotations(dataset_dict, transforms, image_shape)
            dataset_dict["instances"].gt_parts = torch.zeros(0, *image_shape, dtype=torch.uint8)
            return
        objects = []
        for annotation in annotations:
            labels = self._labels(annotation, dataset_dict, transforms)
            one = {"annotations": [annotation]}
            super()._transform_annotations(one, transforms, image_shape)
            one["instances"].gt_parts = labels.expand(len(one["instances"]), -1, -1)
            objects.append(one["instances"])
        del dataset_dict["annotations"]
        dataset_dict["instances"] = Instances.cat(objects)

    def _labels(self, annotation: dict, dataset_dict: dict, transforms: T.TransformList):
        """(H, W) uint8, of the augmented image."""
        source = dataset_dict["file_name"]
        if "parts" not in annotation:
            raise ValueError(f"{source}: an object has no parts, only {sorted(annotation)}")
        size = dataset_dict["height"], dataset_dict["width"]
        labels = load_part_labels(annotation.pop("parts"), size, self.num_parts, source)
        labels = transforms.apply_segmentation(labels)
        flips = sum(isinstance(t, T.HFlipTransform) for t in transforms.transforms)
        if flips % 2 and self.hflip_labels is not None:
            labels = self.hflip_labels[labels]
        return torch.from_numpy(np.array(labels, order="C"))  # a copy: some are read-only


def _hflip_labels(dataset_names: tuple[str, ...], num_parts: int) -> list[int] | None:
    """The label after a horizontal flip, for each label, from the metadata of the training sets."""
    check_metadata_consistency("part_names", dataset_names)
    metadata = MetadataCatalog.get(dataset_names[0])
    names = list(metadata.part_names)
    if len(names) != num_parts:
        raise ValueError(
            f"MODEL.HYPERNET.HYPERCOLUMN.NUM_PARTS is {num_parts}, but {dataset_names[0]!r} has "
            f"the parts {names}"
        )
    pairs = dict(metadata.get("part_flip_map", ()))
    pairs |= {b: a for a, b in pairs.items()}
    return [0, *(names.index(pairs.get(name, name)) + 1 for name in names)] if pairs else None
