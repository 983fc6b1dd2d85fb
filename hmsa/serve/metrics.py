# SPDX-License-Identifier: Apache-2.0
"""What Prometheus reads of a server."""

from __future__ import annotations

import os
from collections.abc import Callable

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
    multiprocess,
)

CONTENT_TYPE = CONTENT_TYPE_LATEST

SHARED_FOLDER = "PROMETHEUS_MULTIPROC_DIR"
"""The variable that names a folder in which several processes add up their numbers. The package reads it when it is
imported."""

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class Metrics:
    """The numbers of one server; with `SHARED_FOLDER`, of all its processes.

    Attributes:
        requests: by route and status.
        seconds: of requests, by route, from their head to the end of the answer.
        images: that the engine answered.
        batch_size, engine_seconds: of the engine's runs.
    """

    def __init__(self) -> None:
        registry = self._registry = CollectorRegistry()
        self.requests = Counter("hmsa_requests", "Requests.", ["route", "status"], registry=registry)
        self.seconds = Histogram(
            "hmsa_request_seconds", "From the head of a request to the end of its answer.", ["route"],
            registry=registry, buckets=_SECONDS,
        )  # fmt: skip
        self.images = Counter("hmsa_images", "Images that the engine answered.", registry=registry)
        self.batch_size = Histogram(
            "hmsa_batch_size", "Images in a run of the engine.", registry=registry, buckets=(1, 2, 4, 8, 16, 32, 64)
        )
        self.engine_seconds = Histogram(
            "hmsa_engine_seconds", "Of a run of the engine.", registry=registry, buckets=_SECONDS
        )
        self._queue = Gauge(
            "hmsa_queue_length", "Requests that wait for the engine.", registry=registry, multiprocess_mode="livesum"
        )
        self._waiting: Callable[[], int] = int
        ProcessCollector(registry=registry)

    def watch_queue(self, waiting: Callable[[], int]) -> None:
        """Ask this for the queue's length."""
        self._waiting = waiting

    def engine_ran(self, images: int, seconds: float) -> None:
        """Count a run of the engine."""
        self.images.inc(images)
        self.batch_size.observe(images)
        self.engine_seconds.observe(seconds)
        self._queue.set(self._waiting())

    def text(self) -> bytes:
        """All of it, in Prometheus' text format."""
        self._queue.set(self._waiting())
        if os.environ.get(SHARED_FOLDER) is None:
            return generate_latest(self._registry)
        shared = CollectorRegistry()
        multiprocess.MultiProcessCollector(shared)
        return generate_latest(shared)


def forget(pid: int) -> None:
    """Count no more what waited in a process that has ended, of those that share `SHARED_FOLDER`."""
    multiprocess.mark_process_dead(pid)
