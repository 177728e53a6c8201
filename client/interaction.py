"""What a user did, as an app tells it: items by id or title, by choice with a rating and a time."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from client.history import Item, Profile, clear_position, each_once, feedback_level, position_of
from metarec_shared.catalogue import Catalogue
from metarec_shared.dataset import RatingScale
from metarec_shared.errors import DataError


@dataclass(frozen=True, slots=True, kw_only=True)
class Interaction:
    """One interaction of a user.

    Attributes:
        item: An item's id, or its exact title.
        rating: On the model's scale; None: none was given.
        time: Grows with time, seconds since 1970 say; None: not known.
    """

    item: str
    rating: float | None = None
    time: float | None = None


SHOWN = 30
"""Digits of a number that an error shows."""

Told = str | tuple[str] | tuple[str, float | None] | tuple[str, float | None, float | None] | Interaction
"""An interaction as an app may write it: an item, or an item, a rating and a time."""


def interactions_of(history: Iterable[Told]) -> list[Interaction]:
    """Read a history that an app wrote.

    Raises:
        DataError: An entry is none, or a rating or a time is no finite number.
    """
    if isinstance(history, str):
        raise DataError(f"history: must be a list of items, got the text {history!r}")
    return [_interaction(told, place) for place, told in enumerate(history, start=1)]


def profile_of(
    interactions: Sequence[Interaction],
    catalogue: Catalogue,
    scale: RatingScale | None,
    attributes: Sequence[int] = (),
) -> Profile:
    """Return a history as the model reads it.

    An item that is named again counts once (``each_once``). Where every interaction has a time the history is put in
    their order, oldest first.

    Args:
        interactions: The history.
        catalogue: Where ids and titles are looked up, ids first; what it lacks, and a title that several items bear by
            now, is skipped.
        scale: Scale of the ratings; None: the model was trained without ratings, and they are ignored.
        attributes: Hashes of what the user tells of himself.

    Raises:
        DataError: A rating is off the scale, or only some interactions have a time.
    """
    timed = [one.time is not None for one in interactions]
    if any(timed) and not all(timed):
        raise DataError(
            f"history, interaction {timed.index(not timed[0]) + 1}: either every interaction has a time or none has"
        )
    order = sorted(interactions, key=lambda one: one.time or 0.0)  # stable: as they came where no time is known
    items: list[Item] = []
    skipped: list[str] = []
    for one in order:
        position = clear_position(one.item, catalogue)
        if position is None:
            skipped.append(one.item)
        else:
            items.append(Item(position=position, feedback=_level(one, scale)))
    in_time = bool(interactions) and all(timed)
    return Profile(items=each_once(items), skipped=skipped, attributes=attributes, in_time=in_time)


def check_clear(interactions: Iterable[Interaction], catalogue: Catalogue) -> None:
    """Refuse what somebody tells and does not say clearly enough, while he can still be asked.

    Raises:
        DataError: Several items bear a title.
    """
    for one in interactions:
        position_of(one.item, catalogue, f"history, item {one.item!r}")


def _interaction(told: Told, place: int) -> Interaction:
    where = f"history, interaction {place}"
    match told:
        case Interaction():
            one = told
        case str():
            one = Interaction(item=told)
        case (str() as item, *rest) if len(rest) <= 2:
            rating, time = (*rest, None, None)[:2]
            one = Interaction(item=item, rating=rating, time=time)
        case _:
            raise DataError(f"{where}: must be an item, or an item, a rating and a time, got {told!r}")
    if not isinstance(one.item, str):
        raise DataError(f"{where}: an item is named by a text, its id or title, got {one.item!r}")
    return Interaction(
        item=one.item, rating=_number("rating", one.rating, where), time=_number("time", one.time, where)
    )


def _number(what: str, value: object, where: str) -> float | None:
    return None if value is None else finite(f"{where}: {what}", value)


def finite(what: str, value: object) -> float:
    """Return a number, of whatever kind it is.

    Raises:
        DataError: It is none, or not finite.
    """
    number = isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)
    try:
        found = float(value) if number else math.nan  # type: ignore[arg-type] # of a number
    except OverflowError:
        found = math.inf
    if not math.isfinite(found):
        raise DataError(f"{what} must be a finite number, got {str(value)[:SHOWN] if number else repr(value)}")
    return found


def _level(one: Interaction, scale: RatingScale | None) -> int:
    if one.rating is None:
        return 0
    return feedback_level(one.rating, scale, f"history, item {one.item!r}")
