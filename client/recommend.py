"""Recommend on the device: adapt the meta-initialization to a history and rank the catalogue, in milliseconds."""

from collections.abc import Sequence

import numpy as np
import torch

from client.history import Profile
from metarec_shared.dataset import RatingScale
from metarec_shared.inner_loop import NEVER
from metarec_shared.model import BertRecommender
from metarec_shared.tasks import Task, TaskBatch, pad


@torch.no_grad()
def recommend(model: BertRecommender, profile: Profile, top_k: int) -> list[tuple[int, float]]:
    """Return the positions and scores of the ``top_k`` best items, best first, none of them from the history.

    With an empty history the unadapted meta-initialization ranks the catalogue, by attributes alone if there are any.
    What follows a history that is known to be in time, and is taken for whole, is predicted otherwise than what goes
    with one that may be in any order: the later of its items say more, so they stand oldest first.
    """
    task = task_of([profile])
    scores = model(task, adapt=len(profile.items) > 0)[0]
    scores[task.support[0]] = NEVER
    best = scores.topk(min(top_k, len(scores) - len(profile.items)))
    return list(zip(best.indices.tolist(), best.values.tolist(), strict=True))


@torch.no_grad()
def predicted_ratings(
    model: BertRecommender, profile: Profile, positions: Sequence[int], scale: RatingScale | None
) -> list[float | None]:
    """Return the ratings that the user would give the items at ``positions``, on ``scale``; None without a rating head.

    Args:
        model: The recommender.
        profile: The user's history.
        positions: Of items of the catalogue.
        scale: Scale of the ratings that the model was trained with; None: it saw none.
    """
    E = model.item_vectors()
    found = model.ratings(task_of([profile]), E[torch.tensor(positions, dtype=torch.int64)][None], E)
    if found is None or scale is None:
        return [None] * len(positions)
    return [scale.low + (scale.high - scale.low) * value for value in found[0].clamp(0.0, 1.0).tolist()]


def task_of(profiles: Sequence[Profile]) -> TaskBatch:
    """Return histories as tasks without query sets, padded."""
    return pad([_task(profile) for profile in profiles])


def _task(profile: Profile) -> Task:
    positions = np.array([item.position for item in profile.items], dtype=np.int64)
    return Task(
        support=positions,
        support_mask=np.ones(len(positions), dtype=bool),
        feedback=np.array([item.feedback for item in profile.items], dtype=np.int64),
        query=positions[:0],
        in_time=profile.in_time,
        from_start=profile.in_time,
        recency=np.arange(len(positions), 0, -1),
        attributes=np.array(profile.attributes, dtype=np.int64),
    )
