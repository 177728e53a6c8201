"""Read only what is new in a database: what was read before is kept in a private file beside ``source.toml``.

The file is a Parquet file for its owner alone, ``.interactions.parquet`` or ``.items.parquet``. Rows that were changed
or deleted since are seen only once it is removed: ``incremental`` is for tables to which rows are appended.
"""

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import date, datetime
from decimal import Decimal
from hashlib import blake2b
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from sqlalchemy import URL

from metarec_shared.errors import DataError
from metarec_shared.files import write_atomically
from metarec_shared.readers.address import database_address
from metarec_shared.readers.database import Rows, as_table, fetch
from metarec_shared.readers.source_file import Origin
from metarec_shared.readers.table import Table
from metarec_shared.readers.values import joined

logger = logging.getLogger(__name__)

_FORMAT = 1
_DESCRIPTION = b"metarec"
_WATERMARKS: Mapping[str, Callable[[str], Any]] = {
    "int": int,
    "str": str,
    "Decimal": Decimal,
    "datetime": datetime.fromisoformat,
    "date": date.fromisoformat,
}
"""How a watermark is read again, by its type; a float is none: a database may round it otherwise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Kept:
    """What the file holds: the rows, and what they were read by."""

    rows: Rows
    key: str


def read_increments(origin: Origin) -> Table:
    """Read the rows that are newer than those kept, keep them too, and return all.

    Raises:
        DataError: The database cannot be opened or read, lacks the table or a column, its incremental column has no
            watermark, or the file cannot be written.
    """
    path = origin.folder / f".{origin.kind}.parquet"
    address = database_address(origin)
    key = _key(origin, address)
    kept = _read(path)
    before = kept.rows if kept is not None and kept.key == key else None
    rows = fetch(origin, address, before.watermark if before else None)
    if before and before.columns.keys() != rows.columns.keys():  # the table has got other columns since
        before, rows = None, fetch(origin, address, None)
    if rows.watermark is None:
        return as_table(origin, before.columns if before else rows.columns)
    whole = _appended(origin, before, rows) if before else rows
    _write(path, origin, _Kept(rows=whole, key=key))
    return as_table(origin, whole.columns)


def _key(origin: Origin, address: URL) -> str:
    """Return a hash of what decides which rows are read; user and password are no part of it."""
    parts = [address.get_backend_name(), address.host, address.port, address.database]
    parts += [origin.url_env, origin.url_file, origin.table, origin.query, origin.incremental]
    mapping = [sorted(origin.required.items()), sorted(origin.optional.items())]
    return blake2b(json.dumps([_FORMAT, parts, mapping]).encode(), digest_size=16).hexdigest()


def _appended(origin: Origin, before: Rows, rows: Rows) -> Rows:
    columns = {
        name: joined(f"{origin}: column {name!r}", [before.columns[name], column])
        for name, column in rows.columns.items()
    }
    return Rows(columns=columns, watermark=rows.watermark)


def _read(path: Path) -> _Kept | None:
    """Return what is kept; None where nothing is, or what is cannot be used."""
    if not path.exists():
        return None
    try:
        with pq.ParquetFile(path) as file:
            table = file.read()
        described = json.loads((table.schema.metadata or {})[_DESCRIPTION])
        kind, text = described["watermark"]
        columns = {name: table.column(name).combine_chunks() for name in table.column_names}
        rows = Rows(columns=columns, watermark=_WATERMARKS[kind](text))
        return _Kept(rows=rows, key=described["key"])
    except (pa.ArrowException, OSError, ValueError, LookupError, TypeError, ArithmeticError):
        logger.warning("%s: damaged, so all rows are read anew", path)
        return None


def _write(path: Path, origin: Origin, kept: _Kept) -> None:
    kind = type(kept.rows.watermark).__name__
    if kind not in _WATERMARKS:
        wish = "whole numbers, dates or text"
        raise DataError(f"{origin}: incremental column {origin.incremental!r} must hold {wish}, got {kind}")
    described = {"key": kept.key, "watermark": [kind, str(kept.rows.watermark)]}
    table = pa.table(dict(kept.rows.columns)).replace_schema_metadata({_DESCRIPTION: json.dumps(described)})
    try:
        write_atomically(path, lambda temporary: pq.write_table(table, temporary), mode=0o600)
    except OSError as error:
        raise DataError(f"{path}: cannot be written: {error.strerror or error}") from error
