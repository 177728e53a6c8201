"""A real browser for tests of the exported page, and what it needs; tests skip, saying so, where it is missing."""

import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from client.export.web_runtime import pack, take_files
from client.export.web_server import PageServer
from metarec_shared.errors import MetaRecError

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
AXE = ("axe-core", "4.14.1")
"""The accessibility checker and its version, from npm."""

HALF_A_MINUTE = 30_000
"""Milliseconds that a browser has on a busy machine."""


def chromium() -> str:
    """Return the path of a Chromium; skip the test where there is none."""
    found = [path for name in BROWSERS if (path := shutil.which(name))]
    if not found:
        pytest.skip(f"no browser: none of {', '.join(BROWSERS)} is on PATH")
    return found[0]


def browser_options() -> list[str]:
    """Return options of the browser: root, as in containers, has no sandbox."""
    return ["--no-sandbox"] if os.geteuid() == 0 else []


def need_npm() -> None:
    """Skip the test where there is no npm."""
    if shutil.which("npm") is None:
        pytest.skip("no npm on PATH: what the page runs on cannot be fetched")


def axe_source(folder: Path) -> str:
    """Return the accessibility checker's source; skip the test where npm cannot get it."""
    try:
        take_files(pack(*AXE, folder), {"package/axe.min.js": folder / "axe.min.js"})
    except MetaRecError as error:
        pytest.skip(str(error))
    return (folder / "axe.min.js").read_text(encoding="utf-8")


@contextmanager
def serving(folder: Path) -> Iterator[PageServer]:
    """Serve a folder in a thread."""
    with PageServer(folder, "127.0.0.1", 0) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
