"""Runs the application with uvicorn."""

from __future__ import annotations

import math
import signal
import socket
from collections.abc import Callable

import uvicorn
from fastapi import FastAPI

__all__ = ["run_server"]


def run_server(
    app: FastAPI, host: str, port: int, seconds: float, listening: Callable[[str], None]
) -> None:
    """Serve until SIGTERM or SIGINT, and then answer the requests that have arrived.

    Args:
        app: see `build_app`.
        host: address to listen on.
        port: 0 for a free one.
        seconds: the longest time of a request. Requests end by then after a signal.
        listening: called with the URL once connections are accepted.

    Raises:
        OSError: the address cannot be listened on.
        KeyboardInterrupt: after SIGINT.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family, backlog=1024)
    except OSError as error:
        raise OSError(f"cannot listen on {host}, port {port}: {error}") from error
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        server_header=False,
        ws="none",
        timeout_graceful_shutdown=math.ceil(seconds) + 1,
    )
    server = uvicorn.Server(config)

    # uvicorn has handlers of its own while it runs, and sends the signal to its process once more
    # at the end, which must not be an error then. This handler is also for signals before it runs.
    def stop(*_) -> None:
        server.should_exit = True

    previous = signal.signal(signal.SIGTERM, stop)
    try:
        name = f"[{host}]" if ":" in host else host
        listening(f"http://{name}:{listener.getsockname()[1]}")
        server.run(sockets=[listener])
    finally:
        signal.signal(signal.SIGTERM, previous)
        listener.close()
