"""Interactions of users with catalogue items, as compressed sparse rows (one row a user, in time order)."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

_CHUNK = 16_384  # users gone through at once


@dataclass(frozen=True, slots=True, kw_only=True)
class Interactions:
    """Histories of users, back to back; user ``u`` owns the slice ``offsets[u]:offsets[u + 1]``.

    Eight bytes an interaction, never an object an interaction. The arrays may lie in memory or be read-only memory
    maps of files (``metarec_shared/packed.py``), whose pages the system fetches and drops as it likes; no method reads
    more of a map at once than a chunk of users, beyond what it returns.

    Attributes:
        user_ids: Private identifier of each user, strings [users].
        offsets: Where each history starts, int64 [users + 1], ``offsets[0] == 0``.
        items: Catalogue positions, integers [interactions]: int32 as readers, generator and packed folders give them.
            No item twice in one history. In time order where ``has_time``, else in file order.
        ratings: Feedback on the data's own scale, float32 [interactions]; NaN where there is none.
        has_time: Whether the order within a history is the order in time.
        attributes: What users tell of themselves, as hashes (``attributes.py``), int64 [users, columns]; 0 where a user
            does not say, None where nobody was asked.
    """

    user_ids: NDArray[np.str_]
    offsets: NDArray[np.int64]
    items: NDArray[np.integer[Any]]
    ratings: NDArray[np.float32]
    has_time: bool
    attributes: NDArray[np.int64] | None = None

    def __repr__(self) -> str:
        return f"Interactions({len(self.user_ids)} users, {len(self.items)} interactions, has_time={self.has_time})"

    def __len__(self) -> int:
        return len(self.user_ids)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """History length of each user, int64 [users]."""
        return np.diff(self.offsets)

    def history(self, user: int) -> NDArray[np.int64]:
        """Items of one user, int64 [history length]: a copy in memory, whatever ``items`` is."""
        return self.items[self.offsets[user] : self.offsets[user + 1]].astype(np.int64)

    def rating(self, user: int, item: int) -> float:
        """Return the rating that a user gave an item of his history; NaN where he gave none."""
        return float(self.ratings[self.offsets[user] + int((self.history(user) == item).argmax())])

    def take(self, users: NDArray[np.int64]) -> "Interactions":
        """Return the histories of ``users`` (positions), in that order, in memory."""
        offsets = starts(self.offsets[users + 1] - self.offsets[users])
        items = np.empty(offsets[-1], dtype=self.items.dtype)
        ratings = np.empty(offsets[-1], dtype=self.ratings.dtype)
        for start in range(0, len(users), _CHUNK):
            bounds = offsets[start : start + _CHUNK + 1]
            shifts = self.offsets[users[start : start + _CHUNK]] - bounds[:-1]
            rows = np.repeat(shifts, np.diff(bounds)) + np.arange(bounds[0], bounds[-1])
            items[bounds[0] : bounds[-1]] = self.items[rows]
            ratings[bounds[0] : bounds[-1]] = self.ratings[rows]
        return Interactions(
            user_ids=self.user_ids[users],
            offsets=offsets,
            items=items,
            ratings=ratings,
            has_time=self.has_time,
            attributes=None if self.attributes is None else self.attributes[users],
        )

    def keep_items(self, positions: NDArray[np.int64], catalogue_size: int) -> "Interactions":
        """Drop interactions with other items and renumber the rest: item ``positions[j]`` becomes ``j``, int32.

        Users stay, possibly with an empty history, so that user positions do not move.
        """
        renumbered = np.full(catalogue_size, -1, dtype=np.int32)
        renumbered[positions] = np.arange(len(positions), dtype=np.int32)
        kept = np.empty(len(self.items), dtype=np.bool_)
        lengths = np.empty(len(self), dtype=np.int64)
        for users, rows in self._chunks():
            kept[rows] = renumbered[self.items[rows]] >= 0
            bounds = self.offsets[users.start : users.stop + 1] - rows.start
            lengths[users] = np.diff(starts(kept[rows])[bounds])
        return Interactions(
            user_ids=self.user_ids,
            offsets=starts(lengths),
            items=renumbered[self.items[kept]],
            ratings=self.ratings[kept],
            has_time=self.has_time,
            attributes=self.attributes,
        )

    def _chunks(self) -> Iterator[tuple[slice, slice]]:
        """Yield a chunk of users and the interactions that are theirs, from the first user to the last."""
        for start in range(0, len(self), _CHUNK):
            stop = min(start + _CHUNK, len(self))
            yield slice(start, stop), slice(int(self.offsets[start]), int(self.offsets[stop]))


def starts(lengths: NDArray[np.integer[Any] | np.bool_]) -> NDArray[np.int64]:
    """Return where each of ``lengths`` starts when they lie back to back, and where the last ends, int64 [n + 1]."""
    offsets = np.zeros(len(lengths) + 1, dtype=np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets
