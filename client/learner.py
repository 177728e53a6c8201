"""What a client keeps between messages: the model, the settings of the run and the catalogue they belong to."""

import logging
from collections.abc import Callable, Hashable, Iterable, Iterator
from functools import cached_property, partial
from typing import Generic, TypeVar

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from client.node import Nodes
from metarec_shared.augmentation import text_neighbours
from metarec_shared.candidates import Candidates, draw_candidates
from metarec_shared.checkpoint import load_parameters
from metarec_shared.device import resolve_device, tiny_numbers_flushed
from metarec_shared.errors import NodeError, WireError
from metarec_shared.exchange import Parameters
from metarec_shared.initialization import initial_model, released_names, travelling_names
from metarec_shared.memory import GB, is_out_of_memory, peak_bytes, room
from metarec_shared.meta_gradient import Batch, MetaGradient, cohort_meta_gradient, separately_clipped_sum
from metarec_shared.model import BertRecommender
from metarec_shared.popularity import log_popularity
from metarec_shared.pretraining import Objective, build_objective, cohort_gradient, separately_clipped_gradient
from metarec_shared.pretraining.gradient import Batch as HistoriesAndWeights
from metarec_shared.randomness import generator
from metarec_shared.rating_model import RatingModel
from metarec_shared.settings import Settings
from metarec_shared.split import Role
from metarec_shared.tasks import TaskBatch

MOST_USERS_AT_ONCE = 512
"""Users of one pass at most; more would be no faster."""

_PROBES = (2, 10)
"""Users in two computations whose memory tells what one more user takes."""

logger = logging.getLogger(__name__)

HISTORIES_AT_ONCE = 64
"""Users of one pass of pre-training at most."""

_COPIES = 4
"""Tensors of the size of all scores that a pass of pre-training holds at one time, about."""

BatchesOf = Callable[[int], Iterator[Batch]]
"""Returns a cohort in batches of at most so many users."""

HistoriesOf = Callable[[int], Iterator[HistoriesAndWeights]]
"""The same for pre-training."""


ModelT = TypeVar("ModelT", BertRecommender, RatingModel)


class LoadedModel(Generic[ModelT]):
    """A model into which each message's parameters are loaded.

    Args:
        settings: The run's settings.
        catalogue: Fingerprint of the items and their text vectors.
        model: The model with its first parameters.
    """

    def __init__(self, settings: Settings, catalogue: str, model: ModelT) -> None:
        self.settings = settings
        self.catalogue = catalogue
        self.device = resolve_device(settings.run.device)
        self.model: ModelT = model.to(self.device)
        names = [name for name, _ in self.model.named_parameters()]
        self.released = released_names(settings, names)
        self._travelling = travelling_names(settings, names)

    @property
    def items(self) -> int:
        """Size of the catalogue."""
        return len(self.model.text)

    def check_catalogue(self, catalogue: str) -> None:
        """Refuse a message that belongs to another catalogue.

        Raises:
            WireError: The fingerprints differ.
        """
        if catalogue != self.catalogue:
            raise WireError(
                f"the server's items are {catalogue}, this node's {self.catalogue}: another catalogue or text encoder"
            )

    def load(self, parameters: Parameters) -> None:
        """Copy the parameters that travel into the model; those that do not are what the run's seed drew.

        Raises:
            WireError: Names or shapes are not the model's.
        """
        load_parameters(self.model, parameters, WireError, self._travelling)


