"""Requests as values that are checked: what is asked for, within the limits, without looking at a catalogue."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from client.interaction import check_clear
from client.recommender import Recommender
from client.service.limits import Limits, check_count, check_name
from client.service.proto.metarec.v1 import recommender_pb2 as pb
from client.service.refusal import invalid
from client.service.user_state import Known, read_interactions, unpack_state

DEFAULT_K = 10
MOST_POPULARITY = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A list that is asked for; ``User.recommend`` says what each word means."""

    known: Known
    k: int
    exclude: Sequence[str]
    candidates: Sequence[str] | None
    include_known: bool
    popularity: float
    diversity: float


def read_recommend(request: pb.RecommendRequest, recommender: Recommender, limits: Limits) -> Asked:
    """Read what a list shall be.

    Raises:
        RefusedError: It makes no sense, or is too much.
        DataError: An attribute is none that the model reads.
    """
    popularity = request.popularity if request.HasField("popularity") else 1.0
    diversity = _number("diversity", request.diversity, 1.0)
    return Asked(
        known=read_user(request, recommender, limits),
        k=read_k(request, limits.diverse_items if diversity else limits.items),
        exclude=_names("exclude", request.exclude, limits),
        candidates=_names("candidates", request.candidates.items, limits) if request.HasField("candidates") else None,
        include_known=request.include_known,
        popularity=_number("popularity", popularity, MOST_POPULARITY),
        diversity=diversity,
    )


def read_user(request: pb.RecommendRequest | pb.ExplainRequest, recommender: Recommender, limits: Limits) -> Known:
    """Read who the user is, by a state or a history; neither: somebody of whom nothing is known.

    Raises:
        RefusedError: The state or the history makes no sense, or is too much.
        DataError: An attribute is none that the model reads.
    """
    if request.HasField("state"):
        return unpack_state(request.state, limits)
    return read_history(request.history, recommender, limits)


def read_history(history: pb.History, recommender: Recommender, limits: Limits) -> Known:
    """Read a history.

    Raises:
        RefusedError: It makes no sense, or is too much.
        DataError: Several items bear a title, or an attribute is none that the model reads.
    """
    interactions = read_interactions(history.interactions, "history", limits)
    check_clear(interactions, recommender.catalogue)
    if not history.attributes:
        return Known(interactions=interactions)
    check_count("attributes", len(history.attributes), limits.attributes)
    attributes = {
        check_name("attribute, name", column, limits): check_name("attribute, value", value, limits)
        for column, value in sorted(history.attributes.items())
    }
    return Known(interactions=interactions, attributes=tuple(recommender.attribute_hashes(attributes)))


def read_k(request: pb.RecommendRequest | pb.SimilarItemsRequest, most: int) -> int:
    """Read how many items are asked for.

    Raises:
        RefusedError: None are, or too many.
    """
    k = request.k if request.HasField("k") else DEFAULT_K
    if not 1 <= k <= most:
        raise invalid(f"k: got {k:,}, wanted from 1 to {most:,}")
    return k


def _names(what: str, names: Sequence[str], limits: Limits) -> Sequence[str]:
    check_count(what, len(names), limits.names)
    return [check_name(f"{what}, item {place}", name, limits) for place, name in enumerate(names, start=1)]


def _number(what: str, value: float, most: float) -> float:
    if not (math.isfinite(value) and 0.0 <= value <= most):
        raise invalid(f"{what}: got {value!r}, wanted from 0 to {most:g}")
    return value
