"""Figures of a running service for Prometheus, and its health, on this machine alone."""

from collections.abc import Callable, Iterator
from http.server import ThreadingHTTPServer
from typing import Any

from prometheus_client import Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from client.service.served import Models
from metarec_shared.exposition import serve_figures

_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
_USERS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class ServiceCollector(Collector):
    """Counts calls and batches.

    Args:
        models: What is served.
        waiting: Says how many calls wait.
    """

    def __init__(self, models: Models, waiting: Callable[[], int]) -> None:
        self._models, self._waiting = models, waiting
        self.open = 0
        self._calls = Counter(
            "metarec_service_calls", "Calls by method and status code", ["method", "code"], registry=None
        )
        self._seconds = Histogram(
            "metarec_service_seconds", "Seconds of a call by method", ["method"], buckets=_SECONDS, registry=None
        )
        self._batches = Histogram("metarec_service_batch_users", "Users of a batch", buckets=_USERS, registry=None)

    def answered(self, method: str, code: str, seconds: float) -> None:
        """Count a call that has ended.

        Args:
            method: Its method.
            code: The status it ended with.
            seconds: How long it took.
        """
        self._calls.labels(method, code).inc()
        self._seconds.labels(method).observe(seconds)

    def computed(self, users: int) -> None:
        """Count a batch."""
        self._batches.observe(users)

    def collect(self) -> Iterator[Metric]:
        """Yield all figures."""
        for one in (self._calls, self._seconds, self._batches):
            yield from one.collect()
        yield GaugeMetricFamily("metarec_service_open_calls", "Calls that are being answered", value=self.open)
        yield GaugeMetricFamily("metarec_service_waiting", "Calls that wait for the model", value=self._waiting())
        model = GaugeMetricFamily("metarec_service_model", "1: the model that is served", labels=["version"])
        model.add_metric([self._models.served.version], 1.0)
        yield model
        reloads = CounterMetricFamily("metarec_service_reloads", "Newer models, by outcome", labels=["outcome"])
        reloads.add_metric(["served"], self._models.reloads)
        reloads.add_metric(["refused"], self._models.failures)
        yield reloads


def serve_metrics(
    collector: ServiceCollector, health: Callable[[], tuple[bool, dict[str, Any]]], port: int
) -> ThreadingHTTPServer:
    """Serve ``/metrics`` and ``/health`` on this machine alone.

    Args:
        collector: The figures.
        health: Returns whether the service takes calls, and what is said beside it.
        port: The port; 0: a free one.

    Raises:
        OSError: The port is taken.
    """
    return serve_figures(collector, health, port)
