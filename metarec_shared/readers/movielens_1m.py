"""MovieLens 1M: ``ratings.dat`` and ``movies.dat``, fields separated by ``::``."""

from pathlib import Path

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


LAYOUT = TableLayout(
    name="movielens-1m",
    interaction_files=("ratings.dat",),
    item_files=("movies.dat",),
    read_interactions=_read_interactions,
    read_items=_read_items,
    scale=RatingScale(low=1.0, high=5.0),
)
