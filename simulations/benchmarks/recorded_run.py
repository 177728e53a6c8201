"""A private federation of one site, round by round as its server sees it: parameters sent, replies received."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from flwr.app import ConfigRecord
from numpy.typing import NDArray

from client.data_source import load_learner
from client.learner import Learner
from client.node import Nodes
from client.privacy.guard import SimulatedGuard
from metarec_shared import wire
from metarec_shared.exchange import Parameters
from metarec_shared.meta_gradient import cohort_meta_gradient
from metarec_shared.privacy.terms import Terms, run_terms
from metarec_shared.settings import Settings
from metarec_shared.sources import load_item_features
from metarec_shared.tasks import TaskBatch
from server.delivery import deliver
from server.federation import enroll_nodes, initial_parameters
from server.fedmaml import FedMAML
from server.outer_optimizer import OuterOptimizer
from simulations.benchmarks.histories import Histories
from simulations.grid import InProcessGrid

USERS_AT_ONCE = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """What the server knows of a round: its parameters and the one reply."""

    number: int
    parameters: Parameters
    reply: Parameters


class Run:
    """A federation of one site, as the server sees it.

    Args:
        settings: With privacy.
        histories: The site's users.

    Attributes:
        settings: With privacy.
        population: The site's users.
        terms: The site's terms of privacy.
        learner: The model.
        item_counts: The item counts that the site sent.
        final: The parameters that the run ends with; set when its rounds are over.
    """

    def __init__(self, settings: Settings, histories: Histories) -> None:
        self.settings, self.population = settings, histories.population
        terms = run_terms(settings, len(histories.members))
        assert terms is not None
        self.terms: Terms = terms
        self.learner: Learner = load_learner(settings)
        site = Nodes(
            node_ids=np.array([1], dtype=np.uint64),
            names=("site",),
            population=self.population,
            users=np.arange(len(self.population.interactions)),
            offsets=np.array([0, len(self.population.interactions)]),
            guard=SimulatedGuard(terms, settings.run.seed),
        )
        self._grid = InProcessGrid(self.learner, 1, lambda node_ids: site)
        public = load_item_features(settings)
        roster = enroll_nodes(self._grid, settings, public)
        self.item_counts, self.final = roster.item_counts, initial_parameters(settings, public, roster)
        self._optimizer = OuterOptimizer(settings.outer, self.final, settings.federation.rounds)
        self._strategy = FedMAML(settings, roster, self._optimizer, public.fingerprint)

    def rounds(self) -> Iterator[Round]:
        """Run the rounds, and show each before its outer step."""
        for number in range(1, self.settings.federation.rounds + 1):
            before = {name: value.clone() for name, value in self._optimizer.parameters.items()}
            arrays = self._strategy.arrays(number - 1)
            messages = self._strategy.configure_train(number, arrays, ConfigRecord(), self._grid)
            replies = list(deliver(self._grid, messages, self.settings.federation.round_timeout))
            yield Round(
                number=number, parameters=before, reply=wire.unpack_meta_update(replies[0].content, before).gradients
            )
            self._strategy.aggregate_train(number, replies)
        self.final = self._optimizer.average

    def unexpected_counts(self, reference: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return the item counts that the site sent, less what those of other users lead to expect."""
        expected = self.population.item_counts(reference, len(self.item_counts)) + 1.0
        return np.asarray(self.item_counts - expected * (self.item_counts.sum() / expected.sum()))


def clipped_sum(run: Run, users: NDArray[np.int64], round_number: int) -> tuple[Parameters, NDArray[np.float64]]:
    """Return the sum of users' clipped meta-gradients at the model's parameters, and each one's norm before it."""
    batches = [(tasks, torch.ones(len(tasks))) for tasks in tasks_of(run, users, round_number)]
    found = cohort_meta_gradient(
        run.learner.model, batches, clip_norm=run.terms.clip_norm, released=run.learner.released
    )
    assert found.norms is not None
    return found.gradients, found.norms.double().numpy()


def tasks_of(run: Run, users: NDArray[np.int64], round_number: int) -> Iterator[TaskBatch]:
    """Draw the tasks that ``users`` would draw in a round, in batches."""
    settings, population = run.settings, run.population
    for start in range(0, len(users), USERS_AT_ONCE):
        part = users[start : start + USERS_AT_ONCE]
        yield population.training_tasks(
            part, round_number, settings.tasks, settings.model.width, population.rating_scale
        )
