"""digits: scenes of handwritten digits over photographs, generated from what scikit-learn ships.

Each scene pastes real scans of digits (``sklearn.datasets.load_digits``, 8 x 8 pixels) with varying
size, rotation and colour onto a crop of one of scikit-learn's two photographs. Boxes, masks,
keypoints and parts come from the pasted pixels, so they are exact. The training and the validation
scenes share no scan and no pixel of a photograph.

Geometry is computed in integers, so the annotations are the same on every platform; pixel values
may differ by the rounding of the JPEG decoder that opens the photographs.

Shapes: H x W the scene (240 x 320), G x G a glyph (a scan, smoothly enlarged to a binary shape),
h x w a patch (the part of a scene that holds one digit). Nothing here needs detectron2.
"""

import functools
import json
import logging
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from .paths import cache_root, datasets_root

CLASSES = tuple("0123456789")
SPLITS = {"train": 400, "val": 100}  # number of scenes
KEYPOINTS = ("top", "bottom", "left", "right", "center")
# A mirrored digit has its left end where the right one was.
KEYPOINT_FLIP_MAP = (("left", "right"),)
KEYPOINT_CONNECTIONS = (
    ("top", "center", (255, 128, 0)),
    ("bottom", "center", (0, 128, 255)),
    ("left", "center", (255, 0, 128)),
    ("right", "center", (0, 255, 128)),
)
PARTS = ("upper", "middle", "lower")
JSON_NAME = "annotations.json"

# Part of the cache's name: raise it whenever the generated scenes change.
VERSION = 2
HEIGHT, WIDTH = 240, 320
_DIGIT_HEIGHTS = (8, 90)  # pixels, before rotation
_MAX_ROTATION = 30  # degrees either way; more would make a 6 of a 9
_DIGITS_PER_SCENE = (4, 10)
_MIN_VISIBLE = 0.6  # of a digit's pixels, else it is left out of the scene
# The scans are in the order of their writers, so a cut also keeps the writers apart.
_SCANS = {"train": slice(0, 1400), "val": slice(1400, None)}
# The holes that make a digit legible. At 8 x 8 pixels some scans show others, at any cut.
_HOLES = ((1,), (0,), (0,), (0,), (0, 1), (0,), (1,), (0,), (2,), (1,))
_CUTS = (7, 8, 9, 6, 10)  # ink of 0..16 from which on a point belongs to the digit, in this order
_COLUMNS = {"train": (0, 416), "val": (424, 640)}  # of the photographs, 427 x 640 pixels
_CELL = 32  # glyph pixels a scan pixel
_GLYPH = 10 * _CELL  # G: 8 scan pixels and one of margin at each side
_SUPERSAMPLING = 4  # samples a pixel and axis
_FRACTION = 16  # bits after the point in fixed-point coordinates

_LUMINANCE = np.array([299, 587, 114])  # of R, G, B, in thousandths

logger = logging.getLogger(__name__)


def digits_root() -> Path:
    """The folder of the generated scenes: ``$DETECTRON2_DATASETS/digits`` or a cache folder.

    The cache folder, ``$XDG_CACHE_HOME/hypernet_d2/digits``, is taken where the former holds no
    scenes of this version and cannot be written: ``$DETECTRON2_DATASETS`` does not exist, or it or
    the folder digits in it is read-only.
    """
    preferred = datasets_root() / "digits"
    if any(preferred.glob(f"*-v{VERSION}-*")):
        return preferred
    parent = preferred if preferred.is_dir() else preferred.parent
    # Root may write everywhere, but a folder whose mode lets no one write is to be left alone.
    if parent.is_dir() and parent.stat().st_mode & 0o222 and os.access(parent, os.W_OK):
        return preferred
    return cache_root() / "digits"


