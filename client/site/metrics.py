"""Figures of a running site for Prometheus, and its health, on this machine alone."""

import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.registry import Collector

from client.consent import excluded_users
from client.site.counts import read_counts
from client.site.folder import Site
from client.site.ledger_state import LedgerState, ledger_files, ledger_state
from client.site.status import Status
from metarec_shared.errors import MetaRecError

LOOPBACK = "127.0.0.1"


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
    """Serve ``/metrics`` and ``/health`` on the loopback interface, from a thread of their own.

    Args:
        site: The site.
        status: How it is doing.
        port: The port; 0: a free one.

    Raises:
        OSError: The port is taken.
    """
    registry = CollectorRegistry()
    registry.register(SiteCollector(site, status))

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path == "/metrics":
                self._answer(HTTPStatus.OK, CONTENT_TYPE_LATEST, generate_latest(registry))
            elif self.path == "/health":
                now = status()
                healthy = now.state == "connected"
                code = HTTPStatus.OK if healthy else HTTPStatus.SERVICE_UNAVAILABLE
                self._answer(code, "application/json", json.dumps({"healthy": healthy, **asdict(now)}).encode())
            else:
                self._answer(HTTPStatus.NOT_FOUND, "text/plain", b"/metrics or /health\n")

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class calls it so
            pass

        def _answer(self, code: HTTPStatus, kind: str, body: bytes) -> None:
            self.send_response(code)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    server = ThreadingHTTPServer((LOOPBACK, port), Handler)
    threading.Thread(target=server.serve_forever, name="metrics", daemon=True).start()
    return server


def _gauge(name: str, text: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, text, value=value)
