"""A history as text: a line is an item, then by choice a rating and a time, after tabs. No catalogue is looked at."""

import math
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from metarec_shared.errors import DataError


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One line of a history.

    Attributes:
        item: An item's id or exact title.
        rating: None: none is given.
        time: Grows with time; None: none is given.
        where: Which line it is, for errors.
    """

    item: str
    rating: float | None
    time: float | None
    where: str


def content_of(history: str) -> tuple[bytes, str]:
    """Return what a file holds, or standard input where it is ``-``, and its name in errors.

    Raises:
        DataError: The file cannot be read.
    """
    if history == "-":
        return sys.stdin.buffer.read(), "standard input"
    path = Path(history)
    try:
        return path.read_bytes(), path.name
    except OSError as error:
        raise DataError(f"{path}: cannot read the history: {error}") from error


def lines_in(content: bytes, source: str) -> list[Line]:
    """Read the lines of UTF-8 text, with or without a byte order mark.

    Raises:
        DataError: It is not UTF-8, or as ``lines_of``.
    """
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{source}: cannot read the history: not UTF-8 at byte {error.start}") from error
    return lines_of(text.splitlines(), source)


def lines_of(lines: Iterable[str], source: str) -> list[Line]:
    """Read lines; blank ones are passed over.

    Args:
        lines: The history.
        source: Its name in errors.

    Raises:
        DataError: A line has no item or too many parts, or a rating or a time is no finite number.
    """
    return [_line(line, f"{source} line {number}") for number, line in enumerate(lines, start=1) if line.strip()]


def _line(line: str, where: str) -> Line:
    item, *rest = (part.strip() for part in line.rstrip().split("\t"))
    if not item:
        raise DataError(f"{where}: wanted an item before the first tab, got none")
    if len(rest) > 2:
        raise DataError(f"{where}: wanted an item, a rating and a time, got {len(rest) + 1} parts between tabs")
    rating, time = (*rest, "", "")[:2]
    return Line(item=item, rating=_number("rating", rating, where), time=_number("time", time, where), where=where)


def _number(what: str, text: str, where: str) -> float | None:
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        raise DataError(f"{where}: {what} must be a number, got {text!r}") from None
    if not math.isfinite(value):
        raise DataError(f"{where}: {what} must be finite, got {text!r}")
    return value
