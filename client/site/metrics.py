"""Figures of a running site for Prometheus, and its health, on this machine alone."""

import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict
from http.server import ThreadingHTTPServer
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from client.consent import excluded_users
from client.site.counts import read_counts
from client.site.folder import Site
from client.site.ledger_state import LedgerState, ledger_files, ledger_state
from client.site.status import Status
from metarec_shared.errors import MetaRecError
from metarec_shared.exposition import serve_figures


class SiteCollector(Collector):
    """Reads a site's figures when somebody asks for them; a ledger only where it has changed.

    Args:
        site: The site.
        status: How it is doing.
    """

    def __init__(self, site: Site, status: Callable[[], Status]) -> None:
        self._site, self._status = site, status
        self._lock = threading.Lock()
        self._stamp: tuple[int, ...] = ()
        self._ledger: LedgerState | None = None

    def collect(self) -> Iterator[Metric]:
        """Yield all figures; those that cannot be read are left out."""
        status = self._status()
        connected = float(status.state == "connected")
        yield _gauge("metarec_site_up", "1: the supervisor runs", float(status.state != "stopped"))
        yield _gauge("metarec_site_connected", "1: the SuperNode is connected to the server", connected)
        restarts = CounterMetricFamily("metarec_site_restarts", "How often the SuperNode was started again")
        restarts.add_metric([], status.restarts)
        yield restarts
        messages = CounterMetricFamily("metarec_site_messages", "Messages by type", labels=["kind"])
        for kind, count in status.messages.items():
            messages.add_metric([kind], count)
        yield messages
        if status.last_message is not None and status.last_message.round.isdecimal():
            yield _gauge("metarec_site_last_round", "Round of the last message", float(status.last_message.round))
        yield from self._privacy()
        if (counts := read_counts(self._site.state)) is not None:
            yield _gauge("metarec_site_rows_skipped", "Rows skipped, as the last check counted", float(counts.skipped))

    def _privacy(self) -> Iterator[Metric]:
        try:
            ledger = self._read_ledger()
            excluded = len(excluded_users(self._site.excluded))
        except (MetaRecError, OSError):
            yield _gauge("metarec_site_privacy_readable", "0: the ledger or the excluded users cannot be read", 0.0)
            return
        yield _gauge("metarec_site_privacy_readable", "0: the ledger or the excluded users cannot be read", 1.0)
        yield _gauge("metarec_site_excluded_users", "Users excluded", float(excluded))
        if ledger is not None:
            yield _gauge("metarec_site_epsilon_spent", "Epsilon spent of the privacy budget", ledger.spent)
            yield _gauge("metarec_site_epsilon_left", "Epsilon left of the privacy budget", ledger.left)

    def _read_ledger(self) -> LedgerState | None:
        with self._lock:  # the accountant takes seconds: once for all who ask at a time
            files = ledger_files(self._site.privacy_file)
            stamp = tuple(file.stat().st_mtime_ns for file in (self._site.privacy_file, *(files or ())))
            if stamp != self._stamp:
                self._ledger = ledger_state(self._site.privacy_file)
                self._stamp = stamp
            return self._ledger


def serve_metrics(site: Site, status: Callable[[], Status], port: int) -> ThreadingHTTPServer:
    """Serve a site's ``/metrics`` and ``/health`` (well while it is connected) on this machine alone.

    Args:
        site: The site.
        status: How it is doing.
        port: The port; 0: a free one.

    Raises:
        OSError: The port is taken.
    """

    def health() -> tuple[bool, dict[str, Any]]:
        now = status()
        return now.state == "connected", asdict(now)

    return serve_figures(SiteCollector(site, status), health, port)


def _gauge(name: str, text: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, text, value=value)
