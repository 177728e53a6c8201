"""Which users meta-train, which validate and which are only ever tested: decided at the node, by a keyed hash.

A user's role is a threshold on the keyed hash of the seed and the user's id (design: 80 / 10 / 10), so it does not
move when data grows, and nobody has to send a list of users anywhere.
"""

from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from metarec_shared.randomness import keyed_hash

TRAINING_SHARE = 0.8
VALIDATION_SHARE = 0.1


class Role(IntEnum):
    """What a user's interactions may be used for."""

    TRAINING = 0
    VALIDATION = 1
    TEST = 2


def roles(keys: NDArray[np.uint64]) -> NDArray[np.int8]:
    """Return the Role of each user from the user's key (see ``user_keys``), int8 [users]."""
    position = keys / 2.0**64
    thresholds = np.array([TRAINING_SHARE, TRAINING_SHARE + VALIDATION_SHARE])
    return np.searchsorted(thresholds, position, side="right").astype(np.int8)


def held_out_items(seed: int, item_ids: tuple[str, ...], share: float) -> NDArray[np.bool_]:
    """Return which items are hidden from all of training, bool [items], by the same rule on public item ids."""
    if share == 0:
        return np.zeros(len(item_ids), dtype=bool)
    keys = np.array([keyed_hash(f"item {seed}", item_id) for item_id in item_ids], dtype=np.uint64)
    return np.asarray(keys / 2.0**64 < share)
