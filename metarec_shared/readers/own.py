"""MetaRec's own layout: ``interactions``, ``items`` and by choice ``users``, each as CSV, compressed CSV or Parquet.

Interactions have columns ``user_id`` and ``item_id``, and may have ``rating`` and ``timestamp``. Items have
``item_id`` and ``title``; every further column of text or whole numbers becomes part of an item's text. Users have
``user_id``, and every further column of text or whole numbers is an attribute of theirs.
"""

from pathlib import Path

from metarec_shared.readers.delimited import CSV, read_delimited
from metarec_shared.readers.layout import TableLayout
from metarec_shared.readers.parquet import read_parquet
from metarec_shared.readers.table import Table, holds_text
from metarec_shared.settings import DataSettings

_ENDINGS = ("csv", "csv.gz", "parquet")


def _read_interactions(path: Path, settings: DataSettings) -> Table:
    table = _read(path, settings)
    return table.select({"user_id": "user_id", "item_id": "item_id"}, {"rating": "rating", "timestamp": "timestamp"})


def _read_items(path: Path, settings: DataSettings) -> Table:
    table = _read(path, settings)
    further = {name: name for name, column in table.columns.items() if holds_text(column.type)}
    return table.select({"item_id": "item_id", "title": "title"}, further)


def _read_users(path: Path, settings: DataSettings) -> Table:
    table = _read(path, settings)
    attributes = {name: name for name, column in table.columns.items() if holds_text(column.type)}
    return table.select({"user_id": "user_id"}, attributes)


def _read(path: Path, settings: DataSettings) -> Table:
    return read_parquet(path) if path.suffix == ".parquet" else read_delimited(path, CSV, settings)


LAYOUT = TableLayout(
    name="own",
    interaction_files=tuple(f"interactions.{ending}" for ending in _ENDINGS),
    item_files=tuple(f"items.{ending}" for ending in _ENDINGS),
    user_files=tuple(f"users.{ending}" for ending in _ENDINGS),
    read_interactions=_read_interactions,
    read_items=_read_items,
    read_users=_read_users,
)
