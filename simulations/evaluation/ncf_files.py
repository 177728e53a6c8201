"""Test items and sampled negatives as files give them, so that figures compare with those published on the same files.

``NAME.test.rating`` holds a line ``user item rating time`` a user: the test item. ``NAME.test.negative`` holds
``(user,item)`` and then the user's negatives. Fields are separated by tabs. Users count from 0 in the order of their
ids, items from 0 in the order of their first appearance in the ratings file.

References:
    He et al., "Neural collaborative filtering", WWW 2017, whose authors' files for MovieLens 1M are read here.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from metarec_shared.dataset import Dataset
from metarec_shared.errors import DataError

RATINGS_FILE = "ratings.dat"
_SEPARATOR = "::"
_PAIR = re.compile(r"\((\d+),(\d+)\)")


@dataclass(frozen=True, slots=True, kw_only=True)
class TestFiles:
    """What the files say, in catalogue positions.

    Attributes:
        items: Test item of each user, int64 [users].
        negatives: Negatives of each user, int64 [users, negatives]; -1 where the published files name the user's test
            item itself, as they do for 156 users of MovieLens 1M: it is no negative.
    """

    items: NDArray[np.int64]
    negatives: NDArray[np.int64]


def read_test_files(folder: Path, dataset: Dataset) -> TestFiles:
    """Read the test files in a folder.

    Args:
        folder: With one ``*.test.rating``, one ``*.test.negative`` and MovieLens' ``ratings.dat``.
        dataset: The data set in the same folder.

    Raises:
        DataError: A file is missing or damaged, or does not belong to the data.
    """
    ratings, negatives = (_only(folder, f"*.test.{kind}") for kind in ("rating", "negative"))
    numbering = _numbering(folder / RATINGS_FILE, dataset)
    users = len(dataset.interactions)
    items = _rows(ratings, users, numbering, lambda line: line.split("\t")[:2])
    lines = _rows(negatives, users, numbering, _negative_fields)
    if (lines[:, 0] != items[:, 0]).any():
        raise DataError(f"{negatives.name}: names other test items than {ratings.name}")
    others = np.where(lines[:, 1:] == items, -1, lines[:, 1:])
    found = TestFiles(items=items[:, 0], negatives=others)
    _check(found, dataset, ratings, negatives)
    return found


def _only(folder: Path, pattern: str) -> Path:
    found = sorted(folder.glob(pattern))
    if len(found) != 1:
        raise DataError(f"{folder}: evaluation.negatives = files wants one file {pattern}, got {len(found)}")
    return found[0]


def _numbering(path: Path, dataset: Dataset) -> NDArray[np.int64]:
    """Return the catalogue position of each item in the order of first appearance."""
    if not path.is_file():
        raise DataError(f"{path}: missing; the test files number items by their first appearance in it")
    order: dict[str, None] = {}
    for line in path.read_text(encoding="latin-1").splitlines():
        order.setdefault(line.split(_SEPARATOR, 2)[1], None)
    unknown = [item for item in order if item not in dataset.catalogue.index]
    if unknown:
        raise DataError(f"{path.name}: item {unknown[0]} is not in the catalogue, so test files cannot be read by it")
    return np.array([dataset.catalogue.index[item] for item in order], dtype=np.int64)


def _negative_fields(line: str) -> list[str]:
    first, *rest = line.rstrip("\t").split("\t")
    pair = _PAIR.fullmatch(first)
    if pair is None:
        raise ValueError(f"wanted (user,item), got {first!r}")
    return [pair[1], pair[2], *rest]


def _rows(
    path: Path, users: int, numbering: NDArray[np.int64], fields: Callable[[str], list[str]]
) -> NDArray[np.int64]:
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines()):
        try:
            user, *items = (int(field) for field in fields(line))
        except ValueError as error:
            raise DataError(f"{path.name} line {number + 1}: wanted whole numbers: {error}") from error
        if user != number:
            raise DataError(f"{path.name} line {number + 1}: wanted user {number}, got {user}")
        if not items or min(items) < 0 or max(items) >= len(numbering):
            raise DataError(f"{path.name} line {number + 1}: items must be numbers below {len(numbering)}")
        rows.append(items)
    if len(rows) != users or len({len(row) for row in rows}) != 1:
        raise DataError(f"{path.name}: wanted equally many items for each of {users} users, got {len(rows)} lines")
    return numbering[np.array(rows, dtype=np.int64)]


def _check(found: TestFiles, dataset: Dataset, ratings: Path, negatives: Path) -> None:
    for user, (item, others) in enumerate(zip(found.items, found.negatives, strict=True)):
        history = dataset.interactions.history(user)
        if item not in history:
            raise DataError(f"{ratings.name} line {user + 1}: the user never touched the test item")
        if np.isin(others, history).any():
            raise DataError(f"{negatives.name} line {user + 1}: the user touched a negative")
