"""A real browser at an exported page: Chromium without a window, driven by playwright, the page served in a thread."""

import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from client.export.web_server import PageServer
from metarec_shared.errors import MetaRecError

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
"""Programs that are tried, in this order."""

MILLISECONDS = 60_000
"""Within which a page is expected to do what it is asked, on a busy machine."""


def find_browser() -> str | None:
    """Return the path of a browser; None where none is on PATH."""
    return next((path for name in BROWSERS if (path := shutil.which(name))), None)


@contextmanager
def launched() -> Iterator[Any]:
    """Run a browser; yield it as playwright's.

    Raises:
        MetaRecError: There is no browser, or no playwright.
    """
    try:
        from playwright.sync_api import sync_playwright
    except ImportError as error:
        raise MetaRecError("a browser is driven by playwright: pip install 'metarec[dev]'") from error
    program = find_browser()
    if program is None:
        raise MetaRecError(f"no browser: wanted one of {', '.join(BROWSERS)} on PATH")
    options = ["--no-sandbox"] if os.geteuid() == 0 else []  # for root, as in containers, it has no sandbox
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=options)
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def serving(folder: Path) -> Iterator[PageServer]:
    """Serve a page's folder in a thread, on a free port."""
    with PageServer(folder, "127.0.0.1", 0) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def wait_until_ready(page: Any) -> None:
    """Wait until a page has loaded its model."""
    page.wait_for_selector("body[data-state=ready]", timeout=MILLISECONDS)
