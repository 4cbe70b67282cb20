"""Starts the processes of a distributed run."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable

import detectron2.engine
import torch
from torch.multiprocessing import ProcessExitedException

from .sigterm import EXIT_CODE

__all__ = ["launch"]


def launch(main: Callable, num_processes: int, *, args: tuple = (), **options) -> None:
    """detectron2's ``launch``, for CPUs too, with SIGTERM passed on to the processes it starts.

    Processes on CPUs share the threads of PyTorch: each gets an equal part, unless the user has
    set ``OMP_NUM_THREADS``.

    Args:
        main: called as ``main(*args)`` in each process.
        num_processes: on this machine; one per GPU where there are GPUs.
        args: arguments of ``main``.
        options: ``num_machines``, ``machine_rank``, ``dist_url`` and ``timeout``, as detectron2's.

    Raises:
        SystemExit: with 143, if the processes have exited because of SIGTERM.
    """
    if num_processes * options.get("num_machines", 1) <= 1:
        detectron2.engine.launch(main, num_processes, args=args, **options)
        return
    received = []

    def pass_on(*_) -> None:
        received.append(True)
        for process in multiprocessing.active_children():
            os.kill(process.pid, signal.SIGTERM)

    previous = signal.signal(signal.SIGTERM, pass_on)
    try:
        detectron2.engine.launch(
            run_with_shared_threads, num_processes, args=(num_processes, main, args), **options
        )
    except ProcessExitedException as error:
        if error.exit_code == EXIT_CODE or (received and error.exit_code == -signal.SIGTERM):
            raise SystemExit(EXIT_CODE) from None
        raise
    finally:
        signal.signal(signal.SIGTERM, previous)


def run_with_shared_threads(num_processes: int, main: Callable, args: tuple) -> None:
    """What each process runs: limit its threads, then call ``main(*args)``."""
    # With more threads than cores, threads wait for each other at every barrier.
    if not torch.cuda.is_available() and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, torch.get_num_threads() // num_processes))
    main(*args)