def generate_digits(
    root: str | Path, split: str, seed: int = 0, num_images: int | None = None
) -> Path:
    """Make the scenes of a split under ``root``, unless they are there, and say where.

    The folder is written under another name and renamed when it is complete, so a process that is
    killed leaves no half of it (only its scratch folder, whose name starts with a dot), and of two
    processes that generate at once one's work is kept.
    Scene i depends on ``split``, ``seed`` and i only, so fewer scenes are the first of more.

    Args:
        root: folder of the generated folders.
        split: "train" (400 scenes) or "val" (100).
        seed: another seed gives other scenes of the same kind.
        num_images: number of scenes, to override the split's.

    Returns:
        A folder with the scenes (png, 320 x 240) and ``annotations.json``, COCO's format: box,
        mask (compressed RLE), five keypoints (visibility 2 seen, 1 covered by a later digit) and
        ``parts``, the RLE of the visible pixels in the upper, middle and lower third of the digit
        as it stands upright.

    Raises:
        ValueError: an unknown split.
        ImportError: scikit-learn or pycocotools is missing.
    """
    if split not in SPLITS:
        raise ValueError(f"split of the digits is {split!r}, expected one of {list(SPLITS)}")
    num_images = SPLITS[split] if num_images is None else num_images
    root = Path(root)
    folder = root / f"{split}-v{VERSION}-seed{seed}-n{num_images}"
    if folder.is_dir():
        return folder
    source = _load_source(split)
    root.mkdir(parents=True, exist_ok=True)
    logger.info(f"Generating {num_images} scenes of digits in {folder}")
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=root) as scratch:
        partial = Path(scratch) / folder.name
        partial.mkdir()
        _write_scenes(partial, source, split, seed, num_images)
        try:
            partial.rename(folder)
        except OSError:
            # A folder cannot be renamed onto one with files in it: another process was first.
            if not folder.is_dir():
                raise
    return folder


@dataclass(frozen=True)
class _Source:
    """What scenes are made of: for each digit its scans (n, 8, 8) of 0..16 with the ink (n,) at
    which to cut each, and the photographs."""

    scans: list[np.ndarray]
    cuts: list[np.ndarray]
    photographs: list[Image.Image]


@dataclass
class _Digit:
    """A digit in a scene. ``alpha`` (h, w) 0..16 and ``mask`` (h, w) lie at ``corner`` (y, x)."""

    digit: int
    corner: tuple[int, int]
    alpha: np.ndarray
    thirds: np.ndarray  # (h, w), 0 upper, 1 middle, 2 lower
    keypoints: list[tuple[int, int]]  # x, y: the pixel
    hue: int  # 0..255
    saturation: int  # 0..255
    contrast: int  # distance of luminance to the background
    brighter: bool  # than the background, where both are possible

    @property
    def mask(self) -> np.ndarray:
        return self.alpha > _SUPERSAMPLING**2 // 2

    @property
    def area_in_scene(self) -> tuple[slice, slice]:
        (y, x), (h, w) = self.corner, self.alpha.shape
        return slice(y, y + h), slice(x, x + w)


def _load_source(split: str) -> _Source:
    try:
        from sklearn.datasets import load_digits, load_sample_images
    except ImportError as error:
        raise ImportError(
            "The digits are made from scans and photographs that scikit-learn ships, and it is "
            "not installed: pip install scikit-learn"
        ) from error
    data = load_digits()
    images, labels = data.images[_SCANS[split]], data.target[_SCANS[split]]
    cuts = np.array([_find_cut(i, int(n)) for i, n in zip(images, labels, strict=True)])
    chosen = [(labels == digit) & (cuts > 0) for digit in range(len(CLASSES))]
    start, stop = _COLUMNS[split]
    photographs = [Image.fromarray(image[:, start:stop]) for image in load_sample_images().images]
    return _Source([images[c] for c in chosen], [cuts[c] for c in chosen], photographs)


def _find_cut(scan: np.ndarray, digit: int) -> int:
    """The first cut that leaves one piece with the digit's number of holes; 0 where none does."""
    from scipy.ndimage import label  # scikit-learn brings it

    matrix, divisor = _enlargement()
    coarse = matrix[_CELL // 8 :: _CELL // 4]
    ink = coarse @ np.pad(scan, 1) @ coarse.T
    for cut in _CUTS:
        shape = ink > cut * divisor**2
        pieces = label(shape, np.ones((3, 3)))[1]
        holes = label(~shape)[1] - 1
        if pieces == 1 and holes in _HOLES[digit]:
            return cut
    return 0


def _write_scenes(folder: Path, source: _Source, split: str, seed: int, num_images: int) -> None:
    images, annotations = [], []
    for index in range(num_images):
        rng = np.random.default_rng([seed, list(SPLITS).index(split), index])
        scene, digits = _make_scene(source, rng)
        name = f"{index:06d}.png"
        Image.fromarray(scene).save(folder / name, compress_level=1)
        images.append({"id": index + 1, "file_name": name, "height": HEIGHT, "width": WIDTH})
        for annotation in _annotate(digits):
            ids = {"id": len(annotations) + 1, "image_id": index + 1}
            annotations.append({**ids, **annotation})
    categories = [
        {"id": i + 1, "name": name, "keypoints": list(KEYPOINTS)} for i, name in enumerate(CLASSES)
    ]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / JSON_NAME).write_text(json.dumps(content), encoding="utf-8")


