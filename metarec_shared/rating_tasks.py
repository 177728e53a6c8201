"""Rating tasks: some of a user's ratings are given and others asked for, relative to the middle of the scale."""

from dataclasses import dataclass, fields

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Tensor

from metarec_shared.batch import Batch
from metarec_shared.dataset import RatingScale
from metarec_shared.errors import DataError
from metarec_shared.interactions import Interactions, starts
from metarec_shared.population import Population
from metarec_shared.randomness import uniform_table
from metarec_shared.settings import RatingSettings
from metarec_shared.tasks import shuffled


@dataclass(frozen=True, slots=True, kw_only=True)
class RatingTasks(Batch):
    """Padded tasks of many users.

    Attributes:
        items: Catalogue positions; padding is any item.
        ratings: Of these, relative to the middle of the scale.
        support: Rows whose ratings are given.
        query: Rows whose ratings are asked for.
        heard: Users in whose task items have what is their own beside their text.
    """

    items: Int[Tensor, "users rows"]
    ratings: Float[Tensor, "users rows"]
    support: Bool[Tensor, "users rows"]
    query: Bool[Tensor, "users rows"]
    heard: Bool[Tensor, " users"]

    def __len__(self) -> int:
        return len(self.items)


def middle(scale: RatingScale | None) -> float:
    """Return the rating that ratings are relative to.

    Raises:
        DataError: There is no scale, so there are no ratings.
    """
    if scale is None:
        raise DataError("model.target = rating needs data with ratings, got none")
    return (scale.low + scale.high) / 2


def draw_rating_tasks(
    interactions: Interactions,
    users: NDArray[np.int64],
    keys: NDArray[np.uint64],
    scale: RatingScale | None,
    settings: RatingSettings,
    address: tuple[int, int],
) -> RatingTasks:
    """Draw one meta-training task of each user: a random cut of a random part of the ratings.

    A user with fewer than two ratings has an empty task. A user's task depends on nobody else's.

    Args:
        interactions: Whose histories; those without a rating count for nothing.
        users: Positions in them, [users].
        keys: The users' random keys, [users].
        scale: Of the ratings.
        settings: Sizes, and the share of tasks in which items have text alone.
        address: The run's seed, and the round.
    """
    seed, round_number = address
    width = settings.support + settings.query
    draws = uniform_table(keys, 2 + width, seed, "rating task", round_number)
    rated = rated_histories(interactions, users)
    drawn = np.minimum(rated.lengths, width)
    given = np.where(drawn > 1, 1 + (draws[:, 1] * np.minimum(settings.support, drawn - 1)).astype(np.int64), 0)
    asked = np.where(drawn > 1, np.minimum(settings.query, drawn - given), 0)
    rows = int((given + asked).max(initial=1))
    return _cut(rated, shuffled(rated.lengths.clip(min=1), draws[:, 2:])[:, :rows], given, asked, scale,
                draws[:, 0] >= settings.hidden)  # fmt: skip


def evaluation_rating_tasks(
    population: Population, users: NDArray[np.int64], support: int, query: int, scale: RatingScale | None, draws: int
) -> RatingTasks:
    """Return the tasks of users with more than ``support`` ratings: in random order so many are given, the next asked.

    Args:
        population: Whose histories.
        users: Positions in it.
        support: Ratings that are given.
        query: Ratings that are asked for, at most.
        scale: Of the ratings.
        draws: Random orders of each user.
    """
    rated = rated_histories(population.interactions, users)
    kept = np.flatnonzero(rated.lengths > support)
    rated, keys = rated.take(kept), population.keys[users[kept]]
    given = np.full(len(kept), support)
    asked = np.minimum(query, rated.lengths - support)
    cut = [
        _cut(
            rated,
            shuffled(rated.lengths, uniform_table(keys, support + query, population.seed, "rating evaluation", draw)),
            given, asked, scale, np.ones(len(kept), dtype=np.bool_),
        )
        for draw in range(draws)
    ]  # fmt: skip
    return RatingTasks(**{name: torch.cat([getattr(one, name) for one in cut]) for name in cut[0].tensors()})


def rated_histories(interactions: Interactions, users: NDArray[np.int64]) -> Interactions:
    """Return the histories of ``users`` without interactions that have no rating."""
    taken = interactions.take(users)
    rated = ~np.isnan(taken.ratings)
    counted = np.concatenate([[0], np.cumsum(rated)])
    return Interactions(
        user_ids=taken.user_ids,
        offsets=starts(np.diff(counted[taken.offsets])),
        items=taken.items[rated],
        ratings=taken.ratings[rated],
        has_time=taken.has_time,
    )


def _cut(
    rated: Interactions,
    order: NDArray[np.int64],
    given: NDArray[np.int64],
    asked: NDArray[np.int64],
    scale: RatingScale | None,
    heard: NDArray[np.bool_],
) -> RatingTasks:
    """Return tasks whose support sets are the first of ``order`` and whose query sets are those that follow."""
    place = np.arange(order.shape[1])
    support = place < given[:, None]
    query = ~support & (place < (given + asked)[:, None])
    rows = np.where(support | query, rated.offsets[:-1, None] + order, 0)
    items = np.concatenate([rated.items, [0]])[rows].astype(np.int64)
    ratings = np.concatenate([rated.ratings, [np.float32(0)]])[rows] - np.float32(middle(scale))
    columns = items, ratings.astype(np.float32), support, query, heard
    names = [key.name for key in fields(RatingTasks)]
    return RatingTasks(**{name: torch.from_numpy(column) for name, column in zip(names, columns, strict=True)})
