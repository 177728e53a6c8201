"""Recommend on the device: adapt the meta-initialization to a history and rank the catalogue, in milliseconds."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

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
    model: BertRecommender,
    E: Float[Tensor, "items width"],
    profiles: Sequence[Profile],
    places: Sequence[Int[Tensor, " items"]],
    scale: RatingScale | None,
) -> list[list[float | None]]:
    """Return the ratings that each user would give the items at his places, on ``scale``; None without a rating head.

    Args:
        model: The recommender.
        E: Its item vectors.
        profiles: The users' histories.
        places: Of each user, positions of items of the catalogue.
        scale: Scale of the ratings that the model was trained with; None: it saw none.
    """
    if scale is None or model.rating_head is None:
        return [[None] * len(own) for own in places]
    found = model.ratings(task_of(profiles), E[pad_sequence(list(places), batch_first=True)], E)
    assert found is not None
    rows = (scale.low + (scale.high - scale.low) * found.clamp(0.0, 1.0)).tolist()
    return [row[: len(own)] for row, own in zip(rows, places, strict=True)]


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
