"""What the model thread computes: lists for many users at once, an explanation, similar items."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import grpc

from client.answer import Recommendation
from client.history import Profile, position_of
from client.interaction import profile_of
from client.lists import Wish
from client.recommender import Explanation, Recommender, State, User, lists_of, scores_of
from client.service.refusal import RefusedError
from client.service.requests import Asked
from client.service.served import Served
from client.service.user_state import Known
from metarec_shared.errors import DataError, MetaRecError

_PAIRS_AT_ONCE = 1 << 20
"""Pairs of tokens that attention looks at in one pass, over all its users: bounds memory where histories are long."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A list, what of the history was skipped, and which model it was."""

    items: Sequence[Recommendation]
    skipped: Sequence[str]
    model: str


def recommend_all(served: Served, asked: Sequence[Asked]) -> list[Answer | MetaRecError]:
    """Return what was asked for, by few passes of the model; where a user's request makes no sense, what is wrong."""
    recommender, state = served.recommender, served.recommender.state
    answers: list[Answer | MetaRecError] = []
    users: list[tuple[int, Profile, Wish]] = []
    for place, one in enumerate(asked):
        try:
            users.append((place, *_looked_up(one, recommender, state)))
        except DataError as error:
            answers.append(error)
        else:
            answers.append(Answer(items=(), skipped=users[-1][1].skipped, model=served.version))
    for part in _parts(users):
        profiles = [profile for _, profile, _ in part]
        wishes = [wish for _, _, wish in part]
        lists = lists_of(state, recommender.rating_scale, profiles, scores_of(state, profiles), wishes)
        for (place, profile, _), items in zip(part, lists, strict=True):
            answers[place] = Answer(items=items, skipped=profile.skipped, model=served.version)
    return answers


def explain(served: Served, known: Known, item: str) -> Explanation:
    """Explain an item's score for a user.

    Raises:
        RefusedError: There is no such item.
        DataError: The history makes no sense.
    """
    _check_item(item, served)
    return User(served.recommender, known.interactions, known.attributes).explain(item)


def similar_items(served: Served, item: str, k: int) -> list[Recommendation]:
    """Return the items whose text is most like an item's.

    Raises:
        RefusedError: There is no such item.
        DataError: Several items bear the title.
    """
    _check_item(item, served)
    return served.recommender.similar_items(item, k)


def _check_item(item: str, served: Served) -> None:
    if position_of(item, served.recommender.catalogue) is None:
        size = len(served.recommender.catalogue)
        raise RefusedError(
            grpc.StatusCode.NOT_FOUND, f"item: got {item!r}, wanted an id or title of the catalogue's {size:,}"
        )


def _looked_up(asked: Asked, recommender: Recommender, state: State) -> tuple[Profile, Wish]:
    known = asked.known
    profile = profile_of(known.interactions, state.catalogue, recommender.rating_scale, known.attributes)
    wish = Wish.of(
        state.catalogue,
        profile,
        k=asked.k,
        exclude=asked.exclude,
        candidates=asked.candidates,
        include_known=asked.include_known,
        popularity=asked.popularity,
        diversity=asked.diversity,
    )
    return profile, wish


def _parts(users: list[tuple[int, Profile, Wish]]) -> Iterator[list[tuple[int, Profile, Wish]]]:
    """Yield users of histories of like length, as many as may be in one pass."""
    part: list[tuple[int, Profile, Wish]] = []
    for user in sorted(users, key=lambda user: len(user[1].items)):
        if part and (len(part) + 1) * (len(user[1].items) + 1) ** 2 > _PAIRS_AT_ONCE:
            yield part
            part = []
        part.append(user)
    if part:
        yield part
