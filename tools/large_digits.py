"""Writes large scenes of small digits, to try detection and training in tiles on.

Each scene is a mosaic of 5 x 5 scenes of 400 x 300 pixels of the data set "digits", with digits of
8 to 20 pixels: 2000 x 1500 pixels, about 100 digits. FOLDER gets images/ and annotations/train.json
and val.json in COCO's format, for --data FOLDER.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import trange

from hypernet_d2.cli.arguments import CommandParser
from hypernet_d2.data.datasets.digits import CLASSES, scenes

LAYOUT = scenes.Layout(height=300, width=400, digit_heights=(8, 20), digits=(2, 6))
SIDE = 5  # scenes in a row and in a column
JPEG_QUALITY = 95


def make_mosaic(source: scenes.Source, rng: np.random.Generator) -> tuple[np.ndarray, list[dict]]:
    """A picture (1500, 2000, 3), uint8 RGB, and its annotations without ids."""
    picture = np.zeros((SIDE * LAYOUT.height, SIDE * LAYOUT.width, 3), np.uint8)
    objects = []
    for row, column in np.ndindex(SIDE, SIDE):
        y, x = row * LAYOUT.height, column * LAYOUT.width
        scene, digits = scenes.make_scene(source, rng, LAYOUT)
        picture[y : y + LAYOUT.height, x : x + LAYOUT.width] = scene
        for one in scenes.annotate(digits, LAYOUT):
            left, top, width, height = one["bbox"]
            kept = {key: one[key] for key in ("category_id", "area", "iscrowd")}
            objects.append({**kept, "bbox": [left + x, top + y, width, height]})
    return picture, objects


def write_split(folder: Path, split: str, count: int) -> None:
    source = scenes.load_source(split)
    images, annotations = [], []
    for index in trange(count, desc=split, unit="image"):
        rng = np.random.default_rng([0, split == "val", index])
        picture, objects = make_mosaic(source, rng)
        name = f"{split}_{index:03}.jpg"
        Image.fromarray(picture).save(folder / "images" / name, quality=JPEG_QUALITY)
        height, width = picture.shape[:2]
        images.append({"id": index, "file_name": name, "height": height, "width": width})
        for one in objects:
            annotations.append({"id": len(annotations) + 1, "image_id": index, **one})
    categories = [{"id": i + 1, "name": name} for i, name in enumerate(CLASSES)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "annotations" / f"{split}.json").write_text(json.dumps(content))


def main(argv: list[str]) -> None:
    parser = CommandParser(__doc__, "output/large_digits")
    parser.add_argument("folder", type=Path, help="new folder")
    parser.add_argument("--train", type=int, default=32, help="training images (%(default)s)")
    parser.add_argument("--val", type=int, default=8, help="validation images (%(default)s)")
    args = parser.parse_args(argv)
    for name in ("images", "annotations"):
        (args.folder / name).mkdir(parents=True)
    write_split(args.folder, "train", args.train)
    write_split(args.folder, "val", args.val)


if __name__ == "__main__":
    from hypernet_d2_cli import run

    sys.exit(run(main))
