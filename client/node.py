"""A node: one device with one user, or one site with many, and the users it draws for a round."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from metarec_shared.dataset import RatingScale
from metarec_shared.exchange import Enrollment, NodeSummary, TrainRequest
from metarec_shared.population import SHORTEST_HISTORY, Population
from metarec_shared.randomness import uniforms
from metarec_shared.split import Role


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """The users of one node.

    Attributes:
        node_id: Flower's id of the node.
        name: The node's stable name.
        population: Where its users' histories are; simulated nodes share one population.
        users: The node's users, int64 positions in ``population``.
    """

    node_id: int
    name: str
    population: Population
    users: NDArray[np.int64]

    def users_in(self, role: Role, shortest: int = SHORTEST_HISTORY) -> NDArray[np.int64]:
        """Return the node's users in ``role`` with a history of at least ``shortest``."""
        long_enough = self.population.interactions.lengths[self.users] >= shortest
        chosen: NDArray[np.int64] = self.users[long_enough & (self.population.roles[self.users] == role)]
        return chosen

    def draw(self, request: TrainRequest) -> NDArray[np.int64]:
        """Draw the meta-training users that take part in a round: each by a coin of its own (Poisson sampling)."""
        users = self.users_in(Role.TRAINING)
        if request.sampling_rate >= 1.0:
            return users
        population = self.population
        coins = uniforms(population.keys[users], population.seed, "sampling", request.round_number)
        drawn: NDArray[np.int64] = users[coins < request.sampling_rate]
        return drawn


def enroll(nodes: list[Node], catalogue_size: int) -> Enrollment:
    """Say who the nodes are and how many of their meta-training users interacted with each item."""
    counts = np.zeros(catalogue_size, dtype=np.int64)
    summaries, scales = [], []
    for node in nodes:
        training = node.users_in(Role.TRAINING)
        counts += node.population.item_counts(training, catalogue_size)
        scales.append(node.population.observed_scale(training))
        summaries.append(
            NodeSummary(
                node_id=node.node_id,
                name=node.name,
                training_users=len(training),
                validation_users=len(node.users_in(Role.VALIDATION)),
            )
        )
    return Enrollment(nodes=tuple(summaries), item_counts=counts, rating_scale=RatingScale.widest(scales))
