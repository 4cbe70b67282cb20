"""A hook that records the memory of the process."""

from __future__ import annotations

import logging
import sys

import torch
from detectron2.engine import HookBase

try:
    import resource
except ImportError:  # Windows
    resource = None

__all__ = ["HostMemory"]

logger = logging.getLogger(__name__)

PERIOD = 20  # iterations, as in detectron2's writers


class HostMemory(HookBase):
    """Records the peak resident memory of the process in MB, as ``host_mem_mb``.

    The stock printer shows the memory of a GPU; without a GPU this hook logs the host's instead.
    On Windows nothing is recorded.
    """

    def after_step(self) -> None:
        if resource is None or (self.trainer.iter + 1) % PERIOD:
            return
        unit = 2**20 if sys.platform == "darwin" else 2**10
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
        self.trainer.storage.put_scalar("host_mem_mb", memory, smoothing_hint=False)
        if not torch.cuda.is_available():
            logger.info("peak host memory: %.0f MB", memory)
