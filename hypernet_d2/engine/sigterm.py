"""Handling of SIGTERM, with which a cluster's scheduler announces that it will kill a job."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable

from detectron2.engine import HookBase
from detectron2.utils import comm

__all__ = ["EXIT_CODE", "ExitOnSigterm"]

logger = logging.getLogger(__name__)

EXIT_CODE = 128 + signal.SIGTERM  # what a shell reports for a process that SIGTERM has ended


class ExitOnSigterm(HookBase):
    """On SIGTERM to any of the processes, all finish the iteration, save a checkpoint and exit.

    The hook stands after the stock checkpointer and before the evaluation. In an evaluation a
    single process saves and exits at once; of several the main one saves at once, and all exit
    after the evaluation and one more iteration, if they are given the time.

    Raises:
        SystemExit: with 143, in all processes.
    """

    def __init__(self):
        self._received = False
        self._completed: int | None = None  # the iteration whose state can be saved now
        self._restore: Callable[[], object] = lambda: None

    def before_train(self) -> None:
        """Install the signal handler, which only the main thread can."""
        if threading.current_thread() is threading.main_thread():
            previous = signal.signal(signal.SIGTERM, self._receive)
            self._restore = lambda: signal.signal(signal.SIGTERM, previous)

    def before_step(self) -> None:
        """Weights and optimizer change from here on, so that nothing can be saved."""
        self._completed = None

    def after_step(self) -> None:
        """Save and exit, if one of the processes has received the signal."""
        self._completed = self.trainer.iter
        if any(comm.all_gather(self._received)):
            self._received = True
            self._save()
            comm.synchronize()
            raise SystemExit(EXIT_CODE)

    def after_train(self) -> None:
        """Restore the previous handler: the last evaluation follows a checkpoint and may end."""
        self._restore()
        if self._received and self.trainer.iter + 1 >= self.trainer.max_iter:
            raise SystemExit(EXIT_CODE)

    def _receive(self, *_) -> None:
        self._received = True
        if self._completed is not None:
            self._save()
            if comm.get_world_size() == 1:
                raise SystemExit(EXIT_CODE)

    def _save(self) -> None:
        iteration = self._completed
        logger.warning("SIGTERM: training stops after iteration %d", iteration)
        self.trainer.checkpointer.save(f"model_{iteration:07d}", iteration=iteration)
