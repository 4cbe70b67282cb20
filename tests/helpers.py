"""Small models and inputs that several tests share. detectron2 is imported inside the functions."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

import pytest
import torch

captures = pytest.mark.skipif(
    torch.__version__ < (2, 5), reason="torch.export of PyTorch 2.4 can neither capture nor save"
)

TINY = [
    "MODEL.DEVICE", "cpu",
    "MODEL.HYPERNET.FEATURE.CHANNELS", 6,
    "MODEL.HYPERNET.FEATURE.KERNEL_SIZE", 3,
    "MODEL.HYPERNET.PROPOSALS.POOLER_RESOLUTION", 5,
    "MODEL.HYPERNET.PROPOSALS.FC_DIM", 16,
    "MODEL.RPN.BATCH_SIZE_PER_IMAGE", 16,
    "MODEL.RPN.PRE_NMS_TOPK_TRAIN", 200,
    "MODEL.RPN.PRE_NMS_TOPK_TEST", 200,
    "MODEL.RPN.POST_NMS_TOPK_TRAIN", 20,
    "MODEL.RPN.POST_NMS_TOPK_TEST", 10,
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", 16,
    "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION", 5,
    "MODEL.ROI_BOX_HEAD.CONV_DIM", 8,
    "MODEL.ROI_BOX_HEAD.FC_DIM", 16,
    "INPUT.MIN_SIZE_TRAIN", (64,),
    "INPUT.MIN_SIZE_TEST", 64,
    "SOLVER.IMS_PER_BATCH", 2,
    "DATALOADER.NUM_WORKERS", 0,
    "VIS_PERIOD", 0,
]  # fmt: skip


@contextlib.contextmanager
def logged_by(name: str, level: int) -> Iterator[list[str]]:
    """The messages of a logger from ``level`` on, as they come, whether or not it propagates."""
    messages: list[str] = []
    handler = logging.Handler(level)
    handler.emit = lambda record: messages.append(record.getMessage())
    logger = logging.getLogger(name)
    logger.addHandler(handler)
    try:
        yield messages
    finally:
        logger.removeHandler(handler)


def tiny_cfg(*opts, config: str = "BCCD-Detection/hypernet_R_18.yaml"):
    """The config of a model that runs in milliseconds; ``opts`` are KEY, VALUE, KEY, VALUE, ..."""
    from hypernet_d2 import model_zoo

    cfg = model_zoo.get_config(config)
    cfg.merge_from_list([*TINY, *opts])
    return cfg


def batched_inputs(*sizes: tuple[int, int], objects: int = 2, classes: int = 3) -> list[dict]:
    """One random image per (h, w), each with ``objects`` boxes of about half its size."""
    from detectron2.structures import Boxes, Instances

    inputs = []
    for h, w in sizes:
        corner = torch.rand(objects, 2) * torch.tensor([w / 2, h / 2])
        boxes = torch.cat([corner, corner + torch.tensor([w / 2, h / 2])], dim=1)
        instances = Instances((h, w))
        instances.gt_boxes = Boxes(boxes)
        instances.gt_classes = torch.randint(classes, (objects,))
        inputs.append(
            {"image": torch.rand(3, h, w) * 255, "instances": instances, "height": h, "width": w}
        )
    return inputs


def write_voc(root, count: int = 6, size: tuple[int, int] = (64, 80)) -> None:
    """A set in VOC layout under ``root``: dark squares and bright bars on grey noise.

    Split ``all`` names every image; the classes are "square" and "bar".
    """
    import cv2
    import numpy as np

    rng = np.random.default_rng(0)
    h, w = size
    for folder in ("Annotations", "ImageSets/Main", "JPEGImages"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for i in range(count):
        image = rng.integers(100, 140, (h, w, 3), dtype=np.uint8)
        objects = ""
        for name, side, color in (("square", (16, 16), 20), ("bar", (10, 30), 240)):
            x, y = int(rng.integers(0, w - side[1])), int(rng.integers(0, h - side[0]))
            image[y : y + side[0], x : x + side[1]] = color
            objects += (
                f"<object><name>{name}</name><difficult>0</difficult><bndbox><xmin>{x + 1}</xmin>"
                f"<ymin>{y + 1}</ymin><xmax>{x + side[1]}</xmax><ymax>{y + side[0]}</ymax>"
                "</bndbox></object>"
            )
        cv2.imwrite(str(root / f"JPEGImages/{i:03}.jpg"), image)
        (root / f"Annotations/{i:03}.xml").write_text(
            f"<annotation><size><width>{w}</width><height>{h}</height><depth>3</depth></size>"
            f"{objects}</annotation>"
        )
    names = "".join(f"{i:03}\n" for i in range(count))
    (root / "ImageSets/Main/all.txt").write_text(names)
