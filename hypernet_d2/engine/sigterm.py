"""What SIGTERM does, with which a cluster's scheduler announces that it is about to kill a job."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable

import detectron2.engine
from detectron2.engine import HookBase
from detectron2.utils import comm
from torch.multiprocessing import ProcessExitedException

__all__ = ["EXIT_CODE", "LeaveOnSigterm", "launch"]

logger = logging.getLogger(__name__)

EXIT_CODE = 128 + signal.SIGTERM  # what a shell says of a process that SIGTERM has ended


class LeaveOnSigterm(HookBase):
    """SIGTERM to any of the processes: all finish the iteration and leave, with a checkpoint.

    Comes after the stock checkpointer and before the evaluation. A single process does not finish
    an evaluation; of several the main one saves at once, and they leave after the evaluation, if
    they are given the time.

    Raises:
        SystemExit: with 143, in all processes.
    """

    def __init__(self):
        self._received = False
        self._iteration = -1  # the last that is complete
        self._restore: Callable[[], object] = lambda: None

    def before_train(self) -> None:
        """Take the signal; only the main thread may."""
        if threading.current_thread() is threading.main_thread():
            previous = signal.signal(signal.SIGTERM, self._receive)
            self._restore = lambda: signal.signal(signal.SIGTERM, previous)

    def before_step(self) -> None:
        """From here on the state is that of no iteration."""
        self._iteration = -1

    def after_step(self) -> None:
        """Leave, if one of the processes has been told to."""
        self._iteration = self.trainer.iter
        if any(comm.all_gather(self._received)):
            self._received = True
            self._save()
            comm.synchronize()
            raise SystemExit(EXIT_CODE)

    def after_train(self) -> None:
        """Give the signal back: it ends the last evaluation, which has a checkpoint before it."""
        self._restore()
        if self._received and self.trainer.iter + 1 >= self.trainer.max_iter:
            raise SystemExit(EXIT_CODE)

    def _receive(self, *_) -> None:
        self._received = True
        if self._iteration == self.trainer.iter:
            self._save()
            if comm.get_world_size() == 1:
                raise SystemExit(EXIT_CODE)

    def _save(self) -> None:
        logger.warning("SIGTERM: training stops after iteration %d", self._iteration)
        name, iteration = f"model_{self._iteration:07d}", self._iteration
        self.trainer.checkpointer.save(name, iteration=iteration)


def launch(main: Callable, num_processes: int, **options) -> None:
    """detectron2's ``launch``, which passes SIGTERM on to the processes that it starts.

    Raises:
        SystemExit: with 143, if they have left for SIGTERM.
    """
    received = []

    def pass_on(*_) -> None:
        received.append(True)
        for process in multiprocessing.active_children():
            os.kill(process.pid, signal.SIGTERM)

    several = num_processes * options.get("num_machines", 1) > 1
    previous = signal.signal(signal.SIGTERM, pass_on) if several else None
    try:
        detectron2.engine.launch(main, num_processes, **options)
    except ProcessExitedException as error:
        if error.exit_code == EXIT_CODE or (received and error.exit_code == -signal.SIGTERM):
            raise SystemExit(EXIT_CODE) from None
        raise
    finally:
        if several:
            signal.signal(signal.SIGTERM, previous)
