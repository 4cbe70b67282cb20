"""Detection with an exported model."""

from __future__ import annotations

import logging
import os
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from hypernet_d2.utils.images import resize
from hypernet_d2.utils.tiles import merge_detections, tile_boxes

from .heat_maps import find_keypoints, paste_masks, paste_parts
from .hub import find_model
from .images import ImageLike, check_image, open_image
from .metadata import OUTPUTS, ModelInfo
from .providers import RUNTIMES

__all__ = ["Detections", "Detector", "Instances", "Stages"]

logger = logging.getLogger(__name__)


class Detections(NamedTuple):
    """Objects in an image, best first."""

    boxes: np.ndarray  # (n, 4) float32, x1 y1 x2 y2 in pixels of the image
    scores: np.ndarray  # (n,) float32, in (0, 1]
    classes: np.ndarray  # (n,) int64, indices into Detector.info.classes


class Instances(NamedTuple):
    """Objects in an image with what else the model predicts for them, None where it does not."""

    detections: Detections
    masks: np.ndarray | None  # (n, H, W) bool
    parts: np.ndarray | None  # (n, H, W) uint8: 0 is no part, p + 1 is part p
    keypoints: np.ndarray | None  # (n, L, 3) float32: x, y in pixels of the image, score in (0, 1]


class Stages(NamedTuple):
    """The intermediate results of a model. Boxes are in pixels of the image."""

    detections: Detections
    proposals: np.ndarray  # (k, 4) float32, best first
    objectness: np.ndarray  # (k,) float32, logits
    windows: np.ndarray  # (k, 4) float32, the windows or anchors that the proposals come from
    feature: np.ndarray  # (C, h, w) float32, the map on which they were scored (hyper feature)


