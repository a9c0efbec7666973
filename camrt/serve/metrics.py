"""Counters, gauges and histograms for Prometheus."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from camrt.serve.batching import BatchStatistics

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_IMAGES = (1, 2, 4, 8, 16, 32, 64)
_METHODS = ("GET", "HEAD", "POST", "OPTIONS")  # others are counted together: a label takes no text of a client


class Metrics:
    """The metrics of a server, in a registry of their own."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self.in_progress = Gauge(
            "camrt_requests_in_progress", "Requests under way: uploaded, waiting or computed.", registry=self._registry
        )
        self._requests = Counter(
            "camrt_requests", "Requests by route and status.", ["method", "route", "status"], registry=self._registry
        )
        self._seconds = Histogram(
            "camrt_request_seconds",
            "From the head of a request to the end of its answer.",
            ["route"],
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._batches = Histogram(
            "camrt_batch_images", "Images in a batch.", ["model"], buckets=_IMAGES, registry=self._registry
        )
        self._computing = Histogram(
            "camrt_batch_seconds", "How long a batch is computed.", ["model"], buckets=_SECONDS, registry=self._registry
        )
        self._waiting = Histogram(
            "camrt_queue_seconds",
            "How long a request waits for its batch.",
            ["model"],
            buckets=_SECONDS,
            registry=self._registry,
        )

    def watch(self, model: str, version: str, depth: Callable[[], int]) -> None:
        """Report the length of a model's queue whenever metrics are asked for."""
        self._registry.register(_Depth(model, version, depth))

    def count_request(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count a request that has been answered."""
        self._requests.labels(method if method in _METHODS else "other", route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def count_batch(self, model: str, batch: BatchStatistics) -> None:
        """Count a batch that has been computed."""
        self._batches.labels(model).observe(batch.rows)
        self._computing.labels(model).observe(batch.seconds)
        for seconds in batch.waited:
            self._waiting.labels(model).observe(seconds)

    def text(self) -> bytes:
        """Return them in Prometheus' text format."""
        return generate_latest(self._registry)


class _Depth(Collector):
    def __init__(self, model: str, version: str, depth: Callable[[], int]) -> None:
        self._model, self._version, self._depth = model, version, depth

    def collect(self) -> list[Metric]:
        family = GaugeMetricFamily("camrt_queue_images", "Images that wait.", labels=["model", "version"])
        family.add_metric([self._model, self._version], self._depth())
        return [family]

    def describe(self) -> list[Metric]:
        return []
