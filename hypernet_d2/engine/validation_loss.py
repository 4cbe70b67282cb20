"""The losses of a model on its validation sets."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator

import torch
from detectron2.config import CfgNode
from detectron2.data import build_detection_test_loader
from detectron2.data import transforms as T
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from hypernet_d2.data import NamedErrorDatasetMapper, PartDatasetMapper
from hypernet_d2.data.build import get_training_records
from hypernet_d2.data.class_names import training_classes
from hypernet_d2.data.loader import defer_sigterm_to_parent
from hypernet_d2.data.parts import has_parts

__all__ = ["ValidationLoss"]


class ValidationLoss:
    """Computes the mean of each loss over the images of ``DATASETS.TEST``, one image at a time.

    Images are resized as at test time and not augmented; BatchNorm and dropout are as at test time;
    the random choice of proposals that are classified is the same each time. Images without objects
    are left out where training leaves them out.
    """

    def __init__(self, cfg: CfgNode):
        """
        Args:
            cfg: of the model, with the validation sets as ``DATASETS.TEST``; the training sets have
                been loaded.

        Raises:
            ValueError, FileNotFoundError: see
                :func:`hypernet_d2.data.build.get_training_records`; a set has no annotations, or
                not the classes of the training sets in their order.
        """
        cfg = cfg.clone()
        cfg.defrost()
        # The proposals are those of the test sets.
        cfg.DATASETS.PROPOSAL_FILES_TRAIN = cfg.DATASETS.PROPOSAL_FILES_TEST
        mapper_type = PartDatasetMapper if has_parts(cfg) else NamedErrorDatasetMapper
        resize = T.ResizeShortestEdge(cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST)
        mapper = mapper_type(cfg, True, augmentations=[resize])
        classes = training_classes(cfg.DATASETS.TRAIN)
        cfg.DATASETS.TRAIN = cfg.DATASETS.TEST
        records = get_training_records(cfg)
        found = training_classes(cfg.DATASETS.TRAIN)
        if classes != found:
            raise ValueError(
                f"MODEL.HYPERNET.TRAIN.VALIDATION_LOSS: {', '.join(cfg.DATASETS.TRAIN)} has the "
                f"classes {found} and the training set {classes}; expected the same names in the "
                "same order"
            )
        self._count = len(records)
        self._loader = build_detection_test_loader(
            records, mapper=mapper, num_workers=cfg.DATALOADER.NUM_WORKERS
        )
        self._loader.worker_init_fn = defer_sigterm_to_parent

    def __call__(self, model: nn.Module) -> dict[str, float]:
        """
        Args:
            model: not wrapped in DistributedDataParallel, in any mode; it is left in that mode.

        Returns:
            ``validation_loss``, the sum, and ``validation_<name of the loss>`` for each loss. All
            processes get the same.
        """
        sums: Counter = Counter()
        devices = [p.device for p in model.parameters() if p.device.type == "cuda"][:1]
        with (
            torch.no_grad(),
            torch.random.fork_rng(devices),
            EventStorage(1),  # of its own: heads write scalars of their training
            losses_without_training(model),
        ):
            for batch in self._loader:
                torch.manual_seed(0)
                for name, value in model(batch).items():
                    sums[name] += float(value)
        total: Counter = Counter()
        for part in comm.all_gather(sums):
            total.update(part)
        means = {name: value / self._count for name, value in sorted(total.items())}
        return {
            "validation_loss": sum(means.values()),
            **{f"validation_{name}": value for name, value in means.items()},
        }


@contextlib.contextmanager
def losses_without_training(model: nn.Module) -> Iterator[None]:
    """A mode in which a model returns losses, and its layers work as at test time."""
    modes = {module: module.training for module in model.modules()}
    for module in modes:
        # Heads return losses in training mode; dropout and the like have no children.
        is_layer = isinstance(module, _BatchNorm) or next(module.children(), None) is None
        module.training = not is_layer
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
