"""Figures for Prometheus and a health endpoint, on this machine alone."""

import json
import threading
from collections.abc import Callable, Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.registry import Collector

LOOPBACK = "127.0.0.1"


class _Server(ThreadingHTTPServer):
    request_queue_size = 128  # of five, the base class's, a burst of connections has the next ones wait for seconds


def serve_figures(
    collector: Collector, health: Callable[[], tuple[bool, Mapping[str, Any]]], port: int
) -> ThreadingHTTPServer:
    """Serve ``/metrics`` and ``/health`` on the loopback interface, from a thread of their own.

    Args:
        collector: Yields the figures when somebody asks.
        health: Returns whether all is well (200, else 503), and what is said beside it.
        port: The port; 0: a free one.

    Raises:
        OSError: The port is taken.
    """
    registry = CollectorRegistry()
    registry.register(collector)

    class Handler(BaseHTTPRequestHandler):
        timeout = 30.0  # seconds, after which a silent connection is closed

        def do_GET(self) -> None:
            if self.path == "/metrics":
                self._answer(HTTPStatus.OK, CONTENT_TYPE_LATEST, generate_latest(registry))
            elif self.path == "/health":
                healthy, said = health()
                code = HTTPStatus.OK if healthy else HTTPStatus.SERVICE_UNAVAILABLE
                self._answer(code, "application/json", json.dumps({"healthy": healthy, **said}).encode())
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

    server = _Server((LOOPBACK, port), Handler)
    threading.Thread(target=server.serve_forever, name="metrics", daemon=True).start()
    return server
