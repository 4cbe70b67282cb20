"""Scenes: a background, the digits pasted onto it, and their annotations.

Shapes: H x W a scene (240 x 320), h x w a patch (the part of a scene that holds one digit).
Annotations are computed in integers, so that they are the same on every platform; pixel values may
differ by the rounding of the JPEG decoder that opens the photographs.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from PIL import Image

from .glyphs import CLASSES, FULL_COVERAGE, KEYPOINTS, choose_threshold, extent, make_glyph, render

PARTS = ("upper", "middle", "lower")

MAX_ROTATION = 30  # degrees in both directions; larger angles turn a 6 into a 9
MIN_VISIBLE = 0.6  # of a digit's pixels; digits below that are removed from the scene
# The scans are sorted by writer, so the two splits also have different writers.
SCANS = {"train": slice(0, 1400), "val": slice(1400, None)}
COLUMNS = {"train": (0, 416), "val": (424, 640)}  # of the photographs, 427 x 640 pixels
LUMINANCE = np.array([299, 587, 114])  # of R, G, B, in thousandths


class Layout(NamedTuple):
    """The size of a scene and of what it holds, in pixels.

    Attributes:
        height, width: of the scene, as 3 to 4.
        digit_heights: from the smallest to the largest, before rotation.
        digits: how many, from the fewest to the most.
    """

    height: int = 240
    width: int = 320
    digit_heights: tuple[int, int] = (8, 90)
    digits: tuple[int, int] = (4, 10)


SCENE = Layout()


@dataclass(frozen=True)
class Source:
    """The material of the scenes of a split.

    Attributes:
        scans: for each digit, its scans (n, 8, 8), ink of 0..16.
        thresholds: for each digit, the ink (n,) above which a point of the scan is part of it.
        photographs: RGB, cropped to the columns of the split.
    """

    scans: list[np.ndarray]
    thresholds: list[np.ndarray]
    photographs: list[Image.Image]


@dataclass
class Digit:
    """A digit in a scene.

    Attributes:
        digit: 0..9.
        corner: (y, x) of the patch in the scene.
        coverage: (h, w), 0..16.
        thirds: (h, w), 0 upper, 1 middle, 2 lower.
        keypoints: pixels (x, y) in the scene.
        hue, saturation: 0..255.
        contrast: difference in luminance to the background.
        brighter: whether to be brighter than the background if both are possible.
    """

    digit: int
    corner: tuple[int, int]
    coverage: np.ndarray
    thirds: np.ndarray
    keypoints: list[tuple[int, int]]
    hue: int
    saturation: int
    contrast: int
    brighter: bool

    @property
    def mask(self) -> np.ndarray:
        return self.coverage > FULL_COVERAGE // 2

    @property
    def area_in_scene(self) -> tuple[slice, slice]:
        (y, x), (h, w) = self.corner, self.coverage.shape
        return slice(y, y + h), slice(x, x + w)


def load_source(split: str) -> Source:
    """Load the scans and photographs of a split from scikit-learn.

    Raises:
        ImportError: scikit-learn is missing.
    """
    try:
        from sklearn.datasets import load_digits, load_sample_images
    except ImportError as error:
        raise ImportError(
            "The digits are made from scans and photographs that scikit-learn ships, and it is "
            "not installed: pip install scikit-learn"
        ) from error
    data = load_digits()
    images, labels = data.images[SCANS[split]], data.target[SCANS[split]]
    thresholds = np.array(
        [choose_threshold(i, int(n)) for i, n in zip(images, labels, strict=True)]
    )
    chosen = [(labels == digit) & (thresholds > 0) for digit in range(len(CLASSES))]
    start, stop = COLUMNS[split]
    photographs = [Image.fromarray(image[:, start:stop]) for image in load_sample_images().images]
    return Source([images[c] for c in chosen], [thresholds[c] for c in chosen], photographs)


def make_scene(
    source: Source, rng: np.random.Generator, layout: Layout = SCENE
) -> tuple[np.ndarray, list[Digit]]:
    """A scene (H, W, 3), uint8 RGB, and its digits from back to front."""
    scene = _make_background(source.photographs, rng, layout)
    digits: list[Digit] = []
    for _ in range(rng.integers(*layout.digits, endpoint=True)):
        digits.append(_draw_digit(source, rng, digits, layout))
    digits = _remove_covered(digits, layout)
    pasted = np.zeros((layout.height, layout.width), bool)
    for digit in digits:
        _paste(scene, pasted, digit)
    return scene, digits


def _make_background(
    photographs: list[Image.Image], rng: np.random.Generator, layout: Layout
) -> np.ndarray:
    """A crop of a photograph, resized to (H, W), flipped, tinted, of reduced contrast."""
    photograph = photographs[rng.integers(len(photographs))]
    width = int(rng.integers(120, 208, endpoint=True))
    height = width * layout.height // layout.width
    left = int(rng.integers(photograph.width - width, endpoint=True))
    top = int(rng.integers(photograph.height - height, endpoint=True))
    flips, hue_shift = rng.integers(4), int(rng.integers(256))
    contrast, brightness = rng.integers(100, 200), rng.integers(-50, 50)
    crop = photograph.crop((left, top, left + width, top + height))
    hue, saturation, value = crop.convert("HSV").split()
    hue = hue.point([(i + hue_shift) % 256 for i in range(256)])
    crop = Image.merge("HSV", (hue, saturation, value)).convert("RGB")
    rgb = np.array(crop.resize((layout.width, layout.height), Image.Resampling.BICUBIC)).astype(
        np.int64
    )
    rgb = (((rgb - 128) * contrast) >> 8) + 128 + brightness
    rgb = rgb[:: 1 - 2 * (flips & 1), :: 1 - (flips & 2)]
    return np.ascontiguousarray(np.clip(rgb, 0, 255).astype(np.uint8))


def _draw_digit(
    source: Source, rng: np.random.Generator, others: list[Digit], layout: Layout
) -> Digit:
    """A random digit. One in four is placed next to another digit, so that digits overlap."""
    digit = int(rng.integers(len(CLASSES)))
    scan = int(rng.integers(len(source.scans[digit])))
    glyph = make_glyph(source.scans[digit][scan], source.thresholds[digit][scan])
    low, high = layout.digit_heights
    height = int(low * (high / low) ** rng.random())  # log-uniform
    angle = int(rng.integers(-MAX_ROTATION, MAX_ROTATION, endpoint=True))
    coverage, thirds, keypoints = render(glyph, height, angle)
    h, w = coverage.shape
    last_y, last_x = layout.height - h, layout.width - w
    y, x = int(rng.integers(last_y, endpoint=True)), int(rng.integers(last_x, endpoint=True))
    if rng.integers(4) == 0 and others:
        other = others[rng.integers(len(others))]
        (oy, ox), (oh, ow) = other.corner, other.coverage.shape
        y = oy + (oh - h) // 2 + int(rng.integers(-oh, oh, endpoint=True)) // 2
        x = ox + (ow - w) // 2 + (ow + w) * int(rng.choice([-1, 1])) * 3 // 8
        y, x = min(max(y, 0), last_y), min(max(x, 0), last_x)
    return Digit(
        digit=digit,
        corner=(y, x),
        coverage=coverage,
        thirds=thirds,
        keypoints=[(x + px, y + py) for px, py in keypoints],
        hue=int(rng.integers(256)),
        saturation=int(rng.integers(64, 256)),
        contrast=int(rng.integers(60, 105)),
        brighter=bool(rng.integers(2)),
    )


def _remove_covered(digits: list[Digit], layout: Layout) -> list[Digit]:
    """The digits of which at least MIN_VISIBLE of the pixels are visible, from back to front."""
    covered = np.zeros((layout.height, layout.width), bool)
    kept = []
    for digit in reversed(digits):
        area, mask = covered[digit.area_in_scene], digit.mask
        if (mask & ~area).sum() >= MIN_VISIBLE * mask.sum():
            area |= mask
            kept.append(digit)
    return kept[::-1]


def _paste(scene: np.ndarray, pasted: np.ndarray, digit: Digit) -> None:
    """Blend a digit into the scene, in a color that contrasts with the pixels below it.

    Args:
        scene: (H, W, 3), changed in place.
        pasted: (H, W), bool, the pixels of the digits pasted before; changed in place.
    """
    patch, digits_below = scene[digit.area_in_scene], pasted[digit.area_in_scene]
    # Weights by area: the color must also differ from a digit that has few pixels in the patch.
    ground, below = max((~digits_below).sum(), 1), max(digits_below.sum(), 1)
    color = _choose_color(patch, np.where(digits_below, 0.7 / below, 1 / ground), digit)
    coverage = digit.coverage[..., None]
    total = FULL_COVERAGE
    patch[...] = (patch * (total - coverage) + color * coverage + total // 2) // total
    digits_below |= digit.mask


def _choose_color(patch: np.ndarray, weights: np.ndarray, digit: Digit) -> np.ndarray:
    """A color (RGB) of the digit's hue whose luminance contrasts with the patch (h, w, 3).

    The chosen luminance is the one with the smallest weight (h, w) of pixels whose luminance
    differs from it by less than the digit's contrast. Among equals it is the nearest to the mean of
    the patch, so that the contrast is not larger than requested.
    """
    luminance = patch @ LUMINANCE // 1000
    levels = np.bincount(luminance.ravel(), weights.ravel(), minlength=256).cumsum()
    targets = np.arange(256)
    above = levels[np.minimum(targets + digit.contrast, 255)]
    below = np.where(targets > digit.contrast, levels[targets - digit.contrast], 0)
    similar = above - below
    least = targets[similar <= similar.min() + 0.03]
    mean = int(luminance.mean())
    preferred = least[(least > mean) == digit.brighter]
    candidates = preferred if preferred.size else least
    target = int(candidates[np.abs(candidates - mean).argmin()])
    pixel = Image.new("HSV", (1, 1), (digit.hue, 255, 255)).convert("RGB").getpixel((0, 0))
    tint = np.array(pixel) - np.array(pixel) @ LUMINANCE // 1000
    # The strongest tint that keeps the luminance and stays in 0..255.
    room = np.where(tint > 0, 255 - target, target)
    scale = min(r / abs(t) for r, t in zip(room, tint, strict=True) if t) * digit.saturation / 255
    return np.clip(np.rint(target + scale * tint), 0, 255).astype(np.int64)


def annotate(digits: list[Digit], layout: Layout = SCENE) -> list[dict]:
    """COCO annotations of the visible pixels, without ``id`` and ``image_id``.

    Raises:
        ImportError: pycocotools is missing.
    """
    covered = np.zeros((layout.height, layout.width), bool)
    annotations = []
    for digit in reversed(digits):
        visible = np.zeros((layout.height, layout.width), bool)
        visible[digit.area_in_scene] = digit.mask & ~covered[digit.area_in_scene]
        thirds = np.zeros((layout.height, layout.width), np.int64)
        thirds[digit.area_in_scene] = digit.thirds
        (y1, y2), (x1, x2) = extent(visible.any(1)), extent(visible.any(0))
        annotations.append(
            {
                "category_id": digit.digit + 1,
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "area": int(visible.sum()),
                "iscrowd": 0,
                "segmentation": _encode(visible),
                "keypoints": [
                    value for x, y in digit.keypoints for value in (x, y, 1 if covered[y, x] else 2)
                ],
                "num_keypoints": len(KEYPOINTS),
                "parts": [_encode(visible & (thirds == part)) for part in range(len(PARTS))],
            }
        )
        covered |= visible
    return annotations[::-1]


def _encode(mask: np.ndarray) -> dict:
    """The compressed RLE of a mask (H, W)."""
    try:
        from pycocotools import mask as coco_mask
    except ImportError as error:
        raise ImportError(
            "The masks of the digits are stored by pycocotools, which is not installed: "
            "pip install pycocotools"
        ) from error
    rle = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": rle["size"], "counts": rle["counts"].decode("ascii")}
