"""Negatives: items that stand in for what a user did not choose, drawn so that they tell nothing about the test.

A training negative may be any item outside the user's own TRAINING items, the held-out ones included: a learner cannot
know those. Leaving the test item out of the training negatives, as the code of several published papers does, marks it
by its absence, and a scorer that merely counts how often an item was drawn then finds it (:func:`rarely_drawn`).

References:
    Rendle, Freudenthaler, Gantner, Schmidt-Thieme, "BPR", UAI 2009, section 4.2 (uniform draws from unobserved items).
    He et al., "Neural collaborative filtering", WWW 2017, section 4.1 (99 test negatives a user).
"""

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from metarec_shared.interactions import Interactions
from metarec_shared.randomness import generator, uniform_table


def training_negatives(
    train: Interactions,
    users: NDArray[np.int64],
    keys: NDArray[np.uint64],
    items: int,
    count: int,
    address: tuple[int, int],
) -> NDArray[np.int64]:
    """Draw uniform negatives of users, with replacement, from all items but each user's own in ``train``.

    Every method that samples negatives gets them from here. A user's draws depend on nobody else.

    Args:
        train: Training histories and nothing else: what is excluded is what stands here.
        users: Positions in it, each with at least one item outside his history.
        keys: The users' random keys, [users].
        items: Size of the catalogue.
        count: Negatives a user.
        address: The run's seed, and which draw it is.

    Returns:
        Catalogue positions, int64 [users, count].

    Raises:
        ValueError: A user has the whole catalogue.
    """
    lengths = train.offsets[users + 1] - train.offsets[users]
    if (lengths >= items).any():
        raise ValueError("a user has every item of the catalogue: there is no negative to draw")
    draws = uniform_table(keys, count, address[0], "training negatives", address[1])
    ranks = (draws * (items - lengths)[:, None]).astype(np.int64)
    own = [np.sort(train.history(int(user))) for user in users]
    return np.stack([_outside(rank, history) for rank, history in zip(ranks, own, strict=True)])


def never_touched(
    history: NDArray[np.int64], items: int, count: int, seed: int, key: int, use: str
) -> NDArray[np.int64]:
    """Draw distinct items outside a user's whole history: what a held-out item is ranked against.

    Args:
        history: Every item that the user ever touched and that may be known here.
        items: Size of the catalogue.
        count: Items drawn; all there are, where those are fewer.
        seed: The run's seed.
        key: The user's key.
        use: What they are drawn for.

    Returns:
        Catalogue positions, int64 [count] or fewer.
    """
    left = items - len(history)
    ranks = generator(seed, "negatives", use, key).permutation(left)[:count]
    return _outside(ranks, np.sort(history))


def rarely_drawn(
    train: Interactions, users: NDArray[np.int64], keys: NDArray[np.uint64], items: int, rounds: int, seed: int
) -> Float[Tensor, "users items"]:
    """Return minus how often each item was drawn as a negative of each user: the scorer of the leak probe.

    It learns nothing, so it must rank held-out items as chance does. Draws that avoid them put them on top.

    Args:
        train: Training histories.
        users: Positions in it.
        keys: The users' random keys, [users].
        items: Size of the catalogue.
        rounds: Draws of as many negatives as there are items.
        seed: The run's seed.
    """
    counts = torch.zeros(len(users), items)
    for step in range(rounds):
        drawn = torch.from_numpy(training_negatives(train, users, keys, items, items, (seed, step)))
        counts.scatter_add_(1, drawn, torch.ones(drawn.shape))
    return -counts


def _outside(ranks: NDArray[np.int64], history: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the items at ``ranks`` among those that are not in the sorted ``history``, in catalogue order.

    The ``r``-th item outside is ``r`` plus the number of history items below it: those with ``h_j - j <= r``.
    """
    return ranks + np.searchsorted(history - np.arange(len(history)), ranks, side="right")
