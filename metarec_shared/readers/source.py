"""A partner site's own data: ``source.toml`` says which files or database tables hold interactions and items.

A timestamp may be a number, a date of the database or of Parquet, or text as ISO 8601 has it, such as
``2026-01-31 18:30:00``; only its order counts, so that a column of numbers is in any unit.
"""

import dataclasses
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa

from metarec_shared.errors import DataError
from metarec_shared.readers.database import read_database
from metarec_shared.readers.delimited import CSV, read_delimited
from metarec_shared.readers.increments import read_increments
from metarec_shared.readers.layout import TableLayout
from metarec_shared.readers.parquet import read_parquet
from metarec_shared.readers.source_file import Origin, read_origin
from metarec_shared.readers.table import Table, as_number, holds_text
from metarec_shared.settings import DataSettings

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def _read_interactions(path: Path, settings: DataSettings) -> Table:
    return _with_times(_read(read_origin(path, "interactions"), settings))


def _read_items(path: Path, settings: DataSettings) -> Table:
    return _read(read_origin(path, "items"), settings)


def _read(origin: Origin, settings: DataSettings) -> Table:
    file = origin.folder / origin.file
    if origin.file:
        if not file.is_file():
            raise DataError(f"{origin}: no such file: {file}")
        table = read_parquet(file) if file.suffix == ".parquet" else read_delimited(file, CSV, settings)
    else:
        table = read_increments(origin) if origin.incremental else read_database(origin)
    return origin.select(table)


def _with_times(table: Table) -> Table:
    """Return the table with ISO timestamps as microseconds; text that is none stays, for the error about its row."""
    column = table.columns.get("timestamp")
    if column is None or not holds_text(column.type) or pa.types.is_integer(column.type):
        return table
    spelt = table.text("timestamp").dictionary_encode()
    texts: list[str] = spelt.dictionary.to_pylist()
    if not all(np.isnan(as_number(text)) for text in texts):
        return table
    times = pa.array([_microseconds(text) for text in texts], pa.string())
    return dataclasses.replace(table, columns={**table.columns, "timestamp": times.take(spelt.indices)})


def _microseconds(text: str) -> str:
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        return text
    return str(((time if time.tzinfo else time.replace(tzinfo=UTC)) - _EPOCH) // timedelta(microseconds=1))


LAYOUT = TableLayout(
    name="source",
    interaction_files=("source.toml",),
    item_files=("source.toml",),
    read_interactions=_read_interactions,
    read_items=_read_items,
)
