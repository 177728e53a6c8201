"""Fixtures that many tests share."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def real_data() -> Callable[[str], Path]:
    """Return a function from a data set's name to its folder; it skips the test where the data set is not there.

    Real data is looked for in the folder METAREC_TEST_DATA, else in ``shared/data`` beside the checkout.
    """
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    root = Path(os.environ.get("METAREC_TEST_DATA") or beside)

    def find(name: str) -> Path:
        folder = root / name
        if not folder.is_dir():
            pytest.skip(f"no data set {name}: set METAREC_TEST_DATA to a folder that holds it")
        return folder

    return find
