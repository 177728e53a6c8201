"""The cold-user protocol: rank the whole catalogue for users by their support set, judge by their query set."""

from collections.abc import Callable, Sequence
from itertools import compress

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from metarec_shared.dataset import RatingScale
from metarec_shared.metrics import ndcg, ranking_metrics
from metarec_shared.model import BertRecommender
from metarec_shared.population import Population
from metarec_shared.ranks import query_ranks
from metarec_shared.tasks import Order, Task, TaskBatch, pad

USERS_AT_ONCE = 256

Scorer = Callable[[TaskBatch], Float[Tensor, "users items"]]
"""Scores the catalogue for users by their support sets; a model, adapted or not, or a baseline."""


def cold_user_tasks(
    population: Population,
    users: NDArray[np.int64],
    order: Order,
    support: int,
    query: int,
    scale: RatingScale | None,
    draw: int = 0,
) -> list[Task]:
    """Return the cold-user tasks of those ``users`` whose history is longer than ``support``.

    Args:
        population: Whose histories.
        users: Positions in it.
        order: How a history is read.
        support: Support items.
        query: Query items, at most.
        scale: Scale on which ratings are read as feedback.
        draw: Which of the random orders.
    """
    long_enough = users[population.interactions.lengths[users] > support]
    return [population.evaluation_task(int(user), order, support, query, scale, draw) for user in long_enough]


def batched(tasks: Sequence[Task], users_at_once: int = USERS_AT_ONCE) -> list[TaskBatch]:
    """Return tasks padded in batches, as ``evaluate`` takes them; whoever evaluates often makes them once."""
    return [pad(tasks[start : start + users_at_once]) for start in range(0, len(tasks), users_at_once)]


def evaluate(scorer: Scorer, batches: Sequence[TaskBatch], k: int) -> dict[str, Float[Tensor, " users"]]:
    """Return every ranking metric of every user; the support set is never ranked.

    Raises:
        ValueError: There is no task, or a score is not finite.
    """
    parts = []
    for batch in batches:
        with torch.no_grad():
            scores = scorer(batch).cpu()
        known = batch.known_mask(scores.shape[1])
        parts.append(ranking_metrics(scores, known, batch.query, batch.query_mask, k))
    if not parts:
        raise ValueError("there is no task to evaluate")
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def evaluate_blends(
    scorer: Scorer,
    added: Sequence[Scorer],
    blends: Float[Tensor, "ways parts"],
    batches: Sequence[TaskBatch],
    k: int,
) -> Float[Tensor, "ways users"]:
    """Return nDCG@k of every user with other scores added, for each way to blend them.

    Every scorer is asked once a batch, whatever the number of ways, and never if its blend is 0 in all of them.

    Args:
        scorer: What is added to.
        added: What is added.
        blends: What each of these is multiplied by, in every way.
        batches: Tasks, at least one batch.
        k: Length of lists.

    Raises:
        ValueError: A score is not finite.
    """
    counts = blends.any(dim=0)
    asked, ways = list(compress(added, counts.tolist())), blends[:, counts].tolist()
    parts = []
    for batch in batches:
        with torch.no_grad():
            scores, others = scorer(batch), [one(batch) for one in asked]
        known = batch.known_mask(scores.shape[1])
        mixed = (with_added(scores, others, way).cpu() for way in ways)
        parts.append(torch.stack([ndcg(query_ranks(one, known, batch.query, batch.query_mask), k) for one in mixed]))
    return torch.cat(parts, dim=1)


def with_added(
    scores: Float[Tensor, "users items"], others: Sequence[Float[Tensor, "users items"]], blends: Sequence[float]
) -> Float[Tensor, "users items"]:
    """Return scores with others added, each multiplied by its blend."""
    for other, blend in zip(others, blends, strict=True):
        if blend:
            scores = scores + blend * other
    return scores


def model_scorer(model: BertRecommender, *, adapt: bool) -> Scorer:
    """Return the model as it stands as a scorer, with or without its inner loop; item vectors are computed once."""
    with torch.no_grad():
        E = model.item_vectors()

    def score(batch: TaskBatch) -> Tensor:
        return model(batch.to(E.device), adapt=adapt, E=E)  # type: ignore[no-any-return]

    return score
