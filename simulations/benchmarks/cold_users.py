"""Cold-start users as a device meets them: a history, and what the user did next; the run's own evaluation."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from client.history import Item, Profile
from metarec_shared.checkpoint import Checkpoint
from metarec_shared.errors import DataError
from metarec_shared.evaluation import cold_user_tasks
from metarec_shared.population import Population
from metarec_shared.split import Role
from metarec_shared.tasks import Order, Task
from simulations.protocols import orders_of

K = 10
"""Length of lists, and how many items the query has at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ColdUser:
    """A cold-start user.

    Attributes:
        profile: The support set, as a device reads a history.
        query: What follows, positions in the whole catalogue.
    """

    profile: Profile
    query: frozenset[int]


Cells = dict[Order, list[ColdUser]]
Ranked = list[tuple[int, float]]


def told_of_himself(task: Task) -> list[int]:
    """Return hashes of what a user tells of himself, where the model reads such."""
    return [] if task.attributes is None else [int(value) for value in task.attributes]


def cold_users(checkpoint: Checkpoint, population: Population, users: int, support: int | None = None) -> Cells:
    """Return test users with a support set and a query, by the order of histories.

    Args:
        checkpoint: The run.
        population: Its histories, over the items that training knew.
        users: How many, at most.
        support: Support items of each; None: as many as in the run's own evaluation.

    Raises:
        DataError: Nobody has a history that long.
    """
    size, at = support or checkpoint.settings.evaluation.support, checkpoint.items.positions
    chosen = population.judged(Role.TEST, users)

    def cold(task: Task) -> ColdUser:
        items = zip(at[task.support].tolist(), task.feedback.tolist(), strict=True)
        return ColdUser(
            profile=Profile(
                items=[Item(position=position, feedback=level) for position, level in items],
                in_time=task.in_time,
                attributes=told_of_himself(task),
            ),
            query=frozenset(at[task.query].tolist()),
        )

    cells: Cells = {}
    for order in orders_of(population.interactions):
        tasks = cold_user_tasks(population, chosen, order, size, K, population.rating_scale)
        cells[order] = [cold(task) for task in tasks]
    if not any(cells.values()):
        raise DataError(f"no test user has a history longer than {size}: there is nobody to recommend to")
    return cells


def ndcg(users: Sequence[ColdUser], answers: Sequence[Ranked]) -> float:
    """Return the mean nDCG@10 of recommendations, with binary gain."""
    discounts = [1 / math.log2(rank + 1) for rank in range(1, K + 1)]

    def one(user: ColdUser, ranked: Ranked) -> float:
        gained = sum(discount for discount, (at, _) in zip(discounts, ranked, strict=False) if at in user.query)
        return gained / sum(discounts[: len(user.query)])

    return statistics.mean(one(user, ranked) for user, ranked in zip(users, answers, strict=True))


def compared(found: Sequence[Ranked], expected: Sequence[Ranked]) -> dict[str, float]:
    """Compare recommendations: the share of lists that are the same, and how far scores of an item differ.

    Blends may be large, and scores then hundreds: the difference is also given over the score, of 1 at least.
    """
    pairs = list(zip(found, expected, strict=True))
    off = [
        (abs(score - dict(right)[at]), max(1.0, abs(score)))
        for left, right in pairs
        for at, score in left
        if at in dict(right)
    ]
    return {
        "lists": len(pairs),
        "identical": sum([at for at, _ in left] == [at for at, _ in right] for left, right in pairs) / len(pairs),
        "score_difference": max((difference for difference, _ in off), default=0.0),
        "relative_difference": max((difference / size for difference, size in off), default=0.0),
    }
