"""The nodes of a federation as the server knows them, and whom it asks in a round."""

import hashlib
import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from metarec_shared.dataset import RatingScale
from metarec_shared.errors import FederationError
from metarec_shared.exchange import Enrollment, NodeSummary
from metarec_shared.randomness import generator


@dataclass(frozen=True, slots=True, kw_only=True)
class Cohort:
    """Who takes part in a round.

    Attributes:
        nodes: Flower's ids of the sampled nodes.
        sampling_rate: Chance of each of their meta-training users to take part.
    """

    nodes: tuple[int, ...]
    sampling_rate: float


@dataclass(frozen=True)
class Roster:
    """Nodes in the order of their names, which unlike Flower's ids is the same in every run.

    Attributes:
        training: Nodes that hold meta-training users.
        validation: Ids of nodes that hold validation users.
        item_counts: Meta-training users who interacted with each item, int64 [items].
        rating_scale: Scale of the ratings; None where there are none.
    """

    training: tuple[NodeSummary, ...]
    validation: tuple[int, ...]
    item_counts: NDArray[np.int64]
    rating_scale: RatingScale | None

    @classmethod
    def of(cls, enrollments: list[Enrollment]) -> "Roster":
        """Sum up the answers of all nodes.

        Raises:
            FederationError: No node can meta-train, or two nodes bear one name.
        """
        nodes = sorted((node for answer in enrollments for node in answer.nodes), key=lambda node: node.name)
        if len({node.name for node in nodes}) < len(nodes):
            raise FederationError("two nodes bear the same name; give each site a name of its own")
        training = tuple(node for node in nodes if node.training_users)
        if not training:
            raise FederationError(
                f"none of the {len(nodes)} nodes has a meta-training user with at least two interactions"
            )
        return cls(
            training=training,
            validation=tuple(node.node_id for node in nodes if node.validation_users),
            item_counts=np.sum([answer.item_counts for answer in enrollments], axis=0),
            rating_scale=RatingScale.widest(answer.rating_scale for answer in enrollments),
        )

    @cached_property
    def training_users(self) -> int:
        """Meta-training users over all nodes."""
        return sum(node.training_users for node in self.training)

    @cached_property
    def fingerprint(self) -> str:
        """Hash of who enrolled with how many users and interactions: another data set has another one."""
        digest = hashlib.blake2b(self.item_counts.tobytes(), digest_size=16)
        nodes = [(node.name, node.training_users) for node in self.training]
        digest.update(repr((nodes, len(self.validation), self.rating_scale)).encode())
        return digest.hexdigest()

    def cohort(self, seed: int, round_number: int, users: int) -> Cohort:
        """Sample the nodes of a round so that about ``users`` users take part.

        At most ``users`` nodes are asked, uniformly without replacement; each of their users takes part with the
        same probability, so that every meta-training user of the federation is equally likely to.
        """
        asked = min(len(self.training), users)
        order = generator(seed, "cohort", round_number).permutation(len(self.training))[:asked]
        expected = self.training_users * asked / len(self.training)
        rate = 1.0 if math.isclose(expected, users) else min(1.0, users / expected)
        return Cohort(nodes=tuple(self.training[i].node_id for i in sorted(order)), sampling_rate=rate)

    def log_popularity(self) -> NDArray[np.float32]:
        """Return the logarithm of each item's smoothed share of interactions, where the score bias starts."""
        counts = self.item_counts.astype(np.float64) + 1.0
        return np.asarray(np.log(counts / counts.sum()), dtype=np.float32)
