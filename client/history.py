"""A user's history as text: read on the device, looked up in the catalogue, brought into the order of time.

Nothing here needs a model: what recommends without PyTorch reads histories, too.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from metarec_shared.attributes import attribute_hash
from metarec_shared.catalogue import Catalogue
from metarec_shared.dataset import RatingScale
from metarec_shared.errors import DataError
from metarec_shared.feedback import feedback_levels
from metarec_shared.settings import Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One item of a history.

    Attributes:
        position: Position in the catalogue.
        feedback: Level of its rating, 0 where there is none.
    """

    position: int
    feedback: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """A user's history as the model reads it.

    Attributes:
        items: What the catalogue holds of the history, each item once.
        skipped: What the catalogue lacks, as it was written.
        attributes: Hashes of what the user tells of himself (``attribute_hash``).
        in_time: Whether the items are known to be in the order of time, oldest first.
    """

    items: Sequence[Item]
    skipped: Sequence[str] = field(default=())
    attributes: Sequence[int] = field(default=())
    in_time: bool = False


def read_history(lines: Iterable[str], catalogue: Catalogue, scale: RatingScale | None, source: str) -> Profile:
    """Read a history: one item id or one exact title a line, then, each after a tab, by choice a rating and a time.

    Times are numbers that grow, seconds since 1970 say; the rating before one may be empty. Where every line has a time
    the history is put in their order. An item that is named again counts once (``each_once``). Blank lines are passed
    over.

    Args:
        lines: The history.
        catalogue: Where ids and titles are looked up, ids first.
        scale: Scale of the ratings; None: the model was trained without ratings, and they are ignored.
        source: Name of the history in errors.

    Raises:
        DataError: A rating is no number or off the scale, a time is no number, only some lines have one, or several
            items bear a title.
    """
    named: list[tuple[float, Item]] = []
    skipped: list[str] = []
    timed: bool | None = None
    for number, line in enumerate(lines, start=1):
        name, _, rest = line.strip("\r\n").partition("\t")
        rating, _, when = rest.partition("\t")
        if not name.strip():
            continue
        where = f"{source} line {number}"
        feedback = _feedback(rating.strip(), scale, where)
        time = _time(when.strip(), where)
        if timed not in (None, time is not None):
            raise DataError(f"{where}: either every line has a time after a second tab or none has")
        timed = time is not None
        position = position_of(name.strip(), catalogue, where)
        if position is None:
            skipped.append(name.strip())
        else:
            named.append((time or 0.0, Item(position=position, feedback=feedback)))
    named.sort(key=lambda one: one[0])  # stable: as they came where no time is known
    return Profile(items=each_once(item for _, item in named), skipped=skipped, in_time=bool(timed))


def each_once(items: Iterable[Item]) -> list[Item]:
    """Return each item once: where it was named last, with the rating that it was last given."""
    found: dict[int, Item] = {}
    for item in items:
        before = found.pop(item.position, item)
        found[item.position] = item if item.feedback else before
    return list(found.values())


def read_history_file(path: Path, catalogue: Catalogue, scale: RatingScale | None) -> Profile:
    """Read a history from a file; see ``read_history``.

    Raises:
        DataError: The file cannot be read, or holds what ``read_history`` refuses.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot read the history: {error}") from error
    return read_history_bytes(content, catalogue, scale, path.name)


def read_history_bytes(content: bytes, catalogue: Catalogue, scale: RatingScale | None, source: str) -> Profile:
    """Read a history from UTF-8 text, with or without a byte order mark.

    Raises:
        DataError: It is not UTF-8, or holds what ``read_history`` refuses.
    """
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{source}: cannot read the history: not UTF-8 at byte {error.start}") from error
    return read_history(text.splitlines(), catalogue, scale, source)


def read_attributes(assignments: Iterable[str], settings: Settings) -> list[int]:
    """Read attributes, each ``column=value``, as the model of a run with ``settings`` reads them.

    Raises:
        DataError: As ``hash_attributes``.
    """
    return hash_attributes(assignments, settings.data.attribute_names if settings.model.attribute_buckets else None)


def hash_attributes(assignments: Iterable[str], columns: Sequence[str] | None) -> list[int]:
    """Read attributes, each ``column=value``, as a model reads them that was trained on ``columns``.

    Args:
        assignments: What the user tells of himself.
        columns: Names that the model knows; empty: any; None: it reads no attributes.

    Raises:
        DataError: The model reads none, it was not trained on such a column, or a text is no ``column=value``.
    """
    hashes = []
    for assignment in assignments:
        column, equals, value = (part.strip() for part in assignment.partition("="))
        if not (column and equals and value):
            raise DataError(f"--attribute must be column=value, got {assignment!r}")
        if columns is None:
            raise DataError(f"--attribute {column}: the model reads no attributes of users")
        if columns and column.casefold() not in (name.casefold() for name in columns):
            raise DataError(f"--attribute {column}: the model was trained on {', '.join(columns)}")
        hashes.append(attribute_hash(column, value))
    return hashes


def position_of(name: str, catalogue: Catalogue, where: str = "") -> int | None:
    """Return the position of the item that bears an id or a title; None: there is none.

    Args:
        name: The id or the exact title, ids first.
        catalogue: Where it is looked up.
        where: Where it was named, for the error; empty: nowhere that helps.

    Raises:
        DataError: Several items bear the title.
    """
    if name in catalogue.index:
        return catalogue.index[name]
    positions = catalogue.positions_by_title.get(name, [])
    if len(positions) > 1:
        ids = ", ".join(catalogue.item_ids[position] for position in positions)
        said = f"{len(positions)} items bear the title {name!r}; give one of their ids: {ids}"
        raise DataError(f"{where}: {said}" if where else said)
    return positions[0] if positions else None


def feedback_level(rating: float, scale: RatingScale | None, where: str, told: str) -> int:
    """Return the feedback level of a rating; 0 where the model was trained without ratings.

    Args:
        rating: The rating.
        scale: Its scale; None: the model was trained without.
        where: Where it was given, for the error.
        told: The rating as it was given, for the error.

    Raises:
        DataError: It is off the scale.
    """
    if scale is None:
        return 0
    if not scale.low <= rating <= scale.high:
        raise DataError(f"{where}: rating must be between {scale.low:g} and {scale.high:g}, got {told}")
    return int(feedback_levels(np.array([rating], dtype=np.float32), scale)[0])


def _time(text: str, where: str) -> float | None:
    if not text:
        return None
    try:
        time = float(text)
    except ValueError:
        raise DataError(f"{where}: time must be a number, got {text!r}") from None
    if not math.isfinite(time):
        raise DataError(f"{where}: time must be finite, got {text!r}")
    return time


def _feedback(text: str, scale: RatingScale | None, where: str) -> int:
    if not text:
        return 0
    try:
        rating = float(text)
    except ValueError:
        raise DataError(f"{where}: rating must be a number, got {text!r}") from None
    return feedback_level(rating, scale, where, repr(text))
