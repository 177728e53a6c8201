"""What tests of the exported page need; they skip, saying so, where it is missing."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from client.export.web_runtime import pack, take_files
from metarec_shared.errors import MetaRecError
from simulations.benchmarks.browser import BROWSERS, find_browser, launched

AXE = ("axe-core", "4.14.1")
"""The accessibility checker and its version, from npm."""


def need_npm() -> None:
    """Skip the test where there is no npm."""
    if shutil.which("npm") is None:
        pytest.skip("no npm on PATH: what the page runs on cannot be fetched")


@contextmanager
def a_browser() -> Iterator[Any]:
    """Run a browser; skip the test where there is none."""
    pytest.importorskip("playwright.sync_api", reason="no playwright: pip install 'metarec[dev]'")
    if find_browser() is None:
        pytest.skip(f"no browser: none of {', '.join(BROWSERS)} is on PATH")
    with launched() as browser:
        yield browser


def axe_source(folder: Path) -> str:
    """Return the accessibility checker's source; skip the test where npm cannot get it."""
    try:
        take_files(pack(*AXE, folder), {"package/axe.min.js": folder / "axe.min.js"})
    except MetaRecError as error:
        pytest.skip(str(error))
    return (folder / "axe.min.js").read_text(encoding="utf-8")