def _make_scene(source: _Source, rng: np.random.Generator) -> tuple[np.ndarray, list[_Digit]]:
    """A scene (H, W, 3) uint8 RGB and its digits, the ones further back first."""
    scene = _make_background(source.photographs, rng)
    digits: list[_Digit] = []
    for _ in range(rng.integers(*_DIGITS_PER_SCENE, endpoint=True)):
        digits.append(_draw_digit(source, rng, digits))
    digits = _leave_out_covered(digits)
    pasted = np.zeros((HEIGHT, WIDTH), bool)
    for digit in digits:
        _paste(scene, pasted, digit)
    return scene, digits


def _make_background(photographs: list[Image.Image], rng: np.random.Generator) -> np.ndarray:
    """A crop of a photograph at the scene's size: flipped, tinted, and softened in contrast."""
    photograph = photographs[rng.integers(len(photographs))]
    width = int(rng.integers(120, 208, endpoint=True))
    height = width * HEIGHT // WIDTH
    left = int(rng.integers(photograph.width - width, endpoint=True))
    top = int(rng.integers(photograph.height - height, endpoint=True))
    flips, hue_shift = rng.integers(4), int(rng.integers(256))
    contrast, brightness = rng.integers(100, 200), rng.integers(-50, 50)
    crop = photograph.crop((left, top, left + width, top + height))
    hue, saturation, value = crop.convert("HSV").split()
    hue = hue.point([(i + hue_shift) % 256 for i in range(256)])
    crop = Image.merge("HSV", (hue, saturation, value)).convert("RGB")
    rgb = np.array(crop.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)).astype(np.int64)
    rgb = (((rgb - 128) * contrast) >> 8) + 128 + brightness
    rgb = rgb[:: 1 - 2 * (flips & 1), :: 1 - (flips & 2)]
    return np.ascontiguousarray(np.clip(rgb, 0, 255).astype(np.uint8))


def _draw_digit(source: _Source, rng: np.random.Generator, others: list[_Digit]) -> _Digit:
    """A digit at random. One in four lies close to one that is there, so that some overlap."""
    digit = int(rng.integers(len(CLASSES)))
    scan = int(rng.integers(len(source.scans[digit])))
    glyph = _make_glyph(source.scans[digit][scan], source.cuts[digit][scan])
    low, high = _DIGIT_HEIGHTS
    height = int(low * (high / low) ** rng.random())  # as many of 8 to 16 as of 16 to 32
    angle = int(rng.integers(-_MAX_ROTATION, _MAX_ROTATION, endpoint=True))
    alpha, thirds, keypoints = _render(glyph, height, angle)
    h, w = alpha.shape
    y, x = int(rng.integers(HEIGHT - h, endpoint=True)), int(rng.integers(WIDTH - w, endpoint=True))
    if rng.integers(4) == 0 and others:
        other = others[rng.integers(len(others))]
        (oy, ox), (oh, ow) = other.corner, other.alpha.shape
        y = oy + (oh - h) // 2 + int(rng.integers(-oh, oh, endpoint=True)) // 2
        x = ox + (ow - w) // 2 + (ow + w) * int(rng.choice([-1, 1])) * 3 // 8
        y, x = min(max(y, 0), HEIGHT - h), min(max(x, 0), WIDTH - w)
    return _Digit(
        digit=digit,
        corner=(y, x),
        alpha=alpha,
        thirds=thirds,
        keypoints=[(x + px, y + py) for px, py in keypoints],
        hue=int(rng.integers(256)),
        saturation=int(rng.integers(64, 256)),
        contrast=int(rng.integers(60, 105)),
        brighter=bool(rng.integers(2)),
    )


@functools.lru_cache(maxsize=1)
def _enlargement() -> tuple[np.ndarray, int]:
    """Catmull-Rom interpolation from 10 samples to G as whole numbers (G, 10) over a divisor.

    Products with a scan stay below 2**53, so float64 holds them exactly, and BLAS is fast.
    """
    n = 2 * _CELL
    position = 2 * np.arange(_GLYPH) + 1 - _CELL  # in n-ths of a scan pixel
    start, t = np.divmod(position, n)
    weights = np.stack(
        [
            -(t**3) + 2 * n * t**2 - n**2 * t,
            3 * t**3 - 5 * n * t**2 + 2 * n**3,
            -3 * t**3 + 4 * n * t**2 + n**2 * t,
            t**3 - n * t**2,
        ]
    )
    matrix = np.zeros((_GLYPH, 10))
    for tap in range(4):
        column = np.clip(start + tap - 1, 0, 9)
        np.add.at(matrix, (np.arange(_GLYPH), column), weights[tap])
    return matrix, 2 * n**3


