"""A data set made of another one's interactions, on disk, so that our own model's federation can train on it."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from metarec_shared.dataset import Dataset
from metarec_shared.interactions import Interactions
from metarec_shared.packed import write_packed
from metarec_shared.randomness import user_keys
from metarec_shared.settings import DataSettings, Settings
from metarec_shared.split import Role, roles


def settings_with_data(
    settings: Settings, folder: Path, dataset: Dataset, interactions: Interactions, wanted: NDArray[np.int8]
) -> Settings:
    """Pack a data set in which every user has the role that a protocol gives him; return settings that train on it.

    Args:
        settings: Of the run; its seed keys the roles.
        folder: Where the data set goes; one that is there already is taken to be this one.
        dataset: Catalogue and rating scale.
        interactions: Histories over that catalogue.
        wanted: Role of each user, int8 [users].
    """
    if not folder.exists():
        named = replace(
            interactions, user_ids=ids_with_roles(interactions.user_ids.tolist(), wanted, settings.run.seed)
        )
        write_packed(replace(dataset, interactions=named, problems=()), folder)
    kept = settings.data
    data = DataSettings(path=str(folder), on_bad_rows=kept.on_bad_rows, item_vectors=kept.item_vectors)
    return replace(settings, data=data)


def ids_with_roles(user_ids: Sequence[str], wanted: NDArray[np.int8], seed: int) -> NDArray[np.str_]:
    """Return an id for each user, the user's own with a number behind it, that the keyed hash puts into a role.

    A run decides roles by a hash of ids alone, at the node. A protocol that wants other roles than the hash of the real
    ids gives (leave-one-out meta-trains on nearly everybody) therefore renames its copy of the users: of the names
    ``id~0, id~1, ...`` the first that hashes to the wanted role, so what a user is drawn for still depends on nobody
    else.
    """
    names = np.array([f"{user}~0" for user in user_ids], dtype=object)
    left, number = np.arange(len(names)), 0
    while len(left):
        found = roles(user_keys(seed, (str(name) for name in names[left])))
        left = left[found != wanted[left]]
        number += 1
        for user in left:
            names[user] = f"{user_ids[user]}~{number}"
    return names.astype(np.str_)


def role_shares(keys: NDArray[np.uint64], validation: float) -> NDArray[np.int8]:
    """Give a share of users the validation role and all others the meta-training role, by their keys, int8 [users]."""
    low = keys / 2.0**64 < validation
    return np.where(low, np.int8(Role.VALIDATION), np.int8(Role.TRAINING))
