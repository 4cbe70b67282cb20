"""Detection in tiles of large images with the models of detectron2."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import transforms as T
from detectron2.data.detection_utils import build_augmentation
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn

from hypernet_d2.config import hypernet_node
from hypernet_d2.utils.tiles import merge_with_parts, tile_boxes

from .checks import check_resized_size, check_tiles

__all__ = ["PastedMasks", "TiledDetector"]


class TiledDetector(nn.Module):
    """A detector for images of any size, around one for images of a tile's size.

    Called like a model of detectron2 in evaluation, but with images that are not resized. An image
    is cut into the tiles of ``MODEL.HYPERNET.TILES``; each is resized by ``INPUT.MIN_SIZE_TEST``
    and ``INPUT.MAX_SIZE_TEST`` as a whole image is otherwise, and with ``TILES.WHOLE_IMAGE`` the
    whole image, too. The detections are merged by
    :func:`hypernet_d2.utils.tiles.merge_with_parts`: the mask of an object that no tile shows whole
    is the union of its parts, and each of its keypoints the one with the highest score. An image of
    one tile has exactly the detections of the model alone.

    ``TEST.DETECTIONS_PER_IMAGE`` and ``MODEL.RPN.POST_NMS_TOPK_TEST`` limit each tile.
    """

    def __init__(self, cfg: CfgNode, model: nn.Module, batch_size: int = 4):
        """
        Args:
            cfg: of the model.
            model: a detector, whose output has ``pred_boxes``, ``scores`` and ``pred_classes``,
                and may have ``pred_masks`` and ``pred_keypoints``.
            batch_size: number of tiles that the model gets at a time.

        Raises:
            ValueError: see :func:`check_tiles`.
        """
        super().__init__()
        check_tiles(cfg)
        tiles = hypernet_node(cfg).TILES
        self.cfg = cfg
        self.model = model
        self.size, self.overlap, self.whole_image = tiles.SIZE, tiles.OVERLAP, tiles.WHOLE_IMAGE
        self.batch_size = batch_size
        self.resize = T.AugmentationList(build_augmentation(cfg, is_train=False))
        self.train(model.training)

    def forward(self, batched_inputs: list[dict]) -> list[dict]:
        """
        Args:
            batched_inputs: dicts with ``image``, a tensor (C, H, W) on the CPU, in
                ``INPUT.FORMAT``, of the image as it is in its file.

        Returns:
            For each {"instances": Instances}, in pixels of the image, best first. Of an image of
            several tiles ``pred_masks`` are :class:`PastedMasks`.

        Raises:
            ValueError: see :func:`check_resized_size`.
        """
        return [{"instances": self._detect(one["image"])} for one in batched_inputs]

    def _detect(self, image: Tensor) -> Instances:
        pixels = image.numpy().transpose(1, 2, 0)
        size = pixels.shape[:2]
        tiles = tile_boxes(size, self.size, self.overlap)
        if len(tiles) == 1:
            return self.model([self._input(pixels)])[0]["instances"]
        if self.whole_image:
            tiles = np.vstack([tiles, [0, 0, *size[::-1]]])
        found = []
        for start in range(0, len(tiles), self.batch_size):
            batch = tiles[start : start + self.batch_size]
            outputs = self.model([self._input(pixels[y1:y2, x1:x2]) for x1, y1, x2, y2 in batch])
            for output, tile in zip(outputs, batch, strict=True):
                found.append(_TileDetections(output["instances"].to("cpu"), tile))
        return _merge(found, tiles, size)

    def _input(self, pixels: np.ndarray) -> dict:
        """What the model gets for the image or the tile (H, W, C)."""
        height, width = pixels.shape[:2]
        check_resized_size(self.cfg, (height, width))
        resized = T.AugInput(pixels)
        self.resize(resized)
        tensor = torch.from_numpy(np.ascontiguousarray(resized.image.transpose(2, 0, 1)))
        return {"image": tensor, "height": height, "width": width}


class PastedMasks(Sequence):
    """The masks of n objects in a large image, of which only the parts with an object are stored.

    Item i is the mask of object i, (H, W) bool, made when it is asked for. A selection by a slice,
    a list or a tensor, as of other fields of Instances, is another `PastedMasks`.
    """

    def __init__(self, size: tuple[int, int], pieces: list[list[tuple[int, int, np.ndarray]]]):
        """
        Args:
            size: (H, W) of the image.
            pieces: for each object its parts (x, y, mask): the corner in the image, (h, w) bool.
        """
        self.size = size
        self.pieces = pieces

    def __len__(self) -> int:
        return len(self.pieces)

    def __iter__(self) -> Iterator[Tensor]:
        return (self[i] for i in range(len(self)))

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        """(n, H, W), for detectron2's Visualizer."""
        masks = np.zeros((len(self), *self.size), bool)
        for i, mask in enumerate(self):
            masks[i] = mask
        return masks if dtype is None else masks.astype(dtype)

    def __getitem__(self, item) -> Tensor | PastedMasks:
        chosen = np.arange(len(self))[item if isinstance(item, slice) else np.asarray(item)]
        if chosen.ndim:
            return PastedMasks(self.size, [self.pieces[i] for i in chosen])
        mask = torch.zeros(self.size, dtype=torch.bool)
        for x, y, piece in self.pieces[chosen]:
            height, width = piece.shape
            mask[y : y + height, x : x + width] |= torch.from_numpy(piece)
        return mask


class _TileDetections:
    """The detections of a tile, in memory that depends on the objects, not on the tile's size.

    Args:
        found: on the CPU.
        tile: (4,), x1 y1 x2 y2 in the image.
    """

    def __init__(self, found: Instances, tile: np.ndarray):
        x1, y1 = tile[:2].tolist()
        values = found.pred_boxes.tensor.float(), found.scores.float(), found.pred_classes
        self.boxes = tuple(value.numpy() for value in values)
        self.keypoints = self.masks = None
        if found.has("pred_keypoints"):
            self.keypoints = found.pred_keypoints.float() + torch.tensor([x1, y1, 0])
        if found.has("pred_masks"):
            self.masks = [_piece(mask.numpy(), x1, y1) for mask in found.pred_masks]


def _piece(mask: np.ndarray, x: int, y: int) -> tuple[int, int, np.ndarray]:
    """The part of a tile's mask (h, w) that holds the object, and its corner in the image."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return x, y, np.zeros((0, 0), bool)
    top, left = int(rows[0]), int(columns[0])
    return x + left, y + top, mask[top : rows[-1] + 1, left : columns[-1] + 1].copy()


def _merge(found: list[_TileDetections], tiles: np.ndarray, size: tuple[int, int]) -> Instances:
    *merged, parts = merge_with_parts([one.boxes for one in found], tiles, size)
    boxes, scores, classes = map(torch.from_numpy, merged)
    instances = Instances(size, pred_boxes=Boxes(boxes), scores=scores, pred_classes=classes)
    if found[0].keypoints is not None:
        keypoints = torch.cat([one.keypoints for one in found])
        chosen = [_best_keypoints(keypoints[part]) for part in parts]
        instances.pred_keypoints = torch.stack(chosen) if chosen else keypoints
    if found[0].masks is not None:
        masks = [mask for one in found for mask in one.masks]
        instances.pred_masks = PastedMasks(size, [[masks[i] for i in part] for part in parts])
    return instances


def _best_keypoints(keypoints: Tensor) -> Tensor:
    """(K, 3) of the parts (p, K, 3) of an object: of each keypoint the one with the best score."""
    best = keypoints[:, :, 2].argmax(dim=0)
    return keypoints[best, torch.arange(keypoints.shape[1])]