def _make_glyph(scan: np.ndarray, cut: int) -> np.ndarray:
    """The shape (G, G) bool of a scan (8, 8): enlarged smoothly, then cut at an ink of 0..16."""
    matrix, divisor = _enlargement()
    ink = matrix @ np.pad(scan, 1) @ matrix.T
    return ink > cut * divisor**2


def _render(
    glyph: np.ndarray, height: int, angle: int
) -> tuple[np.ndarray, np.ndarray, list[tuple[int, int]]]:
    """A glyph at a height (pixels) and angle (degrees).

    Returns:
        Coverage (h, w) of 0..16, thirds (h, w) of 0..2, and keypoints (x, y) in the patch.
    """
    (top, bottom), (left, right) = _extent(glyph.any(1)), _extent(glyph.any(0))
    one = 1 << _FRACTION
    cos, sin = np.cos(np.deg2rad(angle)), np.sin(np.deg2rad(angle))
    step = (bottom - top) / height  # glyph pixels a scene pixel
    inverse = np.rint(one * step / (2 * _SUPERSAMPLING) * np.array([cos, sin])).astype(np.int64)
    forward = np.rint(one / (2 * step) * np.array([cos, sin])).astype(np.int64)
    half_h = (abs(sin) * (right - left) + abs(cos) * (bottom - top)) / step / 2
    half_w = (abs(cos) * (right - left) + abs(sin) * (bottom - top)) / step / 2
    half_h, half_w = int(half_h) + 2, int(half_w) + 2

    # Glyph coordinates (u, v) of every sample; twice the offset from the centre is a whole number.
    dy = (2 * np.arange(2 * half_h * _SUPERSAMPLING) + 1 - 2 * half_h * _SUPERSAMPLING)[:, None]
    dx = (2 * np.arange(2 * half_w * _SUPERSAMPLING) + 1 - 2 * half_w * _SUPERSAMPLING)[None, :]
    u = ((left + right) * one // 2 + inverse[0] * dx + inverse[1] * dy) >> _FRACTION
    v = ((top + bottom) * one // 2 - inverse[1] * dx + inverse[0] * dy) >> _FRACTION
    inside = glyph[np.clip(v, 0, _GLYPH - 1), np.clip(u, 0, _GLYPH - 1)]
    blocks = inside.reshape(2 * half_h, _SUPERSAMPLING, 2 * half_w, _SUPERSAMPLING)
    alpha = blocks.sum((1, 3))
    centers = v[_SUPERSAMPLING // 2 :: _SUPERSAMPLING, _SUPERSAMPLING // 2 :: _SUPERSAMPLING]
    thirds = np.clip(3 * (centers - top) // (bottom - top), 0, 2)

    mask = alpha > _SUPERSAMPLING**2 // 2
    keypoints = []
    for name, (pu, pv) in zip(KEYPOINTS, _glyph_keypoints(glyph), strict=True):
        pu, pv = 2 * pu - (left + right), 2 * pv - (top + bottom)
        x = half_w + ((forward[0] * pu - forward[1] * pv) >> _FRACTION)
        y = half_h + ((forward[1] * pu + forward[0] * pv) >> _FRACTION)
        keypoints.append((int(x), int(y)) if name == "center" else _nearest(mask, x, y))
    return alpha, thirds, keypoints


def _glyph_keypoints(glyph: np.ndarray) -> list[tuple[int, int]]:
    """Keypoints (u, v) of an upright glyph, in the order of KEYPOINTS.

    An extreme is the middle one of the outermost pixels, so that a flat end gives its middle and
    two equal ends give one of them.
    """
    (top, bottom), (left, right) = _extent(glyph.any(1)), _extent(glyph.any(0))
    end = _CELL // 8
    strips = [
        ((top, top + end), (left, right)),
        ((bottom - end, bottom), (left, right)),
        ((top, bottom), (left, left + end)),
        ((top, bottom), (right - end, right)),
    ]
    keypoints = []
    for name, ((v0, v1), (u0, u1)) in zip(KEYPOINTS, strips, strict=False):
        v, u = np.nonzero(glyph[v0:v1, u0:u1])
        along = u if name in ("top", "bottom") else v
        middle = np.argsort(along, kind="stable")[along.size // 2]
        keypoints.append((u0 + int(u[middle]), v0 + int(v[middle])))
    positions = np.arange(_GLYPH)
    center = [int(glyph.sum(axis) @ positions) // int(glyph.sum()) for axis in (0, 1)]
    return [*keypoints, tuple(center)]


def _extent(occupied: np.ndarray) -> tuple[int, int]:
    """First and one past the last index that is True."""
    indices = np.flatnonzero(occupied)
    return int(indices[0]), int(indices[-1]) + 1


def _nearest(mask: np.ndarray, x: int, y: int) -> tuple[int, int]:
    ys, xs = np.nonzero(mask)
    best = np.argmin((xs - x) ** 2 + (ys - y) ** 2)
    return int(xs[best]), int(ys[best])


def _leave_out_covered(digits: list[_Digit]) -> list[_Digit]:
    covered = np.zeros((HEIGHT, WIDTH), bool)
    kept = []
    for digit in reversed(digits):
        area, mask = covered[digit.area_in_scene], digit.mask
        if (mask & ~area).sum() >= _MIN_VISIBLE * mask.sum():
            area |= mask
            kept.append(digit)
    return kept[::-1]


def _paste(scene: np.ndarray, pasted: np.ndarray, digit: _Digit) -> None:
    """Blend the digit into the scene in a colour that stands out from what lies under it."""
    patch, digits_below = scene[digit.area_in_scene], pasted[digit.area_in_scene]
    # However few pixels a digit below has in the patch, it must not share the colour.
    ground, below = max((~digits_below).sum(), 1), max(digits_below.sum(), 1)
    color = _choose_color(patch, np.where(digits_below, 0.7 / below, 1 / ground), digit)
    alpha = digit.alpha[..., None]
    total = _SUPERSAMPLING**2
    patch[...] = (patch * (total - alpha) + color * alpha + total // 2) // total
    digits_below |= digit.mask


def _choose_color(patch: np.ndarray, weights: np.ndarray, digit: _Digit) -> np.ndarray:
    """RGB of the digit's hue whose luminance stands out from the patch's (h, w, 3).

    The luminance to take has the fewest pixels of the patch, counted by weights (h, w), within the
    digit's contrast of it; of several, the one closest to the patch's mean, so that contrast is no
    stronger than asked for.
    """
    luminance = patch @ _LUMINANCE // 1000
    levels = np.bincount(luminance.ravel(), weights.ravel(), minlength=256).cumsum()
    targets = np.arange(256)
    above = levels[np.minimum(targets + digit.contrast, 255)]
    below = np.where(targets > digit.contrast, levels[targets - digit.contrast], 0)
    crowd = above - below
    least = targets[crowd <= crowd.min() + 0.03]
    mean = int(luminance.mean())
    preferred = least[(least > mean) == digit.brighter]
    candidates = preferred if preferred.size else least
    target = int(candidates[np.abs(candidates - mean).argmin()])
    pixel = Image.new("HSV", (1, 1), (digit.hue, 255, 255)).convert("RGB").getpixel((0, 0))
    tint = np.array(pixel) - np.array(pixel) @ _LUMINANCE // 1000
    # The strongest tint that neither changes the luminance nor leaves 0..255.
    room = np.where(tint > 0, 255 - target, target)
    scale = min(r / abs(t) for r, t in zip(room, tint, strict=True) if t) * digit.saturation / 255
    return np.clip(np.rint(target + scale * tint), 0, 255).astype(np.int64)


def _annotate(digits: list[_Digit]) -> list[dict]:
    """COCO annotations, without ids, of the visible pixels."""
    covered = np.zeros((HEIGHT, WIDTH), bool)
    annotations = []
    for digit in reversed(digits):
        visible = np.zeros((HEIGHT, WIDTH), bool)
        visible[digit.area_in_scene] = digit.mask & ~covered[digit.area_in_scene]
        thirds = np.zeros((HEIGHT, WIDTH), np.int64)
        thirds[digit.area_in_scene] = digit.thirds
        (y1, y2), (x1, x2) = _extent(visible.any(1)), _extent(visible.any(0))
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
    try:
        from pycocotools import mask as coco_mask
    except ImportError as error:
        raise ImportError(
            "The masks of the digits are stored by pycocotools, which is not installed: "
            "pip install pycocotools"
        ) from error
    rle = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": rle["size"], "counts": rle["counts"].decode("ascii")}
