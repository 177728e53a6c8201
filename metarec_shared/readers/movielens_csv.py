"""MovieLens since 2014 (latest-small, latest, 20M, 25M, 32M): ``ratings.csv`` and ``movies.csv``."""

import dataclasses
from pathlib import Path

import pyarrow.compute as pc

from metarec_shared.dataset import RatingScale
from metarec_shared.readers.delimited import CSV, read_delimited
from metarec_shared.readers.layout import TableLayout
from metarec_shared.readers.table import Table
from metarec_shared.settings import DataSettings


def _read_interactions(path: Path, settings: DataSettings) -> Table:
    table = read_delimited(path, CSV, settings)
    required = {"user_id": "userId", "item_id": "movieId", "rating": "rating"}
    return table.select(required, {"timestamp": "timestamp"})


def _read_items(path: Path, settings: DataSettings) -> Table:
    table = read_delimited(path, CSV, settings)
    table = table.select({"item_id": "movieId", "title": "title", "genres": "genres"})
    genres = pc.replace_substring(table.columns["genres"], "(no genres listed)", "")
    return dataclasses.replace(table, columns={**table.columns, "genres": genres})


LAYOUT = TableLayout(
    name="movielens-csv",
    interaction_files=("ratings.csv",),
    item_files=("movies.csv",),
    read_interactions=_read_interactions,
    read_items=_read_items,
    scale=RatingScale(low=0.5, high=5.0),
)
