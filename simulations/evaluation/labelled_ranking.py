"""The protocol labelled-ranking, RecBole-MetaRec's: rank ten rated items of a new user, the five best being relevant.

Which five are the best is open where ratings tie. Every metric is its expected value over all choices, exactly: all
of the at most 252 sets of five are gone through.

References:
    RecBole-MetaRec, https://github.com/nuster1128/RecBole-MetaRec (settings of its ML-1M and ML-100K results).
"""

from itertools import combinations
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from metarec_shared.errors import DataError
from metarec_shared.metrics import hit_rate, ndcg, precision, recall, reciprocal_rank
from metarec_shared.population import Population
from metarec_shared.ranks import query_ranks
from metarec_shared.settings import Settings
from metarec_shared.sources import load_dataset
from metarec_shared.split import Role
from simulations.evaluation.protocol import EvaluationProtocol, Say
from simulations.evaluation.rating import (
    FEWEST,
    MOST,
    RATING_METHODS,
    RatingProblem,
    RatingStage,
    RatingTrial,
    kept,
    rated_only,
    rating_tasks,
    rating_text,
)

K = 5
CELL = "new-users"


class LabelledRanking(EvaluationProtocol):
    """Users are split 8:1:1 by a keyed hash; all have 13 to 100 ratings."""

    name = "labelled-ranking"
    about = (
        "Users with 13 to 100 ratings, 8:1:1 for training, tuning and test. Of a test user's ratings 10 random ones "
        "are hidden and the others given; the 10 are ranked, and the five best-rated are relevant. Ties of ratings at "
        "the fifth place, and of scores, count as their average."
    )
    methods = RATING_METHODS
    shown = tuple(f"{metric}@{K}" for metric in ("precision", "ndcg", "mrr", "hr"))

    def open(self, settings: Settings, folder: Path, say: Say) -> "LabelledTrial":
        """Split users and draw tasks."""
        dataset = load_dataset(settings)
        ratings, scale = rated_only(dataset)
        takes_part = (ratings.lengths >= FEWEST) & (ratings.lengths <= MOST)
        population = Population.of(ratings, scale, settings.run.seed)
        learned = takes_part & (population.roles == Role.TRAINING)
        train = kept(ratings, np.repeat(learned, ratings.lengths))
        stages = {
            role: RatingStage(
                train=train,
                tasks={CELL: rating_tasks(ratings, population.users(role), population.keys, population.seed, CELL)},
            )
            for role in (Role.VALIDATION, Role.TEST)
        }
        counts = [int(learned.sum()), *(len(stage.tasks[CELL]) for stage in stages.values())]
        if not all(counts):
            raise DataError(
                f"{dataset.name}: training, tuning and test need users with {FEWEST} to {MOST} ratings each, got "
                f"{', '.join(map(str, counts))}"
            )
        problem = RatingProblem(
            settings=settings,
            folder=folder,
            say=say,
            scale=scale,
            text=rating_text(settings),
            tuning=stages[Role.VALIDATION],
            test=stages[Role.TEST],
        )
        return LabelledTrial(problem)


class LabelledTrial(RatingTrial):
    """The protocol with one seed."""

    target = f"ndcg@{K}"
    lower_is_better = False

    def judge(
        self, predicted: Float[Tensor, "users query"], rated: Float[Tensor, "users query"]
    ) -> dict[str, Float[Tensor, " users"]]:
        """Return every metric of every user, averaged over the choices of the five best-rated."""
        return labelled_metrics(predicted, rated, K)


def labelled_metrics(
    predicted: Float[Tensor, "users query"], rated: Float[Tensor, "users query"], k: int
) -> dict[str, Float[Tensor, " users"]]:
    """Return metrics at ``k`` of the ranking of each user's items, his ``k`` best-rated items being relevant.

    Args:
        predicted: Scores, higher is better.
        rated: Ratings.
        k: Cut-off and number of relevant items, at most as many as there are items.

    Example:
        >>> metrics = labelled_metrics(torch.tensor([[3.0, 2.0, 1.0]]), torch.tensor([[4.0, 5.0, 4.0]]), 1)
        >>> {name: value.item() for name, value in metrics.items()}  # the best-rated item is ranked second
        {'precision@1': 0.0, 'recall@1': 0.0, 'hr@1': 0.0, 'ndcg@1': 0.0, 'mrr@1': 0.0}
    """
    chosen = [_best_sets(row, k) for row in rated.numpy()]
    owner = torch.repeat_interleave(torch.arange(len(rated)), torch.tensor([len(sets) for sets in chosen]))
    query = torch.from_numpy(np.concatenate(chosen))
    scores = predicted[owner]
    ranks = query_ranks(
        scores, torch.zeros_like(scores, dtype=torch.bool), query, torch.ones_like(query, dtype=torch.bool)
    )
    found = {
        f"precision@{k}": precision(ranks, k),
        f"recall@{k}": recall(ranks, k),
        f"hr@{k}": hit_rate(ranks, k),
        f"ndcg@{k}": ndcg(ranks, k),
        f"mrr@{k}": reciprocal_rank(ranks, k),
    }
    sets = torch.bincount(owner, minlength=len(rated))
    zeros = torch.zeros(len(rated), dtype=torch.float64)
    return {name: zeros.index_add(0, owner, value.double()) / sets for name, value in found.items()}


def _best_sets(ratings: Float[np.ndarray, " query"], k: int) -> Int[np.ndarray, "sets k"]:
    """Return every set of ``k`` items that are rated best."""
    cut = np.sort(ratings)[-k]
    above, tied = np.flatnonzero(ratings > cut), np.flatnonzero(ratings == cut)
    return np.array([[*above, *some] for some in combinations(tied, k - len(above))], dtype=np.int64)
