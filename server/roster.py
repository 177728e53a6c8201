"""The nodes of a federation as the server knows them, and whom it asks in a round."""

import hashlib
import math
from collections.abc import Collection
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from metarec_shared.dataset import RatingScale
from metarec_shared.errors import FederationError
from metarec_shared.exchange import Enrollment
from metarec_shared.popularity import log_popularity
from metarec_shared.randomness import generator
from server.privacy import FederationPrivacy


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

    def all_at(self, rate: float) -> Cohort:
        """Return all nodes, whose users take part with a chance that is part of their terms of privacy."""
        return Cohort(nodes=self.nodes, sampling_rate=rate)

    def in_turn(self, count: int, seed: int, round_number: int) -> Cohort:
        """Return the next ``count`` nodes of a shuffled list that is gone through again and again.

        So nobody is asked once more than anybody else has to be: over ``rounds`` at most ceil(rounds * count / nodes)
        times.
        """
        places = np.arange((round_number - 1) * count, round_number * count)
        passes = places // len(self)
        chosen = np.concatenate(
            [
                generator(seed, "pass", int(one)).permutation(len(self))[places[passes == one] % len(self)]
                for one in np.unique(passes)
            ]
        )
        return Cohort(nodes=self.nodes[np.unique(chosen)], sampling_rate=1.0)

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
        item_counts: Meta-training users who interacted with each item, float64 [items].
        rating_scale: Scale of the ratings; None where there are none.
        noise: Noise multiplier in the terms of each node with meta-training users, 0 without terms, float64 [training
            nodes].
        rating_mean: Mean of all meta-training users' ratings; None where nodes do not say it.
        privacy: What the nodes do for their users' privacy; None: nothing.
    """

    names: NDArray[np.str_]
    training: Members
    validation: Members
    item_counts: NDArray[np.float64]
    rating_scale: RatingScale | None
    noise: NDArray[np.float64]
    rating_mean: float | None = None
    privacy: FederationPrivacy | None = None

    @classmethod
    def of(cls, enrollments: list[Enrollment], privacy: FederationPrivacy | None = None) -> "Roster":
        """Sum up the answers of all nodes.

        Args:
            enrollments: Their answers.
            privacy: What they declared.

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
        noise = np.concatenate([np.full(len(answer.node_ids), _noise(answer)) for answer in enrollments])[order]
        if not training.any():
            raise FederationError(
                f"none of the {len(names)} nodes has a meta-training user with at least two interactions"
            )
        return cls(
            names=names[training > 0],
            training=Members(nodes=ids[training > 0], users=training[training > 0]),
            validation=Members(nodes=ids[validation > 0], users=validation[validation > 0]),
            item_counts=_counts(enrollments, privacy),
            rating_scale=RatingScale.widest(answer.rating_scale for answer in enrollments),
            noise=noise[training > 0],
            rating_mean=_rating_mean(enrollments),
            privacy=privacy,
        )

    def without(self, nodes: Collection[int]) -> "Roster":
        """Return the roster without some nodes, by Flower's ids."""
        gone = np.array(sorted(nodes), dtype=np.uint64)
        left = ~np.isin(self.training.nodes, gone)
        return replace(
            self,
            names=self.names[left],
            noise=self.noise[left],
            training=Members(nodes=self.training.nodes[left], users=self.training.users[left]),
        )

    @property
    def size(self) -> int:
        """How many nodes hold users in either role."""
        return len(np.union1d(self.training.nodes, self.validation.nodes))

    def place_of(self, node: int) -> int | None:
        """Return the place among ``training`` of a node by Flower's id; None where it is not there."""
        places = np.flatnonzero(self.training.nodes == np.uint64(node))
        return int(places[0]) if len(places) else None

    @cached_property
    def fingerprint(self) -> str:
        """Hash of who enrolled with how many users and interactions: another data set has another one."""
        counts = b"" if self.privacy is not None else self.item_counts.tobytes()  # noise is another every time
        digest = hashlib.blake2b(counts, digest_size=16)
        for column in (self.names.astype("U"), self.training.users):
            digest.update(f"{column.dtype} {len(column)}".encode())
            digest.update(np.ascontiguousarray(column).data)
        digest.update(repr((len(self.validation), self.rating_scale)).encode())
        return digest.hexdigest()

    def cohort(self, seed: int, round_number: int, users: int) -> Cohort:
        """Sample the nodes of a round.

        Under terms of privacy all nodes are asked, and their own coins decide, or each device in turn: the server's
        choice of nodes is no secret and amplifies nothing.
        """
        if self.privacy is not None and self.privacy.terms.mode == "local":
            return self.training.in_turn(min(users, len(self.training)), seed, round_number)
        if self.privacy is not None:
            return self.training.all_at(self.privacy.terms.sampling_rate)
        return self.training.sample(users, generator(seed, "cohort", round_number))

    def judges(self, seed: int, users: int) -> Cohort:
        """Return the nodes whose validation users select: all of them, or of many the same sample every time."""
        return self.validation.sample(users, generator(seed, "judges"))

    def log_popularity(self) -> NDArray[np.float32]:
        """Return the logarithm of each item's smoothed share of interactions, where the score bias starts."""
        return log_popularity(
            self.item_counts, 1.0 if self.privacy is None else self.privacy.smoothing(len(self.training))
        )


def _noise(answer: Enrollment) -> float:
    return 0.0 if answer.terms is None else answer.terms.noise_multiplier


def _rating_mean(enrollments: list[Enrollment]) -> float | None:
    count = sum(answer.rating_count for answer in enrollments)
    return math.fsum(answer.rating_sum for answer in enrollments) / count if count else None


def _counts(enrollments: list[Enrollment], privacy: FederationPrivacy | None) -> NDArray[np.float64]:
    counts: NDArray[np.float64] = np.sum([answer.item_counts for answer in enrollments], axis=0)
    if privacy is None:
        return counts
    return privacy.counts_noised(counts, sum(int(answer.training_users.sum()) for answer in enrollments))
