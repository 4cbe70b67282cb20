"""A predictor that refuses weights which do not fit."""

from __future__ import annotations

import logging

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, Metadata
from detectron2.engine import DefaultPredictor

from hypernet_d2.checkpoint import HyperNetCheckpointer, get_class_names
from hypernet_d2.config import hypernet_node
from hypernet_d2.data import load_dataset

from .checks import check_compiled_part, check_resized_size
from .finite import raise_if_not_finite
from .tiled import TiledDetector

__all__ = ["Predictor"]

logger = logging.getLogger(__name__)


class Predictor(DefaultPredictor):
    """detectron2's DefaultPredictor, which only warns where weights are missing or do not fit.

    Its ``metadata`` is that of the first of ``DATASETS.TEST``, with the class names that the
    checkpoint has, in the order of the model's class numbers. For a checkpoint without, they are
    those of the data set.

    With ``MODEL.HYPERNET.TILES`` it detects in tiles, see :class:`TiledDetector`.

    Raises:
        FileNotFoundError: the file that ``MODEL.WEIGHTS`` names is missing.
        ValueError: ``MODEL.WEIGHTS`` is empty, of another model or not finite, or
            ``DATASETS.TEST`` is empty; see also :func:`check_tiles`.
        ImportError: see :func:`check_compiled_part`.
        FloatingPointError (when called): the features of the image are not finite.
    """

    def __init__(self, cfg: CfgNode):
        if not cfg.MODEL.WEIGHTS:
            raise ValueError("MODEL.WEIGHTS is empty; expected the file of a trained model")
        if not cfg.DATASETS.TEST:
            raise ValueError("DATASETS.TEST is empty; expected the set that has the class names")
        bare = cfg.clone()
        bare.defrost()
        bare.MODEL.WEIGHTS = ""
        super().__init__(bare)
        check_compiled_part(self.model)
        self.cfg = cfg.clone()
        self.model.backbone.register_forward_hook(raise_if_not_finite)
        HyperNetCheckpointer(self.model, strict=True).load(cfg.MODEL.WEIGHTS)
        self.metadata = self._metadata_of_model()
        self._tiled = TiledDetector(cfg, self.model) if hypernet_node(cfg).TILES.SIZE else None

    def __call__(self, original_image: np.ndarray) -> dict:
        """The model's output for one image (H, W, 3), BGR, uint8; see detectron2's.

        Raises:
            ValueError: see :func:`check_resized_size`.
        """
        if self._tiled is None:
            check_resized_size(self.cfg, original_image.shape[:2])
            return super().__call__(original_image)
        image = original_image[:, :, ::-1] if self.input_format == "RGB" else original_image
        tensor = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
        with torch.no_grad():
            return self._tiled([{"image": tensor}])[0]

    def _metadata_of_model(self) -> Metadata:
        name = self.cfg.DATASETS.TEST[0]
        names = get_class_names(self.model)
        if names is None and self.metadata.get("thing_classes") is None and name in DatasetCatalog:
            load_dataset(name)  # sets them
        known = self.metadata.as_dict()
        classes = known.get("thing_classes")
        if names is None and classes is None:
            logger.warning(
                "the checkpoint has no class names, and data set %r (DATASETS.TEST) is not "
                "registered: classes are shown as numbers; --data PATH registers it",
                name,
            )
            return self.metadata
        number = self.cfg.MODEL.ROI_HEADS.NUM_CLASSES
        names = names or [*classes, *(f"class {i}" for i in range(len(classes), number))]
        if names == classes:
            return self.metadata
        # The keys that go by the data set's class numbers.
        for key in ("thing_classes", "thing_colors", "thing_dataset_id_to_contiguous_id"):
            known.pop(key, None)
        return Metadata(**known, thing_classes=names)
