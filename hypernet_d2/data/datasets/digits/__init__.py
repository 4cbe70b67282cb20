"""Data set ``digits``: scenes of handwritten digits, generated from what scikit-learn ships.

Each scene pastes scans of handwritten digits (``sklearn.datasets.load_digits``, 8 x 8 pixels) in
varying size, rotation and color onto a crop of one of scikit-learn's two photographs. Boxes, masks,
keypoints and parts are computed from the pasted pixels, so they are exact. The training and the
validation scenes share no scan and no pixel of a photograph.

- `glyphs`: from a scan to a binary shape, and the rendering of that shape
- `scenes`: a background, the digits pasted onto it, and their annotations
- `generate`: the folder of a split, with the pictures and a COCO json

Nothing here needs detectron2.
"""

from .generate import JSON_NAME, SPLITS, VERSION, digits_root, generate_digits
from .glyphs import CLASSES, KEYPOINTS
from .scenes import PARTS

# A mirrored digit has its left end where the right one was.
KEYPOINT_FLIP_MAP = (("left", "right"),)
KEYPOINT_CONNECTIONS = (
    ("top", "center", (255, 128, 0)),
    ("bottom", "center", (0, 128, 255)),
    ("left", "center", (255, 0, 128)),
    ("right", "center", (0, 255, 128)),
)

__all__ = [
    "CLASSES",
    "JSON_NAME",
    "KEYPOINTS",
    "KEYPOINT_CONNECTIONS",
    "KEYPOINT_FLIP_MAP",
    "PARTS",
    "SPLITS",
    "VERSION",
    "digits_root",
    "generate_digits",
]
