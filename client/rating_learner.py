"""The rating model of a client: meta-gradients of its users' tasks, and errors of its validation users."""

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from client.learner import LoadedModel
from client.node import Drawn, Nodes
from metarec_shared.device import tiny_numbers_flushed
from metarec_shared.exchange import EvaluateRequest, Judged, TrainRequest
from metarec_shared.initialization import initial_rating_model
from metarec_shared.meta_gradient import MetaGradient, separately_clipped_sum
from metarec_shared.rating_model import RatingBatch, RatingModel, rating_errors, rating_meta_gradient
from metarec_shared.rating_tasks import draw_rating_tasks, evaluation_rating_tasks, middle
from metarec_shared.settings import Settings
from metarec_shared.sources import ItemFeatures

USERS_AT_ONCE = 256
"""Users of one pass at most; each takes a few kilobytes a rating."""


class RatingLearner(LoadedModel[RatingModel]):
    """The rating model of a client.

    Args:
        settings: The run's settings.
        public: The run's items and their text vectors.
    """

    def __init__(self, settings: Settings, public: ItemFeatures) -> None:
        model = initial_rating_model(settings, public.features.vectors, public.items)
        super().__init__(settings, public.fingerprint, model)

    def meta_gradient(
        self, nodes: Nodes, request: TrainRequest, drawn: Drawn, weights: NDArray[np.float32], *, separately: bool
    ) -> MetaGradient:
        """Return the weighted sum of the drawn users' meta-gradients.

        Args:
            nodes: Whose users.
            request: The round.
            drawn: Users that take part.
            weights: Of these, [users].
            separately: Whether each user is computed alone (``separately_clipped_sum``).

        Raises:
            DataError: There are no ratings.
        """
        middle(request.rating_scale)
        draw = partial(self._draw, nodes, request, drawn, weights)
        clip_norm = self.settings.federation.clip_norm
        with tiny_numbers_flushed():
            if not separately:
                cut = range(0, len(weights), USERS_AT_ONCE)
                batches: Iterator[RatingBatch] = (draw(slice(start, start + USERS_AT_ONCE)) for start in cut)
                return rating_meta_gradient(self.model, batches, clip_norm=clip_norm, released=self.released)
            alone: Iterator[Callable[[], RatingBatch]] = (
                partial(draw, slice(user, user + 1)) for user in range(len(weights))
            )
            return separately_clipped_sum(
                self.model, alone, clip_norm=clip_norm, released=self.released,
                gradient_of=lambda task: rating_meta_gradient(
                    self.model, [(task, torch.ones(1, device=self.device))], released=self.released
                ),
            )  # fmt: skip

    def errors(self, nodes: Nodes, request: EvaluateRequest, support: int) -> Judged:
        """Return the errors of predicted ratings, clipped to the scale, summed over users in a role.

        Args:
            nodes: Whose users.
            request: How they are judged.
            support: Ratings that are given of each.

        Raises:
            DataError: There are no ratings.
        """
        query, scale = self.settings.evaluation.query, request.rating_scale
        users = nodes.judged(request.role, request.sampling_rate)
        tasks = evaluation_rating_tasks(nodes.population, users, support, query, scale, request.draws).to(self.device)
        if not len(tasks):
            return Judged(users=0, sums={})
        metrics = rating_errors(self.model, tasks, scale, adapt=request.adapt)
        return Judged(users=len(tasks), sums={name: [float(value.sum())] for name, value in metrics.items()})

    def _draw(
        self, nodes: Nodes, request: TrainRequest, drawn: Drawn, weights: NDArray[np.float32], rows: slice
    ) -> RatingBatch:
        population, users = nodes.population, drawn.users[rows]
        tasks = draw_rating_tasks(
            population.interactions,
            users,
            population.keys[users],
            request.rating_scale,
            self.settings.rating,
            (population.seed, request.round_number),
        )
        return tasks.to(self.device), torch.from_numpy(weights[rows]).to(self.device)
