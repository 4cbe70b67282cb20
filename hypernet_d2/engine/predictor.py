"""A predictor that refuses weights which do not fit."""

from __future__ import annotations

import logging

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.engine import DefaultPredictor

from hypernet_d2.checkpoint import HyperNetCheckpointer
from hypernet_d2.data import load_dataset

from .finite import raise_if_not_finite

__all__ = ["Predictor"]

logger = logging.getLogger(__name__)


class Predictor(DefaultPredictor):
    """detectron2's DefaultPredictor, which only warns where weights are missing or do not fit.

    Its ``metadata`` has the class names of data sets that get them when they are read, as those
    of ``register_coco_instances`` do.

    Raises:
        FileNotFoundError: the file that ``MODEL.WEIGHTS`` names is missing.
        ValueError: ``MODEL.WEIGHTS`` is empty, of another model or not finite, or
            ``DATASETS.TEST`` is empty.
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
        self.cfg = cfg.clone()
        self.model.backbone.register_forward_hook(raise_if_not_finite)
        HyperNetCheckpointer(self.model, strict=True).load(cfg.MODEL.WEIGHTS)
        name = cfg.DATASETS.TEST[0]
        if self.metadata.get("thing_classes") is None and name in DatasetCatalog:
            load_dataset(name)
        if self.metadata.get("thing_classes") is None:
            logger.warning(
                "data set %r (DATASETS.TEST) is not registered: classes are shown as numbers; "
                "--data FILE.py registers it",
                name,
            )