class Learner(LoadedModel[BertRecommender]):
    """The ranking model of a client.

    Args:
        settings: The run's settings.
        catalogue: Fingerprint of the items and their text vectors.
        text: Frozen text vectors of the catalogue, [items, text].
    """

    def __init__(self, settings: Settings, catalogue: str, text: Tensor) -> None:
        super().__init__(settings, catalogue, initial_model(settings, text))
        self._most_users = MOST_USERS_AT_ONCE
        self.drawn_for_evaluation: tuple[Hashable, list[TaskBatch]] | None = None

    def keep_bias(self, node: Nodes) -> None:
        """Let the score bias of items that no other node knows be their log popularity at this one; it never leaves.

        Where users are protected it stays zero: a bias that is counted from users would carry each of them into the
        gradients of all others, past the clip norm.
        """
        bias = torch.zeros(self.items)
        if node.guard is None:
            users = node.users[node.users_in(Role.TRAINING)]
            bias = torch.from_numpy(log_popularity(node.population.item_counts(users, self.items).astype(np.float64)))
        with torch.no_grad():
            self.model.item_bias.copy_(bias)

    def id_mask(self, round_number: int) -> Bool[Tensor, " items"] | None:
        """Draw which items' ID vectors are on in a round; the draw is public, so it is one for all nodes."""
        rate = self.settings.tasks.id_dropout
        if not rate or self.model.item_ids is None:
            return None
        draws = generator(self.settings.run.seed, "id dropout", round_number).random(len(self.model.text))
        return torch.from_numpy(draws >= rate).to(self.device)

    def candidates(self, round_number: int) -> Candidates | None:
        """Draw the items of a round's softmax; None where it is over the whole catalogue."""
        count = self.settings.adaptation.candidates
        if not count:
            return None
        return draw_candidates(self.model.item_bias, count, self.settings.run.seed, round_number)

    def separate_meta_gradient(self, users: Iterable[Callable[[], Batch]], round_number: int) -> MetaGradient:
        """Return the sum of clipped meta-gradients, each user computed alone (``separately_clipped_sum``)."""
        with tiny_numbers_flushed():
            return separately_clipped_sum(
                self.model,
                users,
                self.id_mask(round_number),
                clip_norm=self.settings.federation.clip_norm,
                released=self.released,
            )

    def separate_pretraining_gradient(
        self, users: Iterable[Callable[[], HistoriesAndWeights]], round_number: int
    ) -> MetaGradient:
        """Return the sum of clipped gradients of pre-training, each user computed alone."""
        with tiny_numbers_flushed():
            return separately_clipped_gradient(
                self.model,
                self.objective,
                users,
                self.id_mask(round_number),
                public=self.objective.public(self.model, self.settings.run.seed, round_number),
                clip_norm=self.settings.federation.clip_norm,
                released=self.released,
            )

    def pretraining_gradient(self, batches_of: HistoriesOf, round_number: int) -> MetaGradient:
        """Return the gradient of the loss of pre-training summed over a cohort; arguments as in ``meta_gradient``."""
        with tiny_numbers_flushed():
            return cohort_gradient(
                self.model,
                self.objective,
                batches_of(self.histories_at_once),
                self.id_mask(round_number),
                public=self.objective.public(self.model, self.settings.run.seed, round_number),
                clip_norm=self.settings.federation.clip_norm,
                released=self.released,
            )

    @cached_property
    def neighbours(self) -> Tensor:
        """The items of most similar text of each item, [items, neighbours]."""
        return text_neighbours(self.model.text)

    @cached_property
    def objective(self) -> Objective:
        """The loss of pre-training."""
        return build_objective(self.settings.pretraining)

    @property
    def histories_at_once(self) -> int:
        """How many users' histories are computed together: what fits the memory bound, by the size of their scores."""
        scores = 4 * self.settings.pretraining.length * len(self.model.text) * _COPIES
        return max(1, min(HISTORIES_AT_ONCE, room(self.settings.run.memory_gb, self.device) // scores))

    def meta_gradient(self, batches_of: BatchesOf, users: int, round_number: int) -> MetaGradient:
        """Return the meta-gradient of a cohort, in as many parts as memory wants.

        Args:
            batches_of: The cohort in batches of at most so many users; called again where memory ran out.
            users: Users of the cohort; so few that measuring would cost more than computing are not measured.
            round_number: Addresses the draws that all nodes share.

        Raises:
            NodeError: Memory does not even do for one user.
        """
        size = max(users, 1) if users <= _PROBES[0] else self.users_at_once
        while True:
            try:
                return self._cohort(batches_of(size), round_number)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                if size == 1:
                    raise NodeError("memory ran out for a single user; free some, or take a smaller model") from error
            size = self._most_users = size // 2
            logger.warning("memory ran out; going on with %d users at a time", size)

    @property
    def users_at_once(self) -> int:
        """How many users are computed together within the memory bound, found by trying few of them."""
        return min(self._most_users, self._users_in_bound)

    @cached_property
    def _users_in_bound(self) -> int:
        try:
            bytes_a_user, fixed = self._measured_memory
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            logger.warning("memory ran out for %d users; going on with one at a time", _PROBES[1])
            return 1
        left = room(self.settings.run.memory_gb, self.device)
        users = int((left - fixed) / bytes_a_user)
        if users < 1:
            needed = fixed + bytes_a_user
            raise NodeError(
                f"one user takes {needed / GB:.2f} GB, and of the memory {left / GB:.2f} GB are left; wanted a larger "
                f"run.memory-gb, got {self.settings.run.memory_gb:g} (0: what is free)"
            )
        if users < MOST_USERS_AT_ONCE:
            logger.info("%d users at a time, %.1f MB each, fit the memory", users, bytes_a_user / 1e6)
        return users

    @cached_property
    def _measured_memory(self) -> tuple[float, float]:
        """Return the bytes that each user takes, and those that any number does."""
        self._cohort([self._probe(1)], 1)  # what is computed once and kept is no user's
        few, more = (peak_bytes(partial(self._cohort, [self._probe(users)], 1), self.device) for users in _PROBES)
        each = max((more - few) / (_PROBES[1] - _PROBES[0]), 1.0)
        return each, max(few - _PROBES[0] * each, 0.0)

    def _cohort(self, batches: Iterable[Batch], round_number: int) -> MetaGradient:
        fast = self.settings.run.precision == "bfloat16"
        with tiny_numbers_flushed(), torch.autocast(self.device.type, torch.bfloat16, enabled=fast):
            return cohort_meta_gradient(
                self.model,
                batches,
                self.id_mask(round_number),
                clip_norm=self.settings.federation.clip_norm,
                released=self.released,
                candidates=self.candidates(round_number),
            )

    def _probe(self, users: int) -> Batch:
        """Return tasks as large as they come, of items that mean nothing."""
        sizes, items, columns = self.settings.tasks, len(self.model.text), self.settings.data.attribute_names
        rng = np.random.default_rng(0)
        drawn = torch.from_numpy(rng.integers(items, size=(users, sizes.support + sizes.query)))
        support, query = drawn[:, : sizes.support], drawn[:, sizes.support :]
        dropout = torch.ones(users, sizes.support + 1, self.settings.model.width) if sizes.feature_dropout else None
        tasks = TaskBatch(
            support=support,
            support_mask=torch.ones_like(support, dtype=torch.bool),
            feedback=torch.zeros_like(support),
            query=query,
            query_mask=torch.ones_like(query, dtype=torch.bool),
            known=support,
            in_time=torch.zeros(users, dtype=torch.bool),
            dropout=dropout,
            query_feedback=torch.ones_like(query),
            attributes=torch.ones(users, len(columns), dtype=torch.int64) if columns else None,
        )
        return tasks.to(self.device), torch.ones(users, device=self.device)
