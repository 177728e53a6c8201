"""The evaluation protocols of a result: cold users and cold items, every method on the same tasks.

Nothing here is learned from test users; what is tuned (the baselines) is tuned on validation users.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from metarec_shared.checkpoint import Checkpoint
from metarec_shared.evaluation import Scorer, batched, cold_user_tasks, evaluate, model_scorer
from metarec_shared.interactions import Interactions
from metarec_shared.metrics import ranking_metrics
from metarec_shared.population import Population
from metarec_shared.split import Role
from metarec_shared.tasks import Order, Task, TaskBatch, pad
from simulations.baselines.baseline import Baseline, Validation, co_occurrences
from simulations.baselines.ease import tune_ease
from simulations.baselines.item_knn import tune_item_knn
from simulations.baselines.popularity import fit_popularity

EASE_REGULARIZATION = tuple(float(value) for value in np.geomspace(50, 20_000, 9).round())
KNN_NEIGHBOURS = (50, 100, 200, 500)
KNN_SHRINKAGE = (0.0, 10.0, 100.0)

Methods = Mapping[str, Scorer]
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One cell of the cold-user protocol.

    Attributes:
        order: How a user's interactions are ordered before they are cut into support and query.
        support: Support items.
        query: Query items, at most.
        k: Cut-off of the metrics.
    """

    order: Order
    support: int
    query: int
    k: int


def orders_of(interactions: Interactions) -> tuple[Order, ...]:
    """Return the orders the data has: without timestamps there is no time order."""
    return ("random", "time") if interactions.has_time else ("random",)


def chance(batch: TaskBatch, items: int) -> Tensor:
    """Score every item the same: its metrics are those of a random ranking."""
    return torch.zeros(len(batch), items)


def model_methods(checkpoint: Checkpoint, not_adapted: Checkpoint | None) -> dict[str, Scorer]:
    """Return our model, the same merely read, and the ablation that was trained without an inner loop."""
    model = checkpoint.model()
    items = len(model.text)
    methods = {
        "metarec": model_scorer(model, adapt=True),
        "unadapted": model_scorer(model, adapt=False),
        "chance": lambda batch: chance(batch, items),
    }
    if not_adapted is not None:
        methods["not_adapted"] = model_scorer(not_adapted.model(), adapt=False)
    return methods


def cold_user(population: Population, users: NDArray[np.int64], cell: Cell, methods: Methods) -> dict[str, Any] | None:
    """Return the figures of every method on the cold-start users among ``users``; None where nobody enters."""
    tasks = cold_user_tasks(population, users, cell.order, cell.support, cell.query, population.rating_scale)
    if not tasks:
        return None
    batches = batched(tasks)
    figures = {name: _means(evaluate(scorer, batches, cell.k)) for name, scorer in methods.items()}
    return {"support": cell.support, "query": cell.query, "users": len(tasks), **figures}


def popularity_baseline(population: Population, items: int) -> dict[str, Scorer]:
    """Return the baseline that has nothing to tune."""
    train = population.interactions.take(population.users(Role.TRAINING))
    return {"popularity": baseline_scorer(fit_popularity(train, items))}


def tuned_baselines(
    population: Population, items: int, cells: Sequence[Cell], judged: int, say: Say
) -> dict[Cell, dict[str, Scorer]]:
    """Fit the centralized baselines on meta-training users and tune them on validation users, for each cell.

    Args:
        population: Everybody's histories.
        items: Size of the catalogue.
        cells: What is tuned for.
        judged: Validation users at most.
        say: Told, in a line each, what happens next.
    """
    train = population.interactions.take(population.users(Role.TRAINING))
    validations = {cell: v for cell in cells if (v := _validation(population, cell, judged)) is not None}
    methods: dict[Cell, dict[str, Scorer]] = {cell: popularity_baseline(population, items) for cell in cells}
    if len(validations) < len(cells):
        say("too few validation users are long enough to tune item-kNN and EASE everywhere; they are left out there")
    if validations:
        say("tuning item-kNN on validation users")
        gram = co_occurrences(train, items)
        knns = tune_item_knn(gram, KNN_NEIGHBOURS, KNN_SHRINKAGE, list(validations.values()))
        say("tuning EASE on validation users")
        eases = tune_ease(gram, EASE_REGULARIZATION, list(validations.values()))
        for cell, knn, ease in zip(validations, knns, eases, strict=True):
            methods[cell] |= {"item_knn": baseline_scorer(knn), "ease": baseline_scorer(ease)}
    return methods


