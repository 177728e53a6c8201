"""The nodes of a federation as the server knows them, and whom it asks in a round."""

import hashlib
import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from metarec_shared.dataset import RatingScale
from metarec_shared.errors import FederationError
from metarec_shared.exchange import Enrollment
from metarec_shared.randomness import generator


@dataclass(frozen=True, slots=True, kw_only=True)
class Cohort:
    """Who takes part in a round.

    Attributes:
        nodes: Flower's ids of the sampled nodes, uint64 [nodes].
        sampling_rate: Chance of each of their users in the role to take part.
    """

    nodes: NDArray[np.uint64]
    sampling_rate: float


@dataclass(frozen=True, kw_only=True)
class Members:
    """Nodes that hold users in one role, in the order of their names.

    Attributes:
        nodes: Flower's ids, uint64 [nodes].
        users: Users in the role on each, int64 [nodes].
    """

    nodes: NDArray[np.uint64]
    users: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.nodes)

    @cached_property
    def total(self) -> int:
        """Users over all nodes."""
        return int(self.users.sum())

    def sample(self, users: int, draw: np.random.Generator) -> Cohort:
        """Sample nodes so that about ``users`` users take part.

        At most ``users`` nodes are asked, uniformly without replacement; each of their users takes part with the
        same probability, so that every user in the role is equally likely to. The cost is that of the sample.
        """
        asked = min(len(self), users)
        chosen = np.arange(asked) if asked == len(self) else np.sort(draw.choice(len(self), asked, replace=False))
        expected = self.total * asked / len(self) if asked else 0.0
        rate = 1.0 if math.isclose(expected, users) or expected < users else users / expected
        return Cohort(nodes=self.nodes[chosen], sampling_rate=rate)


@dataclass(frozen=True)
class Roster:
    """Nodes in the order of their names, which unlike Flower's ids is the same in every run.

    Attributes:
        names: Names of the nodes that hold meta-training users, strings [training nodes].
        training: These nodes.
        validation: Nodes that hold validation users.
        item_counts: Meta-training users who interacted with each item, int64 [items].
        rating_scale: Scale of the ratings; None where there are none.
    """

    names: NDArray[np.str_]
    training: Members
    validation: Members
    item_counts: NDArray[np.int64]
    rating_scale: RatingScale | None

    @classmethod
    def of(cls, enrollments: list[Enrollment]) -> "Roster":
        """Sum up the answers of all nodes.

        Raises:
            FederationError: No node can meta-train, or two nodes bear one name.
        """
        names = np.concatenate([answer.names for answer in enrollments])
        order = np.argsort(names, kind="stable")
        names = names[order]
        if (names[1:] == names[:-1]).any():
            raise FederationError("two nodes bear the same name; give each site a name of its own")
        ids, training, validation = (
            np.concatenate([getattr(answer, column) for answer in enrollments])[order]
            for column in ("node_ids", "training_users", "validation_users")
        )
        if not training.any():
            raise FederationError(
                f"none of the {len(names)} nodes has a meta-training user with at least two interactions"
            )
        return cls(
            names=names[training > 0],
            training=Members(nodes=ids[training > 0], users=training[training > 0]),
            validation=Members(nodes=ids[validation > 0], users=validation[validation > 0]),
            item_counts=np.sum([answer.item_counts for answer in enrollments], axis=0),
            rating_scale=RatingScale.widest(answer.rating_scale for answer in enrollments),
        )

    @cached_property
    def fingerprint(self) -> str:
        """Hash of who enrolled with how many users and interactions: another data set has another one."""
        digest = hashlib.blake2b(self.item_counts.tobytes(), digest_size=16)
        for column in (self.names.astype("U"), self.training.users):
            digest.update(f"{column.dtype} {len(column)}".encode())
            digest.update(np.ascontiguousarray(column).data)
        digest.update(repr((len(self.validation), self.rating_scale)).encode())
        return digest.hexdigest()

    def cohort(self, seed: int, round_number: int, users: int) -> Cohort:
        """Sample the nodes of a round."""
        return self.training.sample(users, generator(seed, "cohort", round_number))

    def judges(self, seed: int, users: int) -> Cohort:
        """Return the nodes whose validation users select: all of them, or of many the same sample every time."""
        return self.validation.sample(users, generator(seed, "judges"))

    def log_popularity(self) -> NDArray[np.float32]:
        """Return the logarithm of each item's smoothed share of interactions, where the score bias starts."""
        counts = self.item_counts.astype(np.float64) + 1.0
        return np.asarray(np.log(counts / counts.sum()), dtype=np.float32)