class Detector:
    """Detects with a file that ``tools/export_model.py`` wrote.

    An image is resized and padded as detectron2's ``DefaultPredictor`` does. If it does not fit the
    model's canvas (``info.canvas``), it is scaled down further, and the first such image is logged
    as a warning. A detector may be called from several threads at a time.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        *,
        threads: int | None = None,
        providers: Sequence[str] | None = None,
        runtime: str | None = None,
    ):
        """
        Args:
            path: an ONNX file or an archive of torch.export; the content decides, not the name.
            threads: of onnxruntime or OpenVINO, for one call; None for the number of cores. PyTorch
                has one number for the whole process, ``torch.set_num_threads``.
            providers: onnxruntime's execution providers, the preferred one first, by names as in
                `hypernet_d2.deploy.providers.PROVIDERS`, e.g. ["cuda"]; by default the CPU. One
                that is missing is replaced by the next one, or the CPU, with a warning.
            runtime: "onnxruntime" or "openvino" for an ONNX file, "torch" or "torch.compile" for an
                archive; by default the first of each.

        Raises:
            FileNotFoundError: there is no such file.
            ImportError: the library that runs the file is not installed.
            ValueError: the file is no exported model, or could run code; an unknown provider or
                runtime, or one that does not run such a file.
        """
        self._path = path = Path(path)
        self._warned = False
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such model file")
        self._run = _start(path, threads, providers, runtime)
        self.info: ModelInfo = self._run.info
        self._thresholds = np.array(self.info.score_thresholds or [0.0], np.float32)

    @classmethod
    def from_pretrained(
        cls,
        source: str | os.PathLike,
        *,
        file: str | None = None,
        revision: str | None = None,
        **options,
    ) -> Detector:
        """The detector in a folder or in a repository of the Hugging Face Hub (``OWNER/NAME``).

        ``file`` says which one where there are several, ``revision`` is a branch, tag or commit.
        `hypernet_d2.deploy.hub.find_model` and `__init__`, which gets the other options, have the
        errors.
        """
        return cls(find_model(source, file, revision), **options)

    def __call__(
        self,
        image: ImageLike,
        *,
        score_threshold: float | None = None,
        num_proposals: int | None = None,
        tile: int | None = None,
        overlap: int | None = None,
        whole_image: bool = False,
    ) -> Detections:
        """Detect in one image.

        Args:
            image: (H, W, 3) uint8, BGR as OpenCV reads it; an image of Pillow, whose mode says
                the order of its channels; or the path of an image file. The last two are rotated
                and scaled to 8 bits as `hypernet_d2.utils.images.as_shown` describes.
            score_threshold: least score of a detection, of all classes; not below the file's own
                (``info.score_threshold``). By default it is that of each class,
                ``info.score_thresholds``, where the file has them, else the file's own.
            num_proposals: how many of the best proposals are classified; from 1 to
                ``info.max_proposals``, which is the default.
            tile: detect in tiles of this side, in pixels of the image, one after the other, and
                merge the detections as `hypernet_d2.utils.tiles.merge_detections` describes; for
                small objects in large images. Each tile has its own ``num_proposals`` and at most
                ``info.max_detections`` detections. Of an image file `open_large_image` reads a
                tile at a time where the file allows it.
            overlap: of neighboring tiles, in pixels; at least the side of most objects. By default
                a fifth of the tile.
            whole_image: with ``tile``, detect in the whole image as well, for objects that are
                larger than a tile.

        Raises:
            FileNotFoundError: there is no such image file.
            ValueError: not an image, a number out of its range, or a model that fails.
            FloatingPointError: a box or score of the model's output is not finite.
            RuntimeError: PyTorch would hang, since the process is a forked one.
        """
        threshold, count = self._check_numbers(score_threshold, num_proposals)
        if tile is None:
            if overlap is not None or whole_image:
                name = "whole_image" if overlap is None else "overlap"
                raise ValueError(f"{name} is {overlap or whole_image}, but no tile is given")
            return self._detect(check_image(image), threshold, count)
        overlap = tile // 5 if overlap is None else overlap
        with open_image(image) as large:
            tiles = tile_boxes(large.size, tile, overlap)
            if whole_image and len(tiles) > 1:
                tiles = np.vstack([tiles, [0, 0, *large.size[::-1]]])
            found = [self._detect(large.read(part), threshold, count) for part in tiles]
        if len(tiles) == 1:
            return found[0]
        return Detections(*merge_detections(found, tiles, large.size))

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
        resized = self.info.resized(image.shape[:2])
        h, w = (-(-side // self.info.feature_stride) for side in resized)
        return Stages(
            _postprocess(*outputs[:3], size, image.shape[:2], threshold)[0],
            proposals[exist] * scale,
            objectness[exist],
            windows[exist] * scale,
            feature[:, :h, :w],
        )

    def instances(
        self,
        image: ImageLike,
        *,
        score_threshold: float | None = None,
        num_proposals: int | None = None,
    ) -> Instances:
        """As `__call__`, with masks, parts and keypoints where the model predicts them."""
        image, threshold, count = self._check(image, score_threshold, num_proposals)
        canvas, size = self._prepare(image)
        heads = self.info.heads
        outputs = self._outputs(canvas, size, count, (*OUTPUTS[:3], *heads))
        boxes, original = outputs[0], image.shape[:2]
        detections, kept = _postprocess(*outputs[:3], size, original, threshold)
        maps = {name: x[kept] for name, x in zip(heads, outputs[3:], strict=True)}
        masks = parts = keypoints = None
        if "masks" in maps:
            masks = paste_masks(maps["masks"][:, 0], detections.boxes, original)
        if "part_masks" in maps:
            parts = paste_parts(maps["part_masks"], detections.boxes, original)
        if "keypoint_heat_maps" in maps:
            margin = self.info.keypoint_margin * (boxes[kept, 2:] - boxes[kept, :2])
            areas = boxes[kept] + np.concatenate([-margin, margin], axis=1)
            keypoints = find_keypoints(maps["keypoint_heat_maps"], areas)
            keypoints[:, :, :2] *= _scale(size, original)[:2]
        return Instances(detections, masks, parts, keypoints)

    def _detect(self, image: np.ndarray, threshold: np.ndarray, count: int) -> Detections:
        canvas, size = self._prepare(image)
        outputs = self._outputs(canvas, size, count, OUTPUTS[:3])
        return _postprocess(*outputs, size, image.shape[:2], threshold)[0]

    def _check(
        self, image: ImageLike, score_threshold: float | None, num_proposals: int | None
    ) -> tuple[np.ndarray, np.ndarray, int]:
        """The image as an array, the least score of each class or of all, and the proposals."""
        return check_image(image), *self._check_numbers(score_threshold, num_proposals)

    def _check_numbers(
        self, score_threshold: float | None, num_proposals: int | None
    ) -> tuple[np.ndarray, int]:
        least, most = self.info.score_threshold, self.info.max_proposals
        if score_threshold is None:
            thresholds = self._thresholds
        elif least <= score_threshold <= 1:
            thresholds = np.array([score_threshold], np.float32)
        else:
            raise ValueError(
                f"score_threshold is {score_threshold}; expected {least} (the least score that "
                "this model was exported with) to 1"
            )
        count = most if num_proposals is None else num_proposals
        if not 1 <= count <= most:
            raise ValueError(f"num_proposals is {num_proposals}; expected 1 to {most}")
        return thresholds, count

    def inputs(
        self, image: ImageLike, *, num_proposals: int | None = None
    ) -> dict[str, np.ndarray]:
        """The inputs of the graph for an image, by their names."""
        image, _, count = self._check(image, None, num_proposals)
        return self._feed(*self._prepare(image), count)

    def _feed(
        self, canvas: np.ndarray, size: tuple[int, int], num_proposals: int
    ) -> dict[str, np.ndarray]:
        feed = {"image": canvas, "num_proposals": np.array(num_proposals, np.int64)}
        if not self.info.resizes:
            feed["size"] = np.array(size, np.int64)
        return feed

    def _outputs(
        self, canvas: np.ndarray, size: tuple[int, int], num_proposals: int, names: tuple[str, ...]
    ) -> list[np.ndarray]:
        outputs = self._run(self._feed(canvas, size, num_proposals), names)
        if not all(np.isfinite(output).all() for output in outputs[:2]):
            raise FloatingPointError(
                f"{self._path}: boxes or scores of this model's output are not finite: its weights "
                "are damaged, or its values overflow"
            )
        return outputs

    def _prepare(self, image: np.ndarray) -> tuple[np.ndarray, tuple[int, int]]:
        """The padded image, which starts with the resized one, and the size of the latter.

        For a graph that resizes, the image itself and its size.
        """
        info = self.info
        size = info.resized(image.shape[:2])
        conflict = info.canvas_conflict(image.shape[:2])
        if conflict and not self._warned:
            self._warned = True
            h, w = image.shape[:2]
            logger.warning("%s: image of %d x %d: %s", self._path, h, w, conflict)
        # Resizing treats each channel alone, so that the channels can be exchanged before it.
        ordered = image if info.input_format == "BGR" else image[:, :, ::-1]
        if info.resizes:
            return np.ascontiguousarray(ordered), image.shape[:2]
        # detectron2 pads to these multiples. More padding would change the features of the image.
        padded = (-(-side // info.size_divisibility) * info.size_divisibility for side in size)
        canvas = np.zeros((*padded, 3), np.uint8)
        canvas[: size[0], : size[1]] = resize(ordered, size)
        return canvas, size


def _start(path: Path, threads: int | None, providers: Sequence[str] | None, runtime: str | None):
    """The runner of a file."""
    is_archive = zipfile.is_zipfile(path)
    expected = RUNTIMES["torch_export" if is_archive else "onnx"]
    if runtime is None:
        runtime = expected[0]
    if runtime not in expected:
        kind = "an archive of torch.export" if is_archive else "an ONNX file"
        raise ValueError(
            f"{path}: runtime is {runtime!r}; expected {' or '.join(expected)} for {kind}"
        )
    if providers and runtime != "onnxruntime":
        raise ValueError(f"{path}: providers are onnxruntime's, but the runtime is {runtime}")
    if is_archive:
        from .torch_runner import TorchRunner

        return TorchRunner(path, compiled=runtime == "torch.compile")
    if runtime == "openvino":
        from .openvino_runner import OpenVinoRunner

        return OpenVinoRunner(path, threads)
    from .onnx_runner import OnnxRunner

    return OnnxRunner(path, threads, providers)


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
    thresholds: np.ndarray,
) -> tuple[Detections, np.ndarray]:
    """detectron2's ``detector_postprocess``, followed by the thresholds.

    Returns:
        The detections, and the index of each among the rows of the graph.
    """
    height, width = original
    boxes = (boxes * _scale(size, original)).clip(0, [width, height, width, height])
    boxes = boxes.astype(np.float32)
    least = thresholds[classes] if len(thresholds) > 1 else thresholds
    valid = (scores > 0) & (scores >= least)
    kept = np.flatnonzero(valid & (boxes[:, 0] < boxes[:, 2]) & (boxes[:, 1] < boxes[:, 3]))
    return Detections(boxes[kept], scores[kept], classes[kept]), kept
