"""How the users of one data set are spread over simulated nodes."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from metarec_shared.errors import SettingsError
from metarec_shared.randomness import generator

SKEW = 1.0
"""Exponent of the node sizes of a skewed partition: the i-th largest node holds a share proportional to 1 / i."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Partition:
    """Users by node: node ``i`` holds ``users[offsets[i]:offsets[i + 1]]``."""

    users: NDArray[np.int64]
    offsets: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def of(self, node: int) -> NDArray[np.int64]:
        """Return the users of one node, positions in the population."""
        return self.users[self.offsets[node] : self.offsets[node + 1]]

    def of_all(self, nodes: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the users of several nodes, one node after the other, and where each node's begin."""
        lengths = self.offsets[nodes + 1] - self.offsets[nodes]
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        return self.users[np.repeat(self.offsets[nodes] - offsets[:-1], lengths) + np.arange(offsets[-1])], offsets


def partition_users(users: int, nodes: int, kind: Literal["even", "skewed"], seed: int) -> Partition:
    """Spread ``users`` over ``nodes``; with as many nodes as users, node ``i`` holds user ``i``.

    Args:
        users: Number of users.
        nodes: Number of nodes, 1..users.
        kind: ``even``: sizes differ by one at most; ``skewed``: sizes fall as 1 / rank, every node has a user.
        seed: Addresses the shuffle.

    Raises:
        SettingsError: There are more nodes than users, or none.
    """
    if not 1 <= nodes <= users:
        raise SettingsError(f"federation.nodes must be between 1 and the {users} users of the data, got {nodes}")
    if nodes == users:
        return Partition(users=np.arange(users), offsets=np.arange(users + 1))
    shuffled = generator(seed, "partition").permutation(users)
    shares = np.ones(nodes) if kind == "even" else 1.0 / np.arange(1, nodes + 1) ** SKEW
    bounds = np.rint(np.cumsum(shares) / shares.sum() * (users - nodes)).astype(np.int64) + np.arange(1, nodes + 1)
    return Partition(users=shuffled, offsets=np.concatenate([[0], bounds]))
