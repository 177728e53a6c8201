"""The protocol rating-quadrants, MeLU's: predict ratings where the user, the item or both are new."""

from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from metarec_shared.errors import DataError
from metarec_shared.interactions import Interactions
from metarec_shared.metrics import graded_ndcg, mean_absolute_error, root_mean_square_error
from metarec_shared.randomness import uniforms, user_keys
from metarec_shared.settings import Settings
from metarec_shared.sources import load_dataset
from simulations.evaluation.melu_split import SHARE, cold_split, latest_items
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

GAINS = ("linear", "exponential")
CUTS = (1, 3)


class RatingQuadrants(EvaluationProtocol):
    """Users and items are each warm or cold; what is warm on both sides is trained on."""

    name = "rating-quadrants"
    about = (
        "Users and items are each warm or cold (MeLU's split); ratings of warm items by warm users are trained on. In "
        "each other quadrant, of users with 13 to 100 ratings there, 10 random ratings are asked for and the others "
        "given. Errors are of predictions clipped to the scale, averaged per user, then over users; mae_rounded is of "
        "predictions rounded to the ratings there are. nDCG ranks the 10, by rating (linear) or 2^rating - 1 "
        "(exponential)."
    )
    methods = RATING_METHODS
    shown = ("mae", "mae_rounded", "rmse", *(f"ndcg@{k}_{gain}" for gain in GAINS for k in CUTS))
    lower_is_better = frozenset({"mae", "mae_rounded", "rmse"})

    def open(self, settings: Settings, folder: Path, say: Say) -> "QuadrantTrial":
        """Split users and items, and the warm ones once more for tuning."""
        dataset, seed = load_dataset(settings), settings.run.seed
        ratings, scale = rated_only(dataset)
        keys = user_keys(seed, ratings.user_ids)
        cold_users, cold_items = cold_split(dataset, settings.data.path, seed)
        warm = quadrant(ratings, ~cold_users, ~cold_items)
        held_users = ~cold_users & (uniforms(keys, seed, "tuning users") < SHARE)
        held_items = latest_items(dataset.catalogue.titles, dataset.catalogue.item_ids, ~cold_items, seed)
        problem = RatingProblem(
            settings=settings,
            folder=folder,
            say=say,
            scale=scale,
            text=rating_text(settings),
            tuning=_stage(warm, held_users, held_items, keys, seed),
            test=_stage(ratings, cold_users, cold_items, keys, seed),
        )
        for name, stage in (("tuning on", problem.tuning), ("testing", problem.test)):
            if not len(stage.train.items) or not all(stage.tasks.values()):
                sizes = ", ".join(f"{cell}: {len(tasks)}" for cell, tasks in stage.tasks.items())
                raise DataError(
                    f"{dataset.name}: {name} every quadrant needs users with {FEWEST} to {MOST} ratings there, got "
                    f"{sizes} users"
                )
        return QuadrantTrial(problem)


def quadrant(ratings: Interactions, users: NDArray[np.bool_], items: NDArray[np.bool_]) -> Interactions:
    """Return the ratings of some users, bool [users], of some items, bool [items]."""
    return kept(ratings, np.repeat(users, ratings.lengths) & items[ratings.items])


def _stage(
    ratings: Interactions,
    cold_users: NDArray[np.bool_],
    cold_items: NDArray[np.bool_],
    keys: NDArray[np.uint64],
    seed: int,
) -> RatingStage:
    asked = {
        "new-users": (cold_users, ~cold_items),
        "new-items": (~cold_users, cold_items),
        "both-new": (cold_users, cold_items),
    }
    everybody = np.arange(len(ratings))
    return RatingStage(
        train=quadrant(ratings, ~cold_users, ~cold_items),
        tasks={
            cell: rating_tasks(quadrant(ratings, users, items), everybody, keys, seed, cell)
            for cell, (users, items) in asked.items()
        },
    )


class QuadrantTrial(RatingTrial):
    """The protocol with one seed."""

    target = "mae"
    lower_is_better = True

    def judge(
        self, predicted: Float[Tensor, "users query"], rated: Float[Tensor, "users query"]
    ) -> dict[str, Float[Tensor, " users"]]:
        """Return errors and nDCG of every user; the ranking is that of the predictions before they are clipped."""
        everything = torch.ones_like(rated, dtype=torch.bool)
        clipped = predicted.clamp(self.problem.scale.low, self.problem.scale.high)
        levels = torch.from_numpy(np.unique(self.problem.test.train.ratings).astype(np.float64))
        rounded = levels[(clipped[:, :, None] - levels).abs().argmin(dim=2)]
        found = {
            "mae": mean_absolute_error(clipped, rated, everything),
            "mae_rounded": mean_absolute_error(rounded, rated, everything),
            "rmse": root_mean_square_error(clipped, rated, everything),
        }
        for gain in GAINS:
            for k in CUTS:
                found[f"ndcg@{k}_{gain}"] = graded_ndcg(predicted, rated, everything, k, gain)  # type: ignore[arg-type]
        return found
