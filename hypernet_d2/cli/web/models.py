"""The models that the page runs: of a training, or exported."""

from __future__ import annotations

import argparse
import threading
from pathlib import Path

import numpy as np

from hypernet_d2.deploy import Detections, Detector

__all__ = ["ExportedModel", "TrainedModel", "find_weights", "load_model"]

# Of the weights in OUTPUT_DIR, the first that is there is used.
WEIGHTS = ("model_best.pth", "model_final.pth")


class ExportedModel:
    """A file that ``hypernet-d2 export`` wrote.

    Attributes:
        name: shown on the page.
        source: what the model was made from, shown on the page.
        classes: names.
        least_score: of its detections.
    """

    def __init__(self, path: Path):
        self.detector = Detector(path)
        info = self.detector.info
        self.name, self.source = path.name, info.config
        self.classes, self.least_score = list(info.classes), info.score_threshold

    def detect(
        self, image: np.ndarray, threshold: float, tile: int | None = None, overlap: int = 0
    ) -> Detections:
        """Detections in (H, W, 3) uint8, BGR.

        Args:
            image: of any size.
            threshold: least score, from ``least_score`` on.
            tile: side of the tiles in pixels; None for the whole image at once.
            overlap: of neighboring tiles, in pixels.

        Raises:
            ValueError: a number out of its range, or an image that cannot be resized.
            FloatingPointError: the model's output is not finite.
        """
        if tile is None:
            return self.detector(image, score_threshold=threshold)
        return self.detector(image, score_threshold=threshold, tile=tile, overlap=overlap)


class TrainedModel:
    """A config and its weights.

    Attributes:
        folder: ``OUTPUT_DIR`` of the training, which may have its evaluation; None for a config.
        name, source, classes, least_score: as of `ExportedModel`.
    """

    def __init__(self, cfg, name: str, folder: Path | None = None):
        from hypernet_d2.engine import Predictor

        self.cfg = cfg.clone()
        self.cfg.defrost()
        self.cfg.MODEL.HYPERNET.TILES.SIZE = 0  # those of the page are used
        self.predictor = Predictor(self.cfg)
        self.folder = folder
        self.name, self.source = name, Path(cfg.MODEL.WEIGHTS).name
        count = cfg.MODEL.ROI_HEADS.NUM_CLASSES
        known = self.predictor.metadata.get("thing_classes")
        self.classes = list(known) if known else [f"class {i}" for i in range(count)]
        self.least_score = float(cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST)
        self._lock = threading.Lock()  # the server calls from several threads

    def detect(
        self, image: np.ndarray, threshold: float, tile: int | None = None, overlap: int = 0
    ) -> Detections:
        """As `ExportedModel.detect`."""
        with self._lock:
            if tile is None:
                instances = self.predictor(image)["instances"].to("cpu")
            else:
                instances = self._detect_in_tiles(image, tile, overlap)
        instances = instances[instances.scores >= threshold]
        boxes = instances.pred_boxes.tensor.float().numpy()
        return Detections(boxes, instances.scores.float().numpy(), instances.pred_classes.numpy())

    def _detect_in_tiles(self, image: np.ndarray, tile: int, overlap: int):
        import torch

        from hypernet_d2.engine import TiledDetector

        cfg = self.cfg.clone()
        cfg.MODEL.HYPERNET.TILES.SIZE, cfg.MODEL.HYPERNET.TILES.OVERLAP = tile, overlap
        ordered = image if self.predictor.input_format == "BGR" else image[:, :, ::-1]
        tensor = torch.from_numpy(np.ascontiguousarray(ordered.transpose(2, 0, 1)))
        with torch.no_grad():
            output = TiledDetector(cfg, self.predictor.model)([{"image": tensor}])[0]
        return output["instances"].to("cpu")


def load_model(path: Path, args: argparse.Namespace) -> ExportedModel | TrainedModel:
    """The model of a file or of an output folder.

    Args:
        path: an exported model, or ``OUTPUT_DIR`` of a training.
        args: with ``data`` and ``opts``, for the config of a training.

    Raises:
        FileNotFoundError, ValueError: there is neither; or see `Detector` and `Predictor`.
    """
    if not path.is_dir():
        return ExportedModel(path)
    from hypernet_d2.engine import setup_cfg

    config = path / "config.yaml"
    if not config.is_file():
        raise FileNotFoundError(
            f"{path}: no config.yaml; expected OUTPUT_DIR of a training, or an exported model"
        )
    cfg = setup_cfg(argparse.Namespace(config_file=str(config), data=args.data, opts=args.opts))
    if "MODEL.WEIGHTS" not in args.opts[::2]:
        cfg.MODEL.WEIGHTS = str(find_weights(path))
    return TrainedModel(cfg, path.resolve().name, path)


def find_weights(folder: Path) -> Path:
    """The weights of a training.

    Raises:
        FileNotFoundError: there are none.
    """
    found = next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)
    if found is None:
        raise FileNotFoundError(f"{folder}: neither {' nor '.join(WEIGHTS)}; is it trained?")
    return found
