"""The protocol interest-drift: how much better than his early history a user's recent one tells what he takes next."""

from pathlib import Path

import numpy as np

from metarec_shared.augmentation import time_ranks
from metarec_shared.errors import DataError
from metarec_shared.evaluation import batched
from metarec_shared.feedback import feedback_levels
from metarec_shared.population import Population
from metarec_shared.settings import Settings
from metarec_shared.sources import load_training_dataset
from metarec_shared.split import Role
from metarec_shared.tasks import Task
from simulations.evaluation.protocol import EvaluationProtocol, Say
from simulations.evaluation.ranking import Judged, K, RankingCell, RankingProblem, RankingTrial
from simulations.evaluation.ranking_methods import RANKING_METHODS

CELLS = ("early", "recent")


class InterestDrift(EvaluationProtocol):
    """The same users and the same query, by two support sets."""

    name = "interest-drift"
    about = (
        "Test users were never seen in training. Each one's latest 10 interactions are the query. The support set is "
        "his first 10 interactions (early) or the 10 before the query (recent); users with fewer than 30 do not enter. "
        "In both cells the whole catalogue without both support sets is ranked, so that they differ in what is read "
        "alone. Ties count as their average; nDCG has binary gain. Other sizes: evaluation.support, evaluation.query."
    )
    methods = tuple(RANKING_METHODS)
    shown = (f"ndcg@{K}", f"hr@{K}", f"recall@{K}")

    def open(self, settings: Settings, folder: Path, say: Say) -> RankingTrial:
        """Split users and histories.

        Raises:
            DataError: There is no time order, or nobody's history is long enough.
        """
        dataset = load_training_dataset(settings)
        if not dataset.interactions.has_time:
            raise DataError(f"{dataset.name}: has no timestamps, so no part of a history is early or recent")
        population = Population.of(dataset.interactions, dataset.rating_scale, settings.run.seed)
        cells = [
            RankingCell(
                name=name,
                validation=_judged(population, settings, Role.VALIDATION, name),
                test=_judged(population, settings, Role.TEST, name),
            )
            for name in CELLS
        ]
        if not all(len(cell.validation) and len(cell.test) for cell in cells):
            raise DataError(
                f"{dataset.name}: no validation and test users have the {_least(settings)} interactions that two "
                "support sets and a query set take"
            )
        problem = RankingProblem.of_training_items(settings, folder, say, population, cells)
        return RankingTrial(problem, RANKING_METHODS)


def _least(settings: Settings) -> int:
    return 2 * settings.evaluation.support + settings.evaluation.query


def _judged(population: Population, settings: Settings, role: Role, cell: str) -> Judged:
    users = population.judged(role, settings.evaluation.users)
    users = users[population.interactions.lengths[users] >= _least(settings)]
    return Judged(batches=batched([_task(population, settings, int(user), cell) for user in users]))


def _task(population: Population, settings: Settings, user: int, cell: str) -> Task:
    """Return a task that knows both support sets, the other one masked."""
    sizes, histories = settings.evaluation, population.interactions
    start, stop = histories.offsets[user], histories.offsets[user + 1]
    before = stop - sizes.query
    early, recent = np.arange(start, start + sizes.support), np.arange(before - sizes.support, before)
    rows = np.concatenate([early, recent])
    mask = np.repeat([cell == "early", cell == "recent"], sizes.support)
    return Task(
        support=histories.items[rows].astype(np.int64),
        support_mask=mask,
        feedback=feedback_levels(histories.ratings[rows], population.rating_scale),
        query=histories.items[before:stop].astype(np.int64),
        in_time=True,
        from_start=cell == "early",
        recency=time_ranks(rows[None], mask[None])[0],
        attributes=None if histories.attributes is None else histories.attributes[user],
    )
