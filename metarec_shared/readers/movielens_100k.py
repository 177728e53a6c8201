"""MovieLens 100K: ``u.data`` and ``u.item``, by choice ``u.user``, with the genres' names in ``u.genre`` if present.

Attributes of users are those of MovieLens 1M, read alike: ``gender``, ``age`` (as the lowest year of 1M's brackets),
``occupation`` (by name, where 1M has numbers) and ``zip`` (its first character).
"""

import dataclasses
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from metarec_shared.dataset import RatingScale
from metarec_shared.readers.delimited import Dialect, read_delimited
from metarec_shared.readers.layout import TableLayout
from metarec_shared.readers.table import Table
from metarec_shared.settings import DataSettings

_BARS = Dialect(delimiter="|", encoding="latin-1")
_TABS = Dialect(delimiter="\t", encoding="latin-1")
_AGES = (1, 18, 25, 35, 45, 50, 56)
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


def _read_users(path: Path, settings: DataSettings) -> Table:
    table = read_delimited(path, _BARS, settings, names=("user_id", "age", "gender", "occupation", "zip"))
    brackets = [_bracket(age) for age in table.numbers("age")]
    region = pc.utf8_slice_codeunits(table.text("zip"), 0, 1)
    return dataclasses.replace(table, columns={**table.columns, "age": pa.array(brackets, pa.string()), "zip": region})


def _bracket(age: float) -> str:
    """Return the lowest year of the bracket of an age, nothing where there is none."""
    return str(max(lowest for lowest in _AGES if lowest <= age)) if age >= _AGES[0] else ""


def _genre_names(path: Path, settings: DataSettings) -> list[str]:
    if not path.is_file():
        return _GENRES
    names: list[str] = read_delimited(path, _BARS, settings, names=("genre", "number")).text("genre").to_pylist()
    return names


LAYOUT = TableLayout(
    name="movielens-100k",
    interaction_files=("u.data",),
    item_files=("u.item",),
    user_files=("u.user",),
    read_interactions=_read_interactions,
    read_items=_read_items,
    read_users=_read_users,
    scale=RatingScale(low=1.0, high=5.0),
)
