"""Which users and items are cold, by MeLU's rule: a file of the data's folder says it, or it is made.

The file ``melu_split.json`` has ids: ``{"cold_users": [...], "cold_items": [...]}``. Without it a random fifth of the
users is cold, and the items that came last: of the years that end titles, such as "Toy Story (1995)", the latest
ones, as many as come nearest to a fifth of the items. Where fewer than nine in ten titles have a year, a random fifth.

References:
    Lee et al. (2019), MeLU: Meta-learned user preference estimator for cold-start recommendation, section 4.1.
"""

import json
import re
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from metarec_shared.dataset import Dataset
from metarec_shared.errors import DataError
from metarec_shared.randomness import keyed_hash

SPLIT_FILE = "melu_split.json"
SHARE = 0.2
_YEAR = re.compile(r"\((\d{4})\)\s*$")
_DATED = 0.9


def cold_split(dataset: Dataset, folder: str, seed: int) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return which users and which items are cold, bool [users] and bool [items].

    Args:
        dataset: Whose users and items.
        folder: Of the data; empty for generated data.
        seed: Of what is random.

    Raises:
        DataError: The file is not what it should be, or names nobody of this data.
    """
    users, items = dataset.interactions.user_ids, dataset.catalogue.item_ids
    path = Path(folder) / SPLIT_FILE
    if not folder or not path.is_file():
        everything = np.ones(len(items), dtype=np.bool_)
        cold = np.array(
            [keyed_hash(f"cold user {seed}", str(user)) / 2.0**64 < SHARE for user in users], dtype=np.bool_
        )
        return cold, latest_items(dataset.catalogue.titles, items, everything, seed)
    try:
        split = json.loads(path.read_text(encoding="utf-8"))
        cold_users, cold_items = ({str(one) for one in split[key]} for key in ("cold_users", "cold_items"))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f'{path}: wanted {{"cold_users": [ids], "cold_items": [ids]}}, got {error!r}') from error
    cold = np.array([str(user) in cold_users for user in users], dtype=np.bool_)
    late = np.array([item in cold_items for item in items], dtype=np.bool_)
    for name, marked in (("cold_users", cold), ("cold_items", late)):
        if not marked.any() or marked.all():
            raise DataError(f"{path}: {name} must name some of the data's and not all, got {marked.sum()}")
    return cold, late


def latest_items(
    titles: tuple[str, ...], item_ids: tuple[str, ...], among: NDArray[np.bool_], seed: int
) -> NDArray[np.bool_]:
    """Return about a fifth of the items of ``among``: the latest by the year in their titles, else random ones."""
    found = [_YEAR.search(title) for title in titles]
    years = np.array([int(match[1]) if match else 0 for match in found])
    if (years[among] > 0).mean() >= _DATED:
        candidates = np.unique(years[among & (years > 0)])
        shares = np.array([(years[among] >= year).mean() for year in candidates])
        return np.asarray(among & (years >= candidates[np.abs(shares - SHARE).argmin()]))
    keys = np.array([keyed_hash(f"cold item {seed}", item) for item in item_ids], dtype=np.uint64)
    return np.asarray(among & (keys / 2.0**64 < SHARE))
