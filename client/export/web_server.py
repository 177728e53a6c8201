"""A server of an exported web page's folder, and of nothing else: for this machine, or behind a proxy that has TLS.

It serves the files that lie in the folder, by their names: no subfolders, no links, no hidden files, no listing. It
reads, and never writes; it logs no request, since who asks is nobody's business.
"""

import os
import shutil
import socket
import sys
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import BinaryIO
from urllib.parse import unquote, urlsplit

from client.export.web_files import START_FILE
from client.service.address import is_loopback, joined_address
from metarec_shared.errors import DataError, SettingsError

TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".mjs": "text/javascript; charset=utf-8",
    ".onnx": "application/octet-stream",
    ".svg": "image/svg+xml",
    ".txt": "text/plain; charset=utf-8",
    ".wasm": "application/wasm",
}
"""Types by the end of a name; files of no other are served."""

HEADERS = {
    "Cache-Control": "no-cache",  # a copy may be kept, and is asked for again, which costs a line while it is good
    "Content-Security-Policy": "frame-ancestors 'none'",  # the page's own policy stands in it; this one cannot
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}

_IDLE_SECONDS = 30
"""After which a silent connection is closed."""


class PageServer(ThreadingHTTPServer):
    """Serves one folder.

    Args:
        folder: What ``metarec export --format web`` wrote.
        host: Where to listen.
        port: Where to listen; 0: a free one.
        public: Whether ``host`` may be one that other machines reach.

    Raises:
        DataError: The folder holds no page.
        SettingsError: The host is no loopback address and nobody said it may be otherwise, or cannot be listened on.
    """

    daemon_threads = True

    def __init__(self, folder: Path, host: str, port: int, *, public: bool = False) -> None:
        if not (folder / START_FILE).is_file():
            raise DataError(f"{folder}: holds no {START_FILE}; wanted what metarec export --format web wrote")
        if not (public or is_loopback(host)):
            raise SettingsError(
                f"web page: refuses to listen on {host}, which other machines reach, without --insecure"
            )
        self.folder = folder
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            super().__init__((host, port), _Handler)
        except OSError as error:
            raise SettingsError(f"web page: cannot listen on {host} port {port}: {error}") from error

    @property
    def url(self) -> str:
        """Where the page is."""
        return f"http://{joined_address(self.server_name, self.server_port)}/"

    def server_bind(self) -> None:
        """Bind, without the name look-up of the base class: no question leaves this machine."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    def handle_error(self, request: object, client_address: object) -> None:
        """Pass over connections that break; a visitor may close a page while it loads. Of other errors say the kind."""
        error = sys.exception()
        if not isinstance(error, ConnectionError | TimeoutError):
            sys.stderr.write(f"web page: a request failed: {type(error).__name__}\n")


class _Handler(BaseHTTPRequestHandler):
    server: PageServer
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "metarec", ""
    timeout = _IDLE_SECONDS

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def end_headers(self) -> None:
        if {"content-length", "transfer-encoding"} & {name.lower() for name in self.headers or ()}:
            self.send_header("Connection", "close")  # what was sent along is not read, and is no next request
        for name, value in HEADERS.items():
            self.send_header(name, value)
        super().end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name is the base class's
        """Log nothing."""

    def _answer(self, *, with_body: bool) -> None:
        file = self._file()
        if file is None:
            self.send_error(HTTPStatus.NOT_FOUND)
            return
        with file:
            state = os.fstat(file.fileno())
            tag = f'"{state.st_mtime_ns:x}-{state.st_size:x}"'
            if self.headers["If-None-Match"] == tag:
                self.send_response(HTTPStatus.NOT_MODIFIED)
                self.send_header("ETag", tag)
                self.end_headers()
                return
            self.send_response(HTTPStatus.OK)
            self.send_header("Content-Type", TYPES[Path(file.name).suffix])
            self.send_header("Content-Length", str(state.st_size))
            self.send_header("ETag", tag)
            self.end_headers()
            if with_body:
                shutil.copyfileobj(file, self.wfile, 1 << 20)

    def _file(self) -> BinaryIO | None:
        """Return the file that is asked for, open; None where there is none to serve."""
        try:
            name = unquote(urlsplit(self.path).path).removeprefix("/") or START_FILE
            with os.scandir(self.server.folder) as entries:
                served = {entry.name: entry.path for entry in entries if _is_served(entry)}
            return Path(served[name]).open("rb") if name in served else None
        except (OSError, ValueError):  # the folder is being replaced; the path is none
            return None


def _is_served(entry: "os.DirEntry[str]") -> bool:
    hidden = entry.name.startswith(".")
    return not hidden and entry.is_file(follow_symlinks=False) and Path(entry.name).suffix in TYPES
