"""Tasks drawn in more ways than a random cut of a history, so that little support says more: reorder, substitute.

Masking is the support dropout of ``tasks``, cropping its tasks in time order. Every draw is addressed by the user's key
and the round, as there.

References:
    Xie et al. (2022), Contrastive learning for sequential recommendation (CL4SRec), section 3.3: item crop, mask and
    reorder. Liu et al. (2021), Contrastive self-supervised sequential recommendation with robust augmentation
    (CoSeRec), section 3.2: substitute by a correlated item; here by one of similar text.
"""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from metarec_shared.randomness import uniform_table

NEIGHBOURS = 10
"""Items of most similar text of which a substitute is drawn."""

_ITEMS_AT_ONCE = 1024


class Coins(NamedTuple):
    """A toss a user and further draws.

    Attributes:
        heads: Whether it happens, [users].
        draws: Uniform draws in [0, 1) that say how, [users, count].
    """

    heads: NDArray[np.bool_]
    draws: NDArray[np.float64]


def coins(keys: NDArray[np.uint64], chance: float, name: str, address: tuple[int, int], count: int = 0) -> Coins:
    """Toss a coin a user that comes up with ``chance``, and draw 1 + ``count`` numbers beside it.

    Args:
        keys: The users' random keys.
        chance: Of heads.
        name: What is decided.
        address: The run's seed, and the round.
        count: Further draws.
    """
    seed, round_number = address
    table = uniform_table(keys, 2 + count, seed, name, round_number)
    return Coins(table[:, 0] < chance, table[:, 1:])


def time_ranks(rows: NDArray[np.int64], real: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return the rank in time of each support item within its set, 1 for the newest, 0 for padding.

    Args:
        rows: Where in the histories the items stand, which is their order in time, [users, support].
        real: Which are no padding.
    """
    newest_first = np.argsort(np.where(real, -rows, 1), axis=1, kind="stable")
    ranks = np.empty_like(newest_first)
    np.put_along_axis(ranks, newest_first, np.arange(1, rows.shape[1] + 1)[None], axis=1)
    return np.where(real, ranks, 0)


def reordered(ranks: NDArray[np.int64], sizes: NDArray[np.int64], toss: Coins) -> NDArray[np.int64]:
    """Return ranks in time of which, where the coin came up, a stretch of half the support set is shuffled.

    Args:
        ranks: As ``time_ranks`` returns them, [users, support].
        sizes: Of the support sets.
        toss: Who; where the stretch begins; a number an item.
    """
    half = (sizes + 1) // 2
    first = 1 + (toss.draws[:, 0] * (sizes - half + 1)).astype(np.int64)
    inside = (ranks >= first[:, None]) & (ranks < (first + half)[:, None]) & toss.heads[:, None]
    shuffled = first[:, None] + toss.draws[:, 1 : 1 + ranks.shape[1]] * half[:, None]
    place = np.where(inside, shuffled, np.where(ranks > 0, ranks, ranks.shape[1] + 1.0))
    new = np.argsort(np.argsort(place, axis=1, kind="stable"), axis=1, kind="stable") + 1
    return np.where(ranks > 0, new, 0)


def text_neighbours(text: Float[Tensor, "items text"], count: int = NEIGHBOURS) -> Int[Tensor, "items count"]:
    """Return the ``count`` items of most similar text of each item, most similar first, never itself.

    Similarity is the cosine; a catalogue of fewer items gives as many as there are.
    """
    directions = torch.nn.functional.normalize(text, dim=-1)
    parts = []
    for start in range(0, len(text), _ITEMS_AT_ONCE):
        similar = directions[start : start + _ITEMS_AT_ONCE] @ directions.T
        rows = torch.arange(len(similar), device=text.device)
        similar[rows, start + rows] = -torch.inf
        parts.append(similar.topk(min(count, len(text) - 1), dim=1).indices)
    return torch.cat(parts)


def substitutes(
    support: Int[Tensor, "users support"],
    taken: Int[Tensor, "users taken"],
    neighbours: Int[Tensor, "items count"],
    draws: Float[Tensor, "users draws"],
    chance: float,
) -> Int[Tensor, "users support"]:
    """Return support sets in which items are replaced, with ``chance``, by one of their neighbours.

    An item stays where the neighbour that was drawn is ``taken``: it would be in the set already, or in the query set.

    Args:
        support: Catalogue positions.
        taken: What may not come in: support and query items of each user; padding is -1.
        neighbours: As ``text_neighbours`` returns them.
        draws: Two uniform draws in [0, 1) a support item, one behind the other: whether, and which.
        chance: Of an item to be replaced.
    """
    whether, which = draws[:, 0::2], (draws[:, 1::2] * neighbours.shape[1]).long()
    other = neighbours[support].gather(2, which[:, :, None])[:, :, 0]
    free = ~(other[:, :, None] == taken[:, None, :]).any(dim=2)
    twice = (other[:, :, None] == other[:, None, :]).tril(diagonal=-1).any(dim=2)
    return torch.where((whether < chance) & free & ~twice, other, support)
