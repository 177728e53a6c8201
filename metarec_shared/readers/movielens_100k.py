"""MovieLens 100K: ``u.data`` and ``u.item``, with the genres' names in ``u.genre`` where that is present."""

import dataclasses
from pathlib import Path

import pyarrow as pa

from metarec_shared.dataset import RatingScale
from metarec_shared.readers.delimited import Dialect, read_delimited
from metarec_shared.readers.layout import TableLayout
from metarec_shared.readers.table import Table
from metarec_shared.settings import DataSettings

_BARS = Dialect(delimiter="|", encoding="latin-1")
_TABS = Dialect(delimiter="\t", encoding="latin-1")
# fmt: off
_GENRES = [
    "unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama", "Fantasy",
    "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western",
]
# fmt: on


def _read_interactions(path: Path, settings: DataSettings) -> Table:
    return read_delimited(path, _TABS, settings, names=("user_id", "item_id", "rating", "timestamp"))


def _read_items(path: Path, settings: DataSettings) -> Table:
    genres = _genre_names(path.with_name("u.genre"), settings)
    flags = [f"flag {number}" for number in range(len(genres))]
    names = ("item_id", "title", "released", "released on video", "address", *flags)
    table = read_delimited(path, _BARS, settings, names=names)
    raised = zip(*(table.text(flag).to_pylist() for flag in flags), strict=True)
    texts = [" ".join(genre for genre, flag in zip(genres, row, strict=True) if flag == "1") for row in raised]
    columns = {"item_id": table.columns["item_id"], "title": table.columns["title"]}
    return dataclasses.replace(table, columns={**columns, "genres": pa.array(texts, pa.string())})


def _genre_names(path: Path, settings: DataSettings) -> list[str]:
    if not path.is_file():
        return _GENRES
    names: list[str] = read_delimited(path, _BARS, settings, names=("genre", "number")).text("genre").to_pylist()
    return names


LAYOUT = TableLayout(
    name="movielens-100k",
    interaction_files=("u.data",),
    item_files=("u.item",),
    read_interactions=_read_interactions,
    read_items=_read_items,
    scale=RatingScale(low=1.0, high=5.0),
)
