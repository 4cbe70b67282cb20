"""Generates the scenes of a split in a cache folder."""

import json
import logging
import os
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from ..paths import cache_root, datasets_root
from .glyphs import CLASSES, KEYPOINTS
from .scenes import SCENE, Source, annotate, load_source, make_scene

SPLITS = {"train": 400, "val": 100}  # number of scenes
JSON_NAME = "annotations.json"
# Part of the folder's name: increase it whenever the generated scenes change.
VERSION = 2

logger = logging.getLogger(__name__)


def digits_root() -> Path:
    """The folder of the generated scenes: ``$DETECTRON2_DATASETS/digits`` or a cache folder.

    The cache folder, ``$XDG_CACHE_HOME/hypernet_d2/digits``, is used if the former holds no scenes
    of this version and cannot be written (``$DETECTRON2_DATASETS`` does not exist, or it or the
    folder ``digits`` in it is read-only).
    """
    preferred = datasets_root() / "digits"
    if any(preferred.glob(f"*-v{VERSION}-*")):
        return preferred
    parent = preferred if preferred.is_dir() else preferred.parent
    # Root may write everywhere, but a folder whose mode permits no one to write stays untouched.
    if parent.is_dir() and parent.stat().st_mode & 0o222 and os.access(parent, os.W_OK):
        return preferred
    return cache_root() / "digits"


def generate_digits(
    root: str | Path, split: str, seed: int = 0, num_images: int | None = None
) -> Path:
    """Generate the scenes of a split under ``root``, unless they exist, and return their folder.

    The scenes are written to a temporary folder (its name starts with a dot), which is renamed when
    it is complete. A process that is killed therefore leaves no incomplete set, and if two
    processes generate the same set at once, the one that ends first provides it.
    Scene i depends on ``split``, ``seed`` and i only: a smaller set is the start of a larger one.

    Args:
        root: parent folder of the generated folders.
        split: "train" (400 scenes) or "val" (100).
        seed: another seed gives other scenes of the same kind.
        num_images: number of scenes; default: the number of the split.

    Returns:
        A folder with the scenes (png, 320 x 240) and ``annotations.json`` in COCO's format: box,
        mask (compressed RLE), five keypoints (visibility 2: visible, 1: covered by another digit)
        and ``parts``, the RLEs of the visible pixels in the upper, middle and lower third of the
        upright digit.

    Raises:
        ValueError: ``split`` is unknown.
        ImportError: scikit-learn or pycocotools is missing.
    """
    if split not in SPLITS:
        raise ValueError(f"split of the digits is {split!r}, expected one of {list(SPLITS)}")
    num_images = SPLITS[split] if num_images is None else num_images
    root = Path(root)
    folder = root / f"{split}-v{VERSION}-seed{seed}-n{num_images}"
    if folder.is_dir():
        return folder
    source = load_source(split)
    root.mkdir(parents=True, exist_ok=True)
    logger.info(f"Generating {num_images} scenes of digits in {folder}")
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=root) as scratch:
        partial = Path(scratch) / folder.name
        partial.mkdir()
        _write_scenes(partial, source, split, seed, num_images)
        try:
            partial.rename(folder)
        except OSError:
            # A folder cannot replace one that has files: then another process was faster.
            if not folder.is_dir():
                raise
    return folder


def _write_scenes(folder: Path, source: Source, split: str, seed: int, num_images: int) -> None:
    images, annotations = [], []
    for index in range(num_images):
        rng = np.random.default_rng([seed, list(SPLITS).index(split), index])
        scene, digits = make_scene(source, rng)
        name = f"{index:06d}.png"
        Image.fromarray(scene).save(folder / name, compress_level=1)
        images.append(
            {"id": index + 1, "file_name": name, "height": SCENE.height, "width": SCENE.width}
        )
        for annotation in annotate(digits):
            ids = {"id": len(annotations) + 1, "image_id": index + 1}
            annotations.append({**ids, **annotation})
    categories = [
        {"id": i + 1, "name": name, "keypoints": list(KEYPOINTS)} for i, name in enumerate(CLASSES)
    ]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / JSON_NAME).write_text(json.dumps(content), encoding="utf-8")
