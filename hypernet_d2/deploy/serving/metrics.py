"""Metrics of the server, in Prometheus' text format."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)

__all__ = ["Metrics"]

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class Metrics:
    """The metrics of one server; memory and CPU time of the process are among them on Linux."""

    MEDIA_TYPE = CONTENT_TYPE_LATEST

    def __init__(self, count_waiting: Callable[[], int]):
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self.requests = Counter(
            "hypernet_requests", "Requests by HTTP status", ["status"], registry=registry
        )
        self.request_seconds = Histogram(
            "hypernet_request_seconds",
            "From the start of a request to its reply, of those that succeed",
            buckets=_SECONDS,
            registry=registry,
        )
        self.detection_seconds = Histogram(
            "hypernet_detection_seconds",
            "The model's time for one picture",
            buckets=_SECONDS,
            registry=registry,
        )
        waiting = Gauge("hypernet_waiting_pictures", "Pictures in the queue", registry=registry)
        waiting.set_function(count_waiting)

    def text(self) -> bytes:
        return generate_latest(self.registry)
