"""The users a node holds, with the role and the random key of each: what a node draws its tasks from."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from metarec_shared.augmentation import time_ranks
from metarec_shared.dataset import RatingScale
from metarec_shared.errors import DataError
from metarec_shared.feedback import feedback_levels
from metarec_shared.interactions import Interactions
from metarec_shared.randomness import generator, uniforms, user_keys
from metarec_shared.settings import TaskSettings
from metarec_shared.split import Role, roles
from metarec_shared.tasks import Order, Task, TaskBatch, draw_training_tasks

SHORTEST_HISTORY = 2
"""A user with fewer interactions has no support set beside a query set and takes no part."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Population:
    """Private histories with what every use of them needs.

    Attributes:
        interactions: Histories over the catalogue the model is trained on.
        keys: Keyed hash of each user id, uint64 [users].
        roles: Role of each user, int8 [users].
        rating_scale: The scale of the ratings where it is fixed; None where it is not, or where there are none.
        seed: The run's seed, which keyed the hash.
    """

    interactions: Interactions
    keys: NDArray[np.uint64]
    roles: NDArray[np.int8]
    rating_scale: RatingScale | None
    seed: int

    @classmethod
    def of(cls, interactions: Interactions, scale: RatingScale | None, seed: int) -> "Population":
        """Assign roles and keys to the users of ``interactions``."""
        keys = user_keys(seed, interactions.user_ids)
        return cls(
            interactions=interactions,
            keys=keys,
            roles=roles(keys),
            rating_scale=scale,
            seed=seed,
        )

    def users(self, role: Role | None, shortest: int = SHORTEST_HISTORY) -> NDArray[np.int64]:
        """Return the users in ``role`` (None: all) with a history of at least ``shortest``, int64 positions."""
        chosen = self.interactions.lengths >= shortest
        return np.flatnonzero(chosen if role is None else chosen & (self.roles == role))

    def judged(self, role: Role, most: int) -> NDArray[np.int64]:
        """Return the users in ``role`` that are evaluated: of more than ``most`` a sample, the same one every time."""
        users = self.users(role)
        if len(users) <= most:
            return users
        order = np.argsort(uniforms(self.keys[users], self.seed, "judged"), kind="stable")
        return np.sort(users[order[:most]])

    def item_counts(self, users: NDArray[np.int64], catalogue_size: int) -> NDArray[np.int64]:
        """Return how many of ``users`` interacted with each item, int64 [items]."""
        return np.bincount(self.interactions.take(users).items, minlength=catalogue_size)

    def observed_scale(self, users: NDArray[np.int64]) -> RatingScale | None:
        """Return the fixed scale, or the lowest and highest rating of ``users``; None where they gave none."""
        ratings = self.interactions.take(users).ratings
        ratings = ratings[~np.isnan(ratings)]
        if not len(ratings):
            return None
        return self.rating_scale or RatingScale(low=float(ratings.min()), high=float(ratings.max()))

    def rating_sum(self, users: NDArray[np.int64]) -> tuple[float, int]:
        """Return the sum of all ratings of ``users``, and how many these are."""
        ratings = self.interactions.take(users).ratings
        ratings = ratings[~np.isnan(ratings)]
        return float(ratings.sum(dtype=np.float64)), len(ratings)

    def training_tasks(
        self, users: NDArray[np.int64], round_number: int, settings: TaskSettings, width: int, scale: RatingScale | None
    ) -> TaskBatch:
        """Draw the meta-training tasks of ``users`` in one round, feedback read on ``scale``."""
        address = (self.seed, round_number)
        return draw_training_tasks(self.interactions, users, self.keys[users], scale, settings, width, address)

    def evaluation_task(
        self, user: int, order: Order, support: int, query: int, scale: RatingScale | None, draw: int = 0
    ) -> Task:
        """Return the cold-user task of one user: the first ``support`` items, then the next ``query``.

        The random order has the address (seed, user, draw), so that a smaller support set is a prefix of a larger one.

        Raises:
            DataError: Time order is asked of data without timestamps.
        """
        if order == "time" and not self.interactions.has_time:
            raise DataError("the data has no timestamps, so its histories have no time order")
        start, stop = self.interactions.offsets[user], self.interactions.offsets[user + 1]
        rows = np.arange(start, stop)
        if order == "random":
            rng = generator(self.seed, "evaluation order", int(self.keys[user]), *([draw] if draw else []))
            rows = start + rng.permutation(stop - start)
        chosen = rows[None, :support]
        recency = time_ranks(chosen, np.ones(chosen.shape, dtype=bool))[0] if self.interactions.has_time else None
        return Task(
            support=self.interactions.items[rows[:support]].astype(np.int64),
            support_mask=np.ones(min(support, len(rows)), dtype=bool),
            feedback=feedback_levels(self.interactions.ratings[rows[:support]], scale),
            query=self.interactions.items[rows[support : support + query]].astype(np.int64),
            in_time=order == "time",
            from_start=order == "time",
            recency=recency,
            attributes=None if self.interactions.attributes is None else self.interactions.attributes[user],
        )
