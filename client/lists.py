"""Lists of recommendations, for one user or for many at once: which items may stand in them, and which are the best."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from client.answer import Recommendation
from client.history import Profile, position_of
from client.interaction import finite
from client.rerank import POOL, reranked
from metarec_shared.catalogue import Catalogue
from metarec_shared.errors import DataError


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """An item of the catalogue."""

    item_id: str
    title: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What a user's list shall be, over a catalogue.

    Attributes:
        k: Items in it.
        barred: Positions of the items that may not stand in it.
        only: Positions of the only items that may; None: all.
        popularity: What the score bias counts for: 1 as trained, 0 not at all.
        diversity: From 0 to 1: how much unlike each other the items shall be (``rerank``).
        fresh: How fresh items are, from 0 to 1, by id.
        freshness: From 0 to 1: what that counts for, against the score.
    """

    k: int
    barred: Sequence[int] = ()
    only: Sequence[int] | None = None
    popularity: float = 1.0
    diversity: float = 0.0
    fresh: Mapping[str, float] | None = None
    freshness: float = 0.0

    @classmethod
    def of(
        cls,
        catalogue: Catalogue,
        profile: Profile,
        *,
        k: int,
        exclude: Iterable[str] = (),
        candidates: Iterable[str] | None = None,
        include_known: bool = False,
        popularity: float = 1.0,
        diversity: float = 0.0,
        fresh: Mapping[str, float] | None = None,
        freshness: float = 0.0,
    ) -> Self:
        """Look up what ``User.recommend`` is told.

        Raises:
            DataError: ``k`` is no whole number from 1 on, a weight or how fresh an item is not from 0 to 1,
                ``popularity`` not finite, items are a text, or several bear a title.
        """
        how_fresh = ((f"fresh[{item!r}]", value) for item, value in (fresh or {}).items())
        for name, value in (("diversity", diversity), ("freshness", freshness), *how_fresh):
            if not 0.0 <= finite(name, value) <= 1.0:
                raise DataError(f"{name} must be from 0 to 1, got {value!r}")
        for name, items in (("exclude", exclude), ("candidates", candidates)):
            if isinstance(items, str):
                raise DataError(f"{name} must be a list of items, got the text {items!r}")
        known = [] if include_known else [item.position for item in profile.items]
        return cls(
            k=checked_k(k),
            barred=[*_positions(exclude, catalogue), *known],
            only=None if candidates is None else _positions(candidates, catalogue),
            popularity=finite("popularity", popularity),
            diversity=diversity,
            fresh=fresh,
            freshness=freshness,
        )

    @property
    def is_reranked(self) -> bool:
        """Whether more counts than the score."""
        return bool(self.diversity or (self.fresh and self.freshness))

    @property
    def pool(self) -> int:
        """How many of the best by score are needed."""
        return POOL * self.k if self.is_reranked else self.k


def ranked_scores(
    scores: Float[Tensor, "users items"], bias: Float[Tensor, " items"], wishes: Sequence[Wish]
) -> Float[Tensor, "users items"]:
    """Return the scores by which each user's items are ranked: minus infinity for those that may not be in his list.

    Args:
        scores: The users' scores of all items.
        bias: The score bias.
        wishes: Of each user.
    """
    ranked = scores.clone()
    for row, wish in enumerate(wishes):
        if wish.popularity != 1.0:
            ranked[row] += (wish.popularity - 1.0) * bias
        if wish.only is not None:
            others = torch.ones(ranked.shape[1], dtype=torch.bool)
            others[list(wish.only)] = False
            ranked[row, others] = -torch.inf
    rows = [row for row, wish in enumerate(wishes) for _ in wish.barred]
    ranked[rows, [position for wish in wishes for position in wish.barred]] = -torch.inf
    return ranked


def best_of_each(
    ranked: Float[Tensor, "users items"],
    vectors: Float[Tensor, "items width"],
    catalogue: Catalogue,
    wishes: Sequence[Wish],
) -> list[Int[Tensor, " best"]]:
    """Return the places of each user's list, best first; fewer than he wants where there are no more.

    Args:
        ranked: What ``ranked_scores`` returned.
        vectors: The items' vectors, by which they are alike.
        catalogue: The items.
        wishes: Of each user.
    """
    values, places = ranked.topk(min(max(one.pool for one in wishes), ranked.shape[1]), dim=1)
    counts = (values > -torch.inf).sum(dim=1).tolist()
    return [
        chosen(ranked[row], places[row, : min(count, one.pool)], vectors, catalogue, one)
        for row, (count, one) in enumerate(zip(counts, wishes, strict=True))
    ]


def chosen(
    ranked: Float[Tensor, " items"],
    pool: Int[Tensor, " pool"],
    vectors: Float[Tensor, "items width"],
    catalogue: Catalogue,
    wish: Wish,
) -> Int[Tensor, " best"]:
    """Return one user's list out of his best items by score: these, unless more counts than the score."""
    if not wish.is_reranked or not len(pool):
        return pool
    named = wish.fresh or {}
    fresh = torch.tensor([float(named.get(catalogue.item_ids[place], 0.0)) for place in pool.tolist()])
    order = reranked(
        ranked[pool], vectors[pool], wish.k, diversity=wish.diversity, fresh=fresh, freshness=wish.freshness
    )
    return pool[order]


def best(scores: Float[Tensor, " items"], k: int, wanted: Callable[[int], bool] | None = None) -> Int[Tensor, " best"]:
    """Return the places of the ``k`` best scores, best first, of those above minus infinity that are wanted."""
    if wanted is None:
        places = scores.topk(min(k, len(scores))).indices
        return places[scores[places] > -torch.inf]
    found: list[int] = []
    for place in scores.argsort(descending=True).tolist():
        if len(found) == k or scores[place] == -torch.inf:
            break
        if wanted(place):
            found.append(place)
    return torch.tensor(found, dtype=torch.int64)


def listed(
    catalogue: Catalogue, scores: Tensor, places: Tensor, ratings: Sequence[float | None] | None = None
) -> list[Recommendation]:
    """Return the items at ``places`` as they are recommended."""
    return [
        Recommendation(
            item_id=catalogue.item_ids[place],
            title=catalogue.titles[place],
            score=score,
            rating=None if ratings is None else ratings[rank],
        )
        for rank, (place, score) in enumerate(zip(places.tolist(), scores[places].tolist(), strict=True))
    ]


def checked_k(k: int) -> int:
    """Return ``k``.

    Raises:
        DataError: It is no whole number, or below 1.
    """
    if not isinstance(k, int | np.integer) or isinstance(k, bool) or k < 1:
        raise DataError(f"k must be a whole number of at least 1, got {k!r}")
    return int(k)


def _positions(items: Iterable[str], catalogue: Catalogue) -> list[int]:
    """Return where items stand, by id or title; those that the catalogue lacks are passed over."""
    found = (position_of(item, catalogue) for item in items)
    return [position for position in found if position is not None]
