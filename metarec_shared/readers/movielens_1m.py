"""MovieLens 1M: ``ratings.dat`` and ``movies.dat``, by choice ``users.dat``, fields separated by ``::``.

Attributes of users are ``gender``, ``age`` (the lowest year of its bracket), ``occupation`` and ``zip``, of which the
first digit is read, a region: a whole one is as good as a name.
"""

import dataclasses
from pathlib import Path

import pyarrow.compute as pc

from metarec_shared.dataset import RatingScale
from metarec_shared.readers.delimited import Dialect, read_delimited
from metarec_shared.readers.layout import TableLayout
from metarec_shared.readers.table import Table
from metarec_shared.settings import DataSettings

_DIALECT = Dialect(delimiter="::", encoding="latin-1")


def _read_interactions(path: Path, settings: DataSettings) -> Table:
    return read_delimited(path, _DIALECT, settings, names=("user_id", "item_id", "rating", "timestamp"))


def _read_items(path: Path, settings: DataSettings) -> Table:
    return read_delimited(path, _DIALECT, settings, names=("item_id", "title", "genres"))


def _read_users(path: Path, settings: DataSettings) -> Table:
    table = read_delimited(path, _DIALECT, settings, names=("user_id", "gender", "age", "occupation", "zip"))
    region = pc.utf8_slice_codeunits(table.text("zip"), 0, 1)
    return dataclasses.replace(table, columns={**table.columns, "zip": region})


LAYOUT = TableLayout(
    name="movielens-1m",
    interaction_files=("ratings.dat",),
    item_files=("movies.dat",),
    user_files=("users.dat",),
    read_interactions=_read_interactions,
    read_items=_read_items,
    read_users=_read_users,
    scale=RatingScale(low=1.0, high=5.0),
)
