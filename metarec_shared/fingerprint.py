"""Recognize a data set: the same users, items and interactions in the same order have the same fingerprint."""

import hashlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metarec_shared.dataset import Dataset

_SEPARATOR = "\x1f"
_CHUNK = 1 << 16  # users, or numbers of a column, hashed at once


def data_fingerprint(dataset: Dataset) -> str:
    """Return a hash of the catalogue and of all interactions; whoever knows it learns nothing about one user.

    It depends neither on the integers' width nor on whether the columns are memory maps.
    """
    histories = dataset.interactions
    digest = hashlib.blake2b(dataset.catalogue.fingerprint.encode(), digest_size=16)
    digest.update(_SEPARATOR.join(dataset.catalogue.titles).encode())
    for user_ids in _chunks(histories.user_ids):
        digest.update("".join(_SEPARATOR + user_id for user_id in user_ids.tolist()).encode())
    for column, kind in ((histories.offsets, "<i8"), (histories.items, "<i8"), (histories.ratings, "<f4")):
        for values in _chunks(column):
            digest.update(np.ascontiguousarray(values, dtype=kind).data)
    return digest.hexdigest()


def _chunks(column: NDArray[Any]) -> Iterator[NDArray[Any]]:
    for start in range(0, len(column), _CHUNK):
        yield column[start : start + _CHUNK]
