"""Augmentation of training images from ``MODEL.HYPERNET.AUGMENT``, with detectron2's transforms."""

from __future__ import annotations

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.data import transforms as T
from detectron2.structures import BoxMode
from torchvision.transforms.functional import adjust_hue

from hypernet_d2.config import hypernet_node

__all__ = [
    "RandomHue",
    "ScaleJitter",
    "add_augmentations",
    "check_augmentation",
    "visible_share",
]

NODE = "MODEL.HYPERNET.AUGMENT"
CROPS = ("relative_range", "relative", "absolute", "absolute_range")
FLIPS = ("horizontal", "vertical", "none")


class ScaleJitter(T.Augmentation):
    """`detectron2.data.transforms.ResizeShortestEdge` times a random factor.

    An image that the factor makes larger is cropped at random to its size without the factor, so
    that no image needs more memory.
    """

    def __init__(self, resize: T.ResizeShortestEdge, low: float, high: float):
        """
        Args:
            resize: gives the size without the factor.
            low: the least factor.
            high: the largest factor.
        """
        super().__init__()
        self._init(locals())

    def __call__(self, aug_input: T.AugInput) -> T.Transform:
        """Augment in place, and return the transform."""
        size = aug_input.image.shape[:2]
        resized = self.resize.get_transform(aug_input.image)
        if isinstance(resized, T.ResizeTransform):  # not for INPUT.MIN_SIZE_TRAIN 0
            size = resized.new_h, resized.new_w
        # Not FixedSizeCrop, which draws one random number for both axes.
        steps = [T.ResizeScale(self.low, self.high, *size), T.RandomCrop("absolute", size)]
        return T.AugmentationList(steps)(aug_input)


class RandomHue(T.Augmentation):
    """Shift the hue by a random part of the color circle, in [-shift, shift]."""

    def __init__(self, shift: float):
        super().__init__()
        self._init(locals())

    def get_transform(self, image: np.ndarray) -> T.Transform:
        """
        Args:
            image: (H, W, 3) uint8, RGB or BGR: the order only changes the sign of the shift.
        """
        shift = self._rand_range(-self.shift, self.shift)
        return T.PILColorTransform(lambda picture: adjust_hue(picture, shift))


def add_augmentations(cfg: CfgNode, stock: list[T.Augmentation]) -> list[T.Augmentation]:
    """The stock augmentations of a config, and those of ``MODEL.HYPERNET.AUGMENT``.

    Colors are changed last, in the resized image.
    """
    settings = hypernet_node(cfg).AUGMENT
    result = list(stock)
    if settings.SCALE:
        result = [
            ScaleJitter(one, *settings.SCALE) if isinstance(one, T.ResizeShortestEdge) else one
            for one in result
        ]
    if settings.VERTICAL_FLIP:
        result.append(T.RandomFlip(settings.VERTICAL_FLIP, horizontal=False, vertical=True))
    if settings.ROTATE_90:
        result.append(T.RandomRotation([0, 90, 180, 270], sample_style="choice"))
    if settings.BRIGHTNESS:
        result.append(T.RandomBrightness(1 - settings.BRIGHTNESS, 1 + settings.BRIGHTNESS))
    if settings.CONTRAST:
        result.append(T.RandomContrast(1 - settings.CONTRAST, 1 + settings.CONTRAST))
    if settings.SATURATION:
        result.append(T.RandomSaturation(1 - settings.SATURATION, 1 + settings.SATURATION))
    if settings.HUE:
        result.append(RandomHue(settings.HUE))
    return result


def visible_share(
    annotation: dict, transforms: T.TransformList, image_size: tuple[int, int]
) -> float:
    """The share of an object's box that an augmented image shows.

    Args:
        annotation: of the original image, with an upright ``bbox``.
        transforms: of the augmentation.
        image_size: (H, W) of the augmented image.
    """
    box = BoxMode.convert(annotation["bbox"], annotation["bbox_mode"], BoxMode.XYXY_ABS)
    x0, y0, x1, y1 = transforms.apply_box(np.array([box], dtype=float))[0]
    height, width = image_size
    seen_width = max(min(x1, width) - max(x0, 0), 0)
    seen_height = max(min(y1, height) - max(y0, 0), 0)
    return seen_width * seen_height / max((x1 - x0) * (y1 - y0), np.finfo(float).tiny)


def check_augmentation(cfg: CfgNode) -> None:
    """
    Raises:
        ValueError: a key of ``MODEL.HYPERNET.AUGMENT`` is out of its range; colors are changed in
            images that are not RGB or BGR; or vertical flips exchange left and right in keypoints
            or parts, whose names detectron2 exchanges for horizontal flips only.
    """
    settings = hypernet_node(cfg).AUGMENT
    scale = list(settings.SCALE)
    if scale and not (len(scale) == 2 and 0 < scale[0] <= scale[1]):
        raise ValueError(
            f"{NODE}.SCALE is {scale}; expected [] or [low, high] with 0 < low <= high"
        )
    limits = {
        "MIN_VISIBLE": 1,
        "VERTICAL_FLIP": 1,
        "BRIGHTNESS": 1,
        "CONTRAST": 1,
        "SATURATION": 1,
        "HUE": 0.5,
    }
    for key, limit in limits.items():
        if not 0 <= settings[key] <= limit:
            raise ValueError(f"{NODE}.{key} is {settings[key]}; expected 0 to {limit}")
    colors = [key for key in ("SATURATION", "HUE") if settings[key]]
    if colors and cfg.INPUT.FORMAT not in ("RGB", "BGR"):
        raise ValueError(
            f"{NODE}.{colors[0]} is {settings[colors[0]]} and INPUT.FORMAT {cfg.INPUT.FORMAT!r}; "
            "expected INPUT.FORMAT 'RGB' or 'BGR'"
        )
    if cfg.INPUT.RANDOM_FLIP not in FLIPS:
        raise ValueError(
            f"INPUT.RANDOM_FLIP is {cfg.INPUT.RANDOM_FLIP!r}; expected one of {list(FLIPS)}; for "
            f"both flips 'horizontal' and {NODE}.VERTICAL_FLIP 0.5"
        )
    crop = cfg.INPUT.CROP
    if crop.ENABLED:
        largest = 1 if crop.TYPE.startswith("relative") else np.inf
        sides = list(crop.SIZE)
        if crop.TYPE not in CROPS or len(sides) != 2 or not all(0 < s <= largest for s in sides):
            raise ValueError(
                f"INPUT.CROP.TYPE is {crop.TYPE!r} and INPUT.CROP.SIZE {sides}; expected one of "
                f"{list(CROPS)} and two numbers: relative ones in (0, 1], absolute ones in pixels"
            )
    if settings.VERTICAL_FLIP or cfg.INPUT.RANDOM_FLIP == "vertical":
        _check_vertical_flips(cfg)


def _check_vertical_flips(cfg: CfgNode) -> None:
    maps = {"keypoint_flip_map": cfg.MODEL.KEYPOINT_ON, "part_flip_map": cfg.MODEL.MASK_ON}
    for name in cfg.DATASETS.TRAIN:
        for key, used in maps.items():
            if used and MetadataCatalog.get(name).get(key):
                raise ValueError(
                    f"images are flipped vertically ({NODE}.VERTICAL_FLIP or INPUT.RANDOM_FLIP), "
                    f"but data set {name!r} has left and right ({key}), which only a horizontal "
                    "flip exchanges; expected no vertical flips"
                )
