"""Detection in tiles of large images with the models of detectron2."""

from __future__ import annotations

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import transforms as T
from detectron2.data.detection_utils import build_augmentation
from detectron2.structures import Boxes, Instances
from torch import nn

from hypernet_d2.config import hypernet_node
from hypernet_d2.utils.tiles import merge_detections, tile_boxes

from .checks import check_resized_size, check_tiles

__all__ = ["TiledDetector"]


class TiledDetector(nn.Module):
    """A detector for images of any size, around one for images of a tile's size.

    Called like a model of detectron2 in evaluation, but with images that are not resized. An image
    is cut into the tiles of ``MODEL.HYPERNET.TILES``; each is resized by ``INPUT.MIN_SIZE_TEST``
    and ``INPUT.MAX_SIZE_TEST`` as a whole image is otherwise, and the detections are merged by
    :func:`hypernet_d2.utils.tiles.merge_detections`. An image of one tile has exactly the
    detections of the model alone.

    ``TEST.DETECTIONS_PER_IMAGE`` and ``MODEL.RPN.POST_NMS_TOPK_TEST`` limit each tile.
    """

    def __init__(self, cfg: CfgNode, model: nn.Module, batch_size: int = 4):
        """
        Args:
            cfg: of the model.
            model: a detector of boxes, whose output has ``pred_boxes``, ``scores`` and
                ``pred_classes``.
            batch_size: number of tiles that the model gets at a time.

        Raises:
            ValueError: see :func:`check_tiles`.
        """
        super().__init__()
        check_tiles(cfg)
        tiles = hypernet_node(cfg).TILES
        self.cfg = cfg
        self.model = model
        self.size, self.overlap = tiles.SIZE, tiles.OVERLAP
        self.batch_size = batch_size
        self.resize = T.AugmentationList(build_augmentation(cfg, is_train=False))
        self.train(model.training)

    def forward(self, batched_inputs: list[dict]) -> list[dict]:
        """
        Args:
            batched_inputs: dicts with ``image``, a tensor (C, H, W) on the CPU, in
                ``INPUT.FORMAT``, of the image as it is in its file.

        Returns:
            For each {"instances": Instances}, with boxes in pixels of the image, best first.

        Raises:
            ValueError: see :func:`check_resized_size`.
        """
        return [{"instances": self._detect(one["image"])} for one in batched_inputs]

    def _detect(self, image: torch.Tensor) -> Instances:
        pixels = image.numpy().transpose(1, 2, 0)
        size = pixels.shape[:2]
        tiles = tile_boxes(size, self.size, self.overlap)
        if len(tiles) == 1:
            return self.model([self._input(pixels)])[0]["instances"]
        found = []
        for start in range(0, len(tiles), self.batch_size):
            batch = tiles[start : start + self.batch_size]
            outputs = self.model([self._input(pixels[y1:y2, x1:x2]) for x1, y1, x2, y2 in batch])
            for output in outputs:
                part = output["instances"].to("cpu")
                values = part.pred_boxes.tensor.float(), part.scores.float(), part.pred_classes
                found.append(tuple(value.numpy() for value in values))
        boxes, scores, classes = map(torch.from_numpy, merge_detections(found, tiles, size))
        return Instances(size, pred_boxes=Boxes(boxes), scores=scores, pred_classes=classes)

    def _input(self, pixels: np.ndarray) -> dict:
        """What the model gets for the image or the tile (H, W, C)."""
        height, width = pixels.shape[:2]
        check_resized_size(self.cfg, (height, width))
        resized = T.AugInput(pixels)
        self.resize(resized)
        tensor = torch.from_numpy(np.ascontiguousarray(resized.image.transpose(2, 0, 1)))
        return {"image": tensor, "height": height, "width": width}
