"""BCCD: 364 photographs of stained blood with boxes of red cells, white cells and platelets.

The set is public (github.com/Shenggan/BCCD_Dataset, MIT licence), 640 x 480 pixels a photograph,
in VOC layout: 205 train, 87 val, 72 test. It belongs in ``$DETECTRON2_DATASETS/BCCD``.
"""

from .paths import datasets_root
from .voc_style import load_voc_style

# The xml names classes and gives them no order; this one goes from the commonest to the rarest.
CLASSES = ("RBC", "WBC", "Platelets")
SPLITS = ("train", "val", "test")


def load_bccd(split: str, keep_odd_boxes: bool = False) -> list[dict]:
    """A split of BCCD ("train", "val", "test") as dataset dicts, see `load_voc_style`.

    Raises:
        FileNotFoundError: the set is not in ``$DETECTRON2_DATASETS/BCCD``.
    """
    root = datasets_root() / "BCCD"
    if not (root / "Annotations").is_dir():
        raise FileNotFoundError(
            f"{root.absolute()}: no BCCD data set there (expected Annotations, ImageSets and "
            "JPEGImages). Get it with: git clone https://github.com/Shenggan/BCCD_Dataset, then "
            "set the environment variable DETECTRON2_DATASETS to a folder that holds the clone's "
            "BCCD folder"
        )
    return load_voc_style(root, split, CLASSES, keep_odd_boxes=keep_odd_boxes)
