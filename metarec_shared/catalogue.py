"""The public catalogue: what items exist and the text that describes them."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Catalogue:
    """Items by position; position ``j`` is the item's index everywhere else in MetaRec.

    Attributes:
        item_ids: Public identifier of each item, unique.
        titles: Title of each item; an item without one bears its id.
        texts: Text given to the text encoder: title and any further text columns, never empty.
    """

    item_ids: tuple[str, ...]
    titles: tuple[str, ...]
    texts: tuple[str, ...] = field(repr=False)

    def __len__(self) -> int:
        return len(self.item_ids)

    @cached_property
    def index(self) -> dict[str, int]:
        """Position of each item id."""
        return {item_id: position for position, item_id in enumerate(self.item_ids)}

    @cached_property
    def positions_by_title(self) -> dict[str, list[int]]:
        """Positions of the items that bear each title (several items may share one)."""
        positions: dict[str, list[int]] = {}
        for position, title in enumerate(self.titles):
            positions.setdefault(title, []).append(position)
        return positions

    @cached_property
    def fingerprint(self) -> str:
        """Hash of ids and texts in order: equal fingerprints mean equal item indices and equal text."""
        digest = hashlib.blake2b(digest_size=16)
        for item_id, text in zip(self.item_ids, self.texts, strict=True):
            for part in (item_id, text):
                encoded = part.encode()
                digest.update(len(encoded).to_bytes(8, "big") + encoded)
        return digest.hexdigest()

    def shared_with(self, other: "Catalogue") -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return where items that have the same text stand here and in ``other``, int64 [shared] each.

        Every item here appears at most once; of several items of ``other`` with one text the last counts.
        """
        place_of = {text: place for place, text in enumerate(other.texts)}
        pairs = [(here, place_of[text]) for here, text in enumerate(self.texts) if text in place_of]
        here, there = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
        return here, there

    def take(self, positions: NDArray[np.int64] | Sequence[int]) -> "Catalogue":
        """Return the catalogue of the items at ``positions``, in that order."""
        return Catalogue(
            item_ids=tuple(self.item_ids[p] for p in positions),
            titles=tuple(self.titles[p] for p in positions),
            texts=tuple(self.texts[p] for p in positions),
        )


def joined(first: Catalogue, second: Catalogue) -> Catalogue:
    """Return the items of both, those of ``second`` behind those of ``first``."""
    return Catalogue(
        item_ids=first.item_ids + second.item_ids,
        titles=first.titles + second.titles,
        texts=first.texts + second.texts,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingItems:
    """The public catalogue and the part of it that training may know.

    Attributes:
        catalogue: All items.
        positions: Positions in ``catalogue`` of the items that are not held out, int64.
    """

    catalogue: Catalogue
    positions: NDArray[np.int64]

    @property
    def known(self) -> Catalogue:
        """The catalogue without the held-out items: the one that training and every node use."""
        if len(self.positions) == len(self.catalogue):
            return self.catalogue
        return self.catalogue.take(self.positions)

    @property
    def held_out(self) -> NDArray[np.bool_]:
        """Which items of the catalogue training does not know, bool [items]."""
        return ~np.isin(np.arange(len(self.catalogue)), self.positions)
