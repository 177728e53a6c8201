"""A user's history as a model reads it: looked up in the catalogue, brought into the order of time.

Nothing here needs a model: what recommends without PyTorch reads histories, too.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from client.history_lines import Line
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


def read_history(lines: Iterable[Line], catalogue: Catalogue, scale: RatingScale | None) -> Profile:
    """Read a history from its lines (``client.history_lines``).

    Where every line has a time, seconds since 1970 say, the history is put in their order. An item that is named again
    counts once (``each_once``).

    Args:
        lines: The history.
        catalogue: Where ids and titles are looked up, ids first.
        scale: Scale of the ratings; None: the model was trained without ratings, and they are ignored.

    Raises:
        DataError: A rating is off the scale, only some lines have a time, or several items bear a title.
    """
    named: list[tuple[float, Item]] = []
    skipped: list[str] = []
    timed: bool | None = None
    for line in lines:
        if timed not in (None, line.time is not None):
            raise DataError(f"{line.where}: either every line has a time after a second tab or none has")
        timed = line.time is not None
        feedback = 0 if line.rating is None else feedback_level(line.rating, scale, line.where)
        position = position_of(line.item, catalogue, line.where)
        if position is None:
            skipped.append(line.item)
        else:
            named.append((line.time or 0.0, Item(position=position, feedback=feedback)))
    named.sort(key=lambda one: one[0])  # stable: as they came where no time is known
    return Profile(items=each_once(item for _, item in named), skipped=skipped, in_time=bool(timed))


def each_once(items: Iterable[Item]) -> list[Item]:
    """Return each item once: where it was named last, with the rating that it was last given."""
    found: dict[int, Item] = {}
    for item in items:
        before = found.pop(item.position, item)
        found[item.position] = item if item.feedback else before
    return list(found.values())


def attribute_pairs(assignments: Iterable[str]) -> list[tuple[str, str]]:
    """Read attributes of a command line, each ``column=value``.

    Raises:
        DataError: One is none.
    """
    pairs = []
    for assignment in assignments:
        column, equals, value = (part.strip() for part in assignment.partition("="))
        if not (column and equals and value):
            raise DataError(f"--attribute must be column=value, got {assignment!r}")
        pairs.append((column, value))
    return pairs


def read_attributes(told: Iterable[tuple[str, str]], settings: Settings) -> list[int]:
    """Return what a user tells of himself, columns and values, as the model of a run with ``settings`` reads it.

    Raises:
        DataError: As ``hash_attributes``.
    """
    return hash_attributes(told, settings.data.attribute_names if settings.model.attribute_buckets else None)


def hash_attributes(told: Iterable[tuple[str, str]], columns: Sequence[str] | None) -> list[int]:
    """Return what a user tells of himself as a model reads it that was trained on ``columns``.

    Args:
        told: Columns and values.
        columns: Names that the model knows; empty: any; None: it reads no attributes.

    Raises:
        DataError: The model reads none, it was not trained on such a column, or a column or a value is empty.
    """
    hashes = []
    for column, value in told:
        if not (column.strip() and value.strip()):
            raise DataError(f"attribute: wanted a column and a value, got {column!r} and {value!r}")
        if columns is None:
            raise DataError(f"attribute {column}: the model reads no attributes of users")
        if columns and column.strip().casefold() not in (name.casefold() for name in columns):
            raise DataError(f"attribute {column}: the model was trained on {', '.join(columns)}")
        hashes.append(attribute_hash(column.strip(), value.strip()))
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
    position = clear_position(name, catalogue)
    if position is None and (positions := catalogue.positions_by_title.get(name, [])):
        ids = ", ".join(catalogue.item_ids[position] for position in positions)
        said = f"{len(positions)} items bear the title {name!r}; give one of their ids: {ids}"
        raise DataError(f"{where}: {said}" if where else said)
    return position


def clear_position(name: str, catalogue: Catalogue) -> int | None:
    """Return the position of the item that bears an id or, as the only one, a title; None: there is none."""
    if name in catalogue.index:
        return catalogue.index[name]
    positions = catalogue.positions_by_title.get(name, [])
    return positions[0] if len(positions) == 1 else None


def feedback_level(rating: float, scale: RatingScale | None, where: str) -> int:
    """Return the feedback level of a rating; 0 where the model was trained without ratings.

    Args:
        rating: The rating.
        scale: Its scale; None: the model was trained without.
        where: Where it was given, for the error.

    Raises:
        DataError: It is off the scale.
    """
    if scale is None:
        return 0
    if not scale.low <= rating <= scale.high:
        raise DataError(f"{where}: rating must be between {scale.low:g} and {scale.high:g}, got {rating:g}")
    return int(feedback_levels(np.array([rating], dtype=np.float32), scale)[0])
