"""Detection with an exported model."""

from __future__ import annotations

import logging
import os
import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from hypernet_d2.utils.images import bgr_array, read_image, resize
from hypernet_d2.utils.tiles import merge_detections, tile_boxes

from .metadata import OUTPUTS

__all__ = ["Detections", "Detector", "Stages"]

logger = logging.getLogger(__name__)

ImageLike = np.ndarray | Image.Image | str | os.PathLike


class Detections(NamedTuple):
    """Objects in an image, best first."""

    boxes: np.ndarray  # (n, 4) float32, x1 y1 x2 y2 in pixels of the image
    scores: np.ndarray  # (n,) float32, in (0, 1]
    classes: np.ndarray  # (n,) int64, indices into Detector.info.classes


class Stages(NamedTuple):
    """The intermediate results of a model. Boxes are in pixels of the image."""

    detections: Detections
    proposals: np.ndarray  # (k, 4) float32, best first
    objectness: np.ndarray  # (k,) float32, logits
    windows: np.ndarray  # (k, 4) float32, the windows of the grid that the proposals come from
    feature: np.ndarray  # (C, h, w) float32, the hyper feature


class Detector:
    """Detects with a file that ``tools/export_model.py`` wrote, on the CPU.

    An image is resized and padded as detectron2's ``DefaultPredictor`` does. If it does not fit the
    model's canvas (``info.canvas``), it is scaled down further, and the first such image is logged
    as a warning. A detector may be called from several threads at a time.
    """

    def __init__(self, path: str | os.PathLike, *, threads: int | None = None):
        """
        Args:
            path: an ONNX file, which onnxruntime runs, or an archive of torch.export, which
                PyTorch runs; the content decides, not the name.
            threads: of onnxruntime, for one call; None for the number of cores. PyTorch has one
                number for the whole process, ``torch.set_num_threads``.

        Raises:
            FileNotFoundError: there is no such file.
            ImportError: the library that runs the file is not installed.
            ValueError: the file is no exported model, or could run code.
        """
        self._path = path = Path(path)
        self._warned = False
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such model file")
        if zipfile.is_zipfile(path):
            from .torch_runner import TorchRunner

            self._run = TorchRunner(path)
        else:
            from .onnx_runner import OnnxRunner

            self._run = OnnxRunner(path, threads)
        self.info = self._run.info

    def __call__(
        self,
        image: ImageLike,
        *,
        score_threshold: float | None = None,
        num_proposals: int | None = None,
        tile: int | None = None,
        overlap: int | None = None,
    ) -> Detections:
        """Detect in one image.

        Args:
            image: (H, W, 3) uint8, BGR as OpenCV reads it; an image of Pillow, whose mode says
                the order of its channels; or the path of an image file. The last two are rotated
                and scaled to 8 bits as `hypernet_d2.utils.images.as_shown` describes.
            score_threshold: least score of a detection; not below the file's own
                (``info.score_threshold``), which is the default.
            num_proposals: how many of the best proposals are classified; from 1 to
                ``info.max_proposals``, which is the default.
            tile: detect in tiles of this side, in pixels of the image, one after the other, and
                merge the detections as `hypernet_d2.utils.tiles.merge_detections` describes; for
                small objects in large images. Each tile has its own ``num_proposals`` and at most
                ``info.max_detections`` detections.
            overlap: of neighboring tiles, in pixels; at least the side of most objects. By default
                a fifth of the tile.

        Raises:
            FileNotFoundError: there is no such image file.
            ValueError: not an image, a number out of its range, or a model that fails.
            FloatingPointError: a box or score of the model's output is not finite.
            RuntimeError: PyTorch would hang, since the process is a forked one.
        """
        image, threshold, count = self._check(image, score_threshold, num_proposals)
        if tile is None:
            if overlap is not None:
                raise ValueError(f"overlap is {overlap}, but no tile is given")
            return self._detect(image, threshold, count)
        tiles = tile_boxes(image.shape[:2], tile, tile // 5 if overlap is None else overlap)
        if len(tiles) == 1:
            return self._detect(image, threshold, count)
        found = [self._detect(image[y1:y2, x1:x2], threshold, count) for x1, y1, x2, y2 in tiles]
        return Detections(*merge_detections(found, tiles, image.shape[:2]))

    def stages(
        self,
        image: ImageLike,
        *,
        score_threshold: float | None = None,
        num_proposals: int | None = None,
    ) -> Stages:
        """As `__call__`, with the intermediate results."""
        image, threshold, count = self._check(image, score_threshold, num_proposals)
        canvas, size = self._prepare(image)
        outputs = self._outputs(canvas, size, count, OUTPUTS)
        proposals, objectness, windows, feature = outputs[3:]
        exist = np.isfinite(objectness)
        scale = _scale(size, image.shape[:2])
        h, w = (-(-side // self.info.feature_stride) for side in size)
        return Stages(
            _postprocess(*outputs[:3], size, image.shape[:2], threshold),
            proposals[exist] * scale,
            objectness[exist],
            windows[exist] * scale,
            feature[:, :h, :w],
        )

    def _detect(self, image: np.ndarray, threshold: float, count: int) -> Detections:
        canvas, size = self._prepare(image)
        outputs = self._outputs(canvas, size, count, OUTPUTS[:3])
        return _postprocess(*outputs, size, image.shape[:2], threshold)

    def _check(
        self,
        image: ImageLike,
        score_threshold: float | None,
        num_proposals: int | None,
    ) -> tuple[np.ndarray, float, int]:
        if isinstance(image, (str, os.PathLike)):
            image = read_image(image)
        elif isinstance(image, Image.Image):
            try:
                image = bgr_array(image)
            except Exception as error:  # damaged files make Pillow raise errors of every kind
                raise ValueError(f"image: cannot be used: {error}") from error
        image = np.asarray(image)
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
            raise ValueError(
                f"image: expected uint8 of shape (H, W, 3), got {image.dtype} of {image.shape}"
            )
        least, most = self.info.score_threshold, self.info.max_proposals
        threshold = least if score_threshold is None else score_threshold
        if not least <= threshold <= 1:
            raise ValueError(
                f"score_threshold is {score_threshold}; expected {least} (the least score that "
                "this model was exported with) to 1"
            )
        count = most if num_proposals is None else num_proposals
        if not 1 <= count <= most:
            raise ValueError(f"num_proposals is {num_proposals}; expected 1 to {most}")
        return image, threshold, count

    def _outputs(
        self, canvas: np.ndarray, size: tuple[int, int], num_proposals: int, names: tuple[str, ...]
    ) -> list[np.ndarray]:
        inputs = canvas, np.array(size, np.int64), np.array(num_proposals, np.int64)
        outputs = self._run(*inputs, names)
        if not all(np.isfinite(output).all() for output in outputs[:2]):
            raise FloatingPointError(
                f"{self._path}: boxes or scores of this model's output are not finite: its weights "
                "are damaged, or its values overflow"
            )
        return outputs

    def _prepare(self, image: np.ndarray) -> tuple[np.ndarray, tuple[int, int]]:
        """The padded image, which starts with the resized one, and the size of the latter."""
        info = self.info
        size = info.resized(image.shape[:2])
        conflict = info.canvas_conflict(image.shape[:2])
        if conflict and not self._warned:
            self._warned = True
            h, w = image.shape[:2]
            logger.warning("%s: image of %d x %d: %s", self._path, h, w, conflict)
        # detectron2 pads to these multiples. More padding would change the features of the image.
        padded = (-(-side // info.size_divisibility) * info.size_divisibility for side in size)
        canvas = np.zeros((*padded, 3), np.uint8)
        # Resizing treats each channel alone, so that the channels can be exchanged before it.
        ordered = image if info.input_format == "BGR" else image[:, :, ::-1]
        canvas[: size[0], : size[1]] = resize(ordered, size)
        return canvas, size


def _scale(size: tuple[int, int], original: tuple[int, int]) -> np.ndarray:
    """Factors (4,) from pixels of the canvas to pixels of the image."""
    y, x = (float(after) / before for before, after in zip(size, original, strict=True))
    return np.array([x, y, x, y], np.float32)


def _postprocess(
    boxes: np.ndarray,
    scores: np.ndarray,
    classes: np.ndarray,
    size: tuple[int, int],
    original: tuple[int, int],
    threshold: float,
) -> Detections:
    """detectron2's ``detector_postprocess``, followed by the threshold."""
    height, width = original
    boxes = (boxes * _scale(size, original)).clip(0, [width, height, width, height])
    boxes = boxes.astype(np.float32)
    kept = (scores > threshold) & (boxes[:, 0] < boxes[:, 2]) & (boxes[:, 1] < boxes[:, 3])
    return Detections(boxes[kept], scores[kept], classes[kept])
