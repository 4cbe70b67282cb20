"""Glyphs: a scan of a digit as a binary shape, and its rendering at a height and an angle.

Shapes: G x G a glyph (a scan, enlarged smoothly and thresholded), h x w a patch (the part of a
scene that holds one digit). A position in a glyph is (u, v), in a patch (x, y), both in pixels.

Geometry is computed in integers, so that the results are the same on every platform.
"""

import functools

import numpy as np

CLASSES = tuple("0123456789")
KEYPOINTS = ("top", "bottom", "left", "right", "center")

CELL = 32  # glyph pixels per scan pixel
GLYPH = 10 * CELL  # G: 8 scan pixels and a margin of one on each side
SUPERSAMPLING = 4  # samples per pixel and axis
FULL_COVERAGE = SUPERSAMPLING**2  # samples of a pixel
FRACTION = 16  # fractional bits of fixed-point coordinates

# Number of holes of a legible digit. At 8 x 8 pixels some scans have others at every threshold.
HOLES = ((1,), (0,), (0,), (0,), (0, 1), (0,), (1,), (0,), (2,), (1,))
THRESHOLDS = (7, 8, 9, 6, 10)  # of the ink, 0..16, in the order in which they are tried


def choose_threshold(scan: np.ndarray, digit: int) -> int:
    """The first threshold that gives one component with the digit's number of holes, or 0.

    Args:
        scan: (8, 8), ink of 0..16.
        digit: 0..9.
    """
    from scipy.ndimage import label  # a dependency of scikit-learn

    matrix, divisor = _enlargement()
    coarse = matrix[CELL // 8 :: CELL // 4]
    ink = coarse @ np.pad(scan, 1) @ coarse.T
    for threshold in THRESHOLDS:
        shape = ink > threshold * divisor**2
        components = label(shape, np.ones((3, 3)))[1]
        holes = label(~shape)[1] - 1
        if components == 1 and holes in HOLES[digit]:
            return threshold
    return 0


def make_glyph(scan: np.ndarray, threshold: int) -> np.ndarray:
    """The shape (G, G), bool, of a scan (8, 8): enlarged smoothly, then thresholded."""
    matrix, divisor = _enlargement()
    ink = matrix @ np.pad(scan, 1) @ matrix.T
    return ink > threshold * divisor**2


@functools.lru_cache(maxsize=1)
def _enlargement() -> tuple[np.ndarray, int]:
    """Catmull-Rom interpolation of 10 samples to G: integers (G, 10) and their divisor.

    The products with a scan stay below 2**53, so float64 is exact and BLAS can be used.
    """
    n = 2 * CELL
    position = 2 * np.arange(GLYPH) + 1 - CELL  # in n-ths of a scan pixel
    start, t = np.divmod(position, n)
    weights = np.stack(
        [
            -(t**3) + 2 * n * t**2 - n**2 * t,
            3 * t**3 - 5 * n * t**2 + 2 * n**3,
            -3 * t**3 + 4 * n * t**2 + n**2 * t,
            t**3 - n * t**2,
        ]
    )
    matrix = np.zeros((GLYPH, 10))
    for tap in range(4):
        column = np.clip(start + tap - 1, 0, 9)
        np.add.at(matrix, (np.arange(GLYPH), column), weights[tap])
    return matrix, 2 * n**3


def render(
    glyph: np.ndarray, height: int, angle: int
) -> tuple[np.ndarray, np.ndarray, list[tuple[int, int]]]:
    """Render a glyph at a height (pixels, before rotation) and an angle (degrees).

    Returns:
        coverage (h, w) of 0..16, thirds (h, w) of 0 (upper) to 2 (lower), and the keypoints
        (x, y) in the patch, in the order of KEYPOINTS.
    """
    (top, bottom), (left, right) = extent(glyph.any(1)), extent(glyph.any(0))
    one = 1 << FRACTION
    cos, sin = np.cos(np.deg2rad(angle)), np.sin(np.deg2rad(angle))
    step = (bottom - top) / height  # glyph pixels per scene pixel
    inverse = np.rint(one * step / (2 * SUPERSAMPLING) * np.array([cos, sin])).astype(np.int64)
    forward = np.rint(one / (2 * step) * np.array([cos, sin])).astype(np.int64)
    half_h = (abs(sin) * (right - left) + abs(cos) * (bottom - top)) / step / 2
    half_w = (abs(cos) * (right - left) + abs(sin) * (bottom - top)) / step / 2
    half_h, half_w = int(half_h) + 2, int(half_w) + 2

    # (u, v) of every sample. Twice the offset from the center is an integer.
    dy = (2 * np.arange(2 * half_h * SUPERSAMPLING) + 1 - 2 * half_h * SUPERSAMPLING)[:, None]
    dx = (2 * np.arange(2 * half_w * SUPERSAMPLING) + 1 - 2 * half_w * SUPERSAMPLING)[None, :]
    u = ((left + right) * one // 2 + inverse[0] * dx + inverse[1] * dy) >> FRACTION
    v = ((top + bottom) * one // 2 - inverse[1] * dx + inverse[0] * dy) >> FRACTION
    inside = glyph[np.clip(v, 0, GLYPH - 1), np.clip(u, 0, GLYPH - 1)]
    blocks = inside.reshape(2 * half_h, SUPERSAMPLING, 2 * half_w, SUPERSAMPLING)
    coverage = blocks.sum((1, 3))
    centers = v[SUPERSAMPLING // 2 :: SUPERSAMPLING, SUPERSAMPLING // 2 :: SUPERSAMPLING]
    thirds = np.clip(3 * (centers - top) // (bottom - top), 0, 2)

    mask = coverage > FULL_COVERAGE // 2
    keypoints = []
    for name, (pu, pv) in zip(KEYPOINTS, glyph_keypoints(glyph), strict=True):
        pu, pv = 2 * pu - (left + right), 2 * pv - (top + bottom)
        x = half_w + ((forward[0] * pu - forward[1] * pv) >> FRACTION)
        y = half_h + ((forward[1] * pu + forward[0] * pv) >> FRACTION)
        keypoints.append((int(x), int(y)) if name == "center" else _nearest(mask, x, y))
    return coverage, thirds, keypoints


def glyph_keypoints(glyph: np.ndarray) -> list[tuple[int, int]]:
    """Keypoints (u, v) of an upright glyph, in the order of KEYPOINTS.

    The keypoint of an end is the median of the outermost pixels: the middle of a flat end, and one
    of two equally long ends. "center" is the centroid, which may lie in a hole.
    """
    (top, bottom), (left, right) = extent(glyph.any(1)), extent(glyph.any(0))
    end = CELL // 8
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
    positions = np.arange(GLYPH)
    center = [int(glyph.sum(axis) @ positions) // int(glyph.sum()) for axis in (0, 1)]
    return [*keypoints, tuple(center)]


def extent(occupied: np.ndarray) -> tuple[int, int]:
    """First index that is True, and one past the last."""
    indices = np.flatnonzero(occupied)
    return int(indices[0]), int(indices[-1]) + 1


def _nearest(mask: np.ndarray, x: int, y: int) -> tuple[int, int]:
    """The pixel (x, y) of the mask that is nearest to a position."""
    ys, xs = np.nonzero(mask)
    best = np.argmin((xs - x) ** 2 + (ys - y) ** 2)
    return int(xs[best]), int(ys[best])