def _validation(population: Population, cell: Cell, judged: int) -> Validation | None:
    """Return nDCG@k on the cell's validation users; None where nobody enters."""
    users = population.judged(Role.VALIDATION, judged)
    tasks = cold_user_tasks(population, users, cell.order, cell.support, cell.query, population.rating_scale)
    if not tasks:
        return None
    batches = batched(tasks)
    return lambda baseline: float(evaluate(baseline_scorer(baseline), batches, cell.k)[f"ndcg@{cell.k}"].mean())


def baseline_scorer(baseline: Baseline) -> Scorer:
    """Return a baseline as a scorer of task batches."""
    return lambda batch: baseline.scores(batch.support, batch.support_mask)


def cold_item(
    checkpoint: Checkpoint, population: Population, users: NDArray[np.int64], support: int, k: int
) -> dict[str, Any] | None:
    """Rank the held-out items for users who touched them, by a support set of other items, in random order.

    Args:
        checkpoint: A model trained without the held-out items.
        population: Histories over the whole catalogue.
        users: Whom to evaluate.
        support: Support items, all known to training.
        k: Cut-off.

    Returns:
        The figures; None where no user has both a support set and a held-out item.
    """
    held_out = checkpoint.items.held_out
    tasks = [task for user in users if (task := cold_item_task(population, int(user), held_out, support)) is not None]
    if not tasks:
        return None
    model = checkpoint.full_model()
    methods = {"metarec": model_scorer(model, adapt=True), "unadapted": model_scorer(model, adapt=False)}
    methods |= {"text_knn": text_knn(checkpoint.text), "chance": lambda batch: chance(batch, len(held_out))}
    excluded = torch.from_numpy(~held_out)
    figures = {name: _means(rank_among(scorer, tasks, excluded, k)) for name, scorer in methods.items()}
    return {"support": support, "items": int(held_out.sum()), "users": len(tasks), **figures}


def text_knn(text: Tensor) -> Scorer:
    """Score items by the mean cosine similarity of their text to the support items' text."""

    def score(batch: TaskBatch) -> Tensor:
        mask = batch.support_mask.float()
        profile = torch.einsum("us,usd->ud", mask / mask.sum(dim=1, keepdim=True).clamp(min=1), text[batch.support])
        return profile @ text.T

    return score


def cold_item_task(population: Population, user: int, held_out: NDArray[np.bool_], support: int) -> Task | None:
    """Return a task whose support set is of items that training knows and whose query is all held-out items.

    Args:
        population: Histories over the whole catalogue.
        user: Whose, read in random order.
        held_out: Which items are held out, bool [items].
        support: Support items, at most.

    Returns:
        The task; None where the user has no held-out item, or no other.
    """
    length = int(population.interactions.lengths[user])
    whole = population.evaluation_task(user, "random", length, 0, population.rating_scale)
    hidden = held_out[whole.support]
    if not hidden.any() or hidden.all():
        return None
    known = np.flatnonzero(~hidden)[:support]
    return Task(
        support=whole.support[known],
        support_mask=np.ones(len(known), dtype=bool),
        feedback=whole.feedback[known],
        query=whole.support[hidden],
        attributes=whole.attributes,
    )


def rank_among(scorer: Scorer, tasks: Sequence[Task], excluded: Tensor, k: int) -> dict[str, Tensor]:
    """Return every ranking metric of every task where some items are never ranked, bool [items]."""
    batch = pad(tasks)
    with torch.no_grad():
        scores = scorer(batch)
    return ranking_metrics(scores, excluded.expand(scores.shape), batch.query, batch.query_mask, k)


def _means(metrics: Mapping[str, Tensor]) -> dict[str, float]:
    return {name: float(values.nanmean()) for name, values in metrics.items()}
