"""Masks, parts and keypoints of an image from the small maps that a model predicts for its boxes.

They are those of detectron2 (``paste_masks_in_image``, ``heatmaps_to_keypoints``) and of
``hypernet_d2.modeling.roi_heads.paste_parts``, up to rounding, computed by NumPy. Both
interpolations are separable: a map becomes rows @ map @ columns.

Shape shorthand: ``n`` boxes, ``L`` parts or keypoints, ``M`` side of a map, ``H`` x ``W`` image.
"""

from __future__ import annotations

import numpy as np

__all__ = ["find_keypoints", "paste_masks", "paste_parts"]


def paste_masks(
    masks: np.ndarray, boxes: np.ndarray, size: tuple[int, int], threshold: float = 0.5
) -> np.ndarray:
    """Paste masks into an image.

    Args:
        masks: (n, M, M), probabilities over the boxes.
        boxes: (n, 4) in pixels of the image.
        size: (H, W).
        threshold: least probability of a pixel of the object.

    Returns:
        (n, H, W) bool.
    """
    pasted = np.zeros((len(masks), *size), bool)
    for one, mask, box in zip(pasted, masks, boxes, strict=True):
        rows, columns, values = _paste(mask[None], box, size)
        one[rows, columns] = values[0] >= threshold
    return pasted


def paste_parts(
    masks: np.ndarray, boxes: np.ndarray, size: tuple[int, int], threshold: float = 0.5
) -> np.ndarray:
    """Paste the masks of parts (n, L, M, M) into an image, as `paste_masks`.

    Returns:
        (n, H, W) uint8: p + 1 where part p is the most probable one and its probability is at least
        the threshold, else 0.
    """
    pasted = np.zeros((len(masks), *size), np.uint8)
    for one, parts, box in zip(pasted, masks, boxes, strict=True):
        rows, columns, values = _paste(parts, box, size)
        levels = (values * 255).astype(np.uint8)  # as the stock function quantizes them
        found = levels.max(axis=0) >= 255 * threshold
        one[rows, columns] = np.where(found, levels.argmax(axis=0) + 1, 0)
    return pasted


def find_keypoints(heat_maps: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """The highest position of each heat map, enlarged to the size of its box.

    Args:
        heat_maps: (n, L, M, M), logits over the boxes.
        boxes: (n, 4) in pixels of the network's input.

    Returns:
        (n, L, 3) float32: x and y in pixels of the network's input, and a score in (0, 1].
    """
    found = np.zeros((*heat_maps.shape[:2], 3), np.float32)
    for one, maps, box in zip(found, heat_maps, boxes, strict=True):
        sides = np.maximum(box[2:] - box[:2], np.float32(1))  # width, height
        width, height = (int(side) for side in np.ceil(sides))
        rows, columns = (_cubic_weights(side, maps.shape[-1]) for side in (height, width))
        large = (rows @ maps @ columns.T).reshape(len(maps), -1)
        best = large.argmax(axis=1)
        cells = np.stack([best % width, best // width], axis=1).astype(np.float32)
        one[:, :2] = box[:2] + (cells + np.float32(0.5)) * (sides / np.ceil(sides))
        highest = large.max(axis=1)[:, None, None]
        one[:, 2] = 1 / np.exp(maps - highest).sum(axis=(1, 2))
    return found


def _paste(
    maps: np.ndarray, box: np.ndarray, size: tuple[int, int]
) -> tuple[slice, slice, np.ndarray]:
    """Maps (L, M, M) of a box, enlarged: the rows and columns of the image, and (L, h, w) there."""
    x1, y1, x2, y2 = box.astype(np.float32)
    side = maps.shape[-1]
    rows, y_weights = _linear_weights(y1, y2, size[0], side)
    columns, x_weights = _linear_weights(x1, x2, size[1], side)
    return rows, columns, y_weights @ maps @ x_weights.T


def _linear_weights(
    start: np.float32, end: np.float32, limit: int, side: int
) -> tuple[slice, np.ndarray]:
    """Pixels around an extent of the image, and the weights (pixels, M) of the map's cells there.

    Linear interpolation between the centers of the cells, with zeros beyond the map.
    """
    first = int(max(np.floor(start) - 1, 0))
    last = int(min(np.ceil(end) + 1, limit))
    centers = np.arange(first, last, dtype=np.float32) + np.float32(0.5)
    cells = (centers - start) / (end - start) * side - np.float32(0.5)
    distance = np.abs(cells[:, None] - np.arange(side, dtype=np.float32))
    return slice(first, last), np.maximum(1 - distance, 0)


def _cubic_weights(pixels: int, side: int) -> np.ndarray:
    """Weights (pixels, M) of bicubic interpolation as in PyTorch: a = -0.75, borders repeated."""
    cells = (np.arange(pixels, dtype=np.float32) + np.float32(0.5)) * np.float32(side / pixels)
    cells = cells - np.float32(0.5)
    base = np.floor(cells)
    weights = np.zeros((pixels, side), np.float32)
    for offset in (-1, 0, 1, 2):
        distance = np.abs(cells - (base + offset))
        near = (1.25 * distance - 2.25) * distance**2 + 1
        far = ((-0.75 * distance + 3.75) * distance - 6) * distance + 3
        value = np.where(distance <= 1, near, far).astype(np.float32)
        index = np.clip(base + offset, 0, side - 1).astype(np.int64)
        np.add.at(weights, (np.arange(pixels), index), value)
    return weights
