"""Nodes: devices with one user each, or sites with many, and the users they draw for a round.

A ClientApp answers for one node, the in-process grid for all nodes of a message at once: columns of many nodes' users
cost what the users cost, however many nodes they are spread over.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from client.privacy.guard import Guard, checked_rate
from metarec_shared.dataset import RatingScale
from metarec_shared.exchange import Enrollment, TrainRequest
from metarec_shared.population import SHORTEST_HISTORY, Population
from metarec_shared.privacy.gaussian import bounded_counts, noised_counts
from metarec_shared.privacy.terms import POPULARITY
from metarec_shared.randomness import uniforms
from metarec_shared.split import Role

USERS_COUNTED_AT_ONCE = 1 << 16
"""Users whose histories are read together when items are counted; memory grows with it."""


class Drawn(NamedTuple):
    """Users that take part in a round.

    Attributes:
        users: Positions in the population, int64 [users].
        nodes: Which node each belongs to, counted from 0 within the group, int64 [users].
        expected: Users each node expects to draw, a public constant of it, float64 [nodes].
    """

    users: NDArray[np.int64]
    nodes: NDArray[np.int64]
    expected: NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Nodes:
    """The users of one node, or of several; node ``i`` holds ``users[offsets[i]:offsets[i + 1]]``.

    Attributes:
        node_ids: Flower's ids of the nodes, uint64 [nodes].
        names: The nodes' stable names, [nodes].
        population: Where their users' histories are; simulated nodes share one population.
        users: Their users, int64 positions in ``population``.
        offsets: Where each node's users begin, int64 [nodes + 1].
        guard: What stands between the users and every reply; None: privacy is off.
    """

    node_ids: NDArray[np.uint64]
    names: Sequence[str]
    population: Population
    users: NDArray[np.int64]
    offsets: NDArray[np.int64]
    guard: Guard | None = None

    def __len__(self) -> int:
        return len(self.node_ids)

    def users_in(self, role: Role, shortest: int = SHORTEST_HISTORY) -> NDArray[np.bool_]:
        """Mark the users in ``role`` with a history of at least ``shortest``, bool [users]."""
        offsets = self.population.interactions.offsets
        long_enough = offsets[self.users + 1] - offsets[self.users] >= shortest
        marked: NDArray[np.bool_] = long_enough & (self.population.roles[self.users] == role)
        return marked

    def count(self, marked: NDArray[np.bool_]) -> NDArray[np.int64]:
        """Return how many of each node's users are marked, int64 [nodes]."""
        return np.bincount(self._node_of_user()[marked], minlength=len(self))

    def draw(self, request: TrainRequest) -> Drawn:
        """Draw the meta-training users that take part in a round: each by a coin of its own (Poisson sampling).

        Raises:
            Refusal: The sampling rate is above what the guard's terms allow.
        """
        eligible, rate = self.users_in(Role.TRAINING), min(request.sampling_rate, 1.0)
        nodes, users = self._node_of_user()[eligible], self.users[eligible]
        if self.guard is not None:
            rate = checked_rate(self.guard.terms, request.sampling_rate)
            heads = self.guard.coins(self.population, users, rate, request.round_number)
            return Drawn(users[heads], nodes[heads], self.declared().astype(np.float64) * rate)
        expected = np.bincount(nodes, minlength=len(self)).astype(np.float64) * rate
        if rate < 1.0:
            population = self.population
            heads = uniforms(population.keys[users], population.seed, "sampling", request.round_number) < rate
            nodes, users = nodes[heads], users[heads]
        return Drawn(users, nodes, expected)

    def declared(self) -> NDArray[np.int64]:
        """Return the meta-training users that each node says it has: a public constant where there is a guard."""
        if self.guard is None:
            return self.count(self.users_in(Role.TRAINING))
        return self.guard.declared(self.count(self.population.roles[self.users] == Role.TRAINING))

    def judged(self, role: Role, share: float) -> NDArray[np.int64]:
        """Return the users in ``role`` that are evaluated: of many, a ``share`` that is the same every time."""
        users = self.users[self.users_in(role)]
        if share >= 1.0:
            return users
        return users[uniforms(self.population.keys[users], self.population.seed, "judged") < share]

    def _node_of_user(self) -> NDArray[np.int64]:
        return np.repeat(np.arange(len(self)), np.diff(self.offsets))


def enroll(nodes: Nodes, catalogue_size: int, *, popularity: bool = True, ratings: bool = False) -> Enrollment:
    """Say who the nodes are and how many of their meta-training users interacted with each item.

    Args:
        nodes: The nodes.
        catalogue_size: Number of items; 0 where every node has items of its own, which nobody counts.
        popularity: Whether item counts are wanted; under terms of privacy they are bounded, noised and charged.
        ratings: Whether the sum and the number of their ratings are wanted; under terms of privacy they are not said.

    Raises:
        Refusal: The budget does not do for the item counts.
    """
    training, guard = nodes.users_in(Role.TRAINING), nodes.guard
    if guard is not None:
        return Enrollment(
            node_ids=nodes.node_ids,
            names=np.array(list(nodes.names), dtype=np.str_),
            training_users=nodes.declared(),
            validation_users=np.zeros(len(nodes), dtype=np.int64),
            item_counts=_protected_counts(nodes, guard, catalogue_size, popularity=popularity),
            rating_scale=nodes.population.rating_scale,  # a scale that is only observed would tell of its extremes
            terms=guard.terms,
        )
    counts, scales, rating_sum, rating_count = np.zeros(catalogue_size), [], 0.0, 0
    users = nodes.users[training]
    for start in range(0, len(users), USERS_COUNTED_AT_ONCE):
        part = users[start : start + USERS_COUNTED_AT_ONCE]
        if catalogue_size:
            counts += nodes.population.item_counts(part, catalogue_size)
        scales.append(nodes.population.observed_scale(part))
        if ratings:
            part_sum, part_count = nodes.population.rating_sum(part)
            rating_sum, rating_count = rating_sum + part_sum, rating_count + part_count
    return Enrollment(
        node_ids=nodes.node_ids,
        names=np.array(list(nodes.names), dtype=np.str_),
        training_users=nodes.count(training),
        validation_users=nodes.count(nodes.users_in(Role.VALIDATION)),
        item_counts=counts,
        rating_scale=RatingScale.widest(scales),
        rating_sum=rating_sum,
        rating_count=rating_count,
    )


def _protected_counts(nodes: Nodes, guard: Guard, items: int, *, popularity: bool) -> NDArray[np.float64]:
    """Return item counts of which each user's are bounded; noised but where the server does that."""
    terms = guard.terms
    if not popularity or not terms.releases_popularity:
        return np.zeros(items)
    guard.charge(terms.popularity(), 0)
    users = nodes.users[nodes.users_in(Role.TRAINING)]
    counts = np.zeros(items)
    for start in range(0, len(users), USERS_COUNTED_AT_ONCE):
        part = nodes.population.interactions.take(users[start : start + USERS_COUNTED_AT_ONCE])
        owners = np.repeat(np.arange(len(part)), part.lengths)
        counts += bounded_counts(part.items, owners, terms.popularity_norm, items)
    if terms.mode == "central":
        return counts
    return noised_counts(
        counts,
        noise_multiplier=terms.popularity_noise,
        norm=terms.popularity_norm,
        most=float(nodes.declared().sum()),
        sources=list(guard.noise(POPULARITY, 0, iter(nodes.names))),
    )
