"""Interactions of users with catalogue items, as compressed sparse rows (one row a user, in time order)."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, kw_only=True)
class Interactions:
    """Histories of users, back to back; user ``u`` owns the slice ``offsets[u]:offsets[u + 1]``.

    Attributes:
        user_ids: Private identifier of each user, strings [users].
        offsets: Where each history starts, int64 [users + 1], ``offsets[0] == 0``.
        items: Catalogue positions, int64 [interactions]; no item twice in one history. In time order where
            ``has_time``, else in file order.
        ratings: Feedback on the data's own scale, float32 [interactions]; NaN where there is none.
        has_time: Whether the order within a history is the order in time.
    """

    user_ids: NDArray[np.str_]
    offsets: NDArray[np.int64]
    items: NDArray[np.int64]
    ratings: NDArray[np.float32]
    has_time: bool

    def __repr__(self) -> str:
        return f"Interactions({len(self.user_ids)} users, {len(self.items)} interactions, has_time={self.has_time})"

    def __len__(self) -> int:
        return len(self.user_ids)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """History length of each user, int64 [users]."""
        return np.diff(self.offsets)

    def history(self, user: int) -> NDArray[np.int64]:
        """Items of one user, int64 [history length]."""
        return self.items[self.offsets[user] : self.offsets[user + 1]]

    def take(self, users: NDArray[np.int64]) -> "Interactions":
        """Return the histories of ``users`` (positions), in that order."""
        lengths = self.lengths[users]
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        rows = np.repeat(self.offsets[users] - offsets[:-1], lengths) + np.arange(offsets[-1])
        return Interactions(
            user_ids=self.user_ids[users],
            offsets=offsets,
            items=self.items[rows],
            ratings=self.ratings[rows],
            has_time=self.has_time,
        )

    def keep_items(self, positions: NDArray[np.int64], catalogue_size: int) -> "Interactions":
        """Drop interactions with other items and renumber the rest: item ``positions[j]`` becomes ``j``.

        Users stay, possibly with an empty history, so that user positions do not move.
        """
        renumbered = np.full(catalogue_size, -1, dtype=np.int64)
        renumbered[positions] = np.arange(len(positions))
        kept = renumbered[self.items] >= 0
        counts = np.concatenate([[0], np.cumsum(kept)])
        return Interactions(
            user_ids=self.user_ids,
            offsets=counts[self.offsets].astype(np.int64),
            items=renumbered[self.items[kept]],
            ratings=self.ratings[kept],
            has_time=self.has_time,
        )
