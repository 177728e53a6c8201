"""Read rows of a SQL database in chunks, over a connection that can change nothing where the database allows that.

Messages name what failed and quote nothing that a driver or the database says: that may be an address, a statement or
a private row.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from sqlalchemy import (
    URL,
    ColumnClause,
    Connection,
    Executable,
    FromClause,
    NullPool,
    TextClause,
    bindparam,
    column,
    create_engine,
    false,
    or_,
    select,
    table,
    text,
)
from sqlalchemy.exc import DBAPIError, NoSuchModuleError, SQLAlchemyError
from sqlalchemy.types import NullType

from metarec_shared.errors import DataError
from metarec_shared.readers.address import connect_options, database_address, holder_of
from metarec_shared.readers.source_file import Origin
from metarec_shared.readers.table import Table, check_names, check_present, row_places
from metarec_shared.readers.values import as_column, joined

_CHUNK = 20_000  # rows that are Python objects at once
_REASONS: Mapping[str, str] = {
    "42p01|3f000|no such table": "there is no such table",
    "42703|no such column": "it names a column that is not there",
    "42501|not authorized|prohibited": "the credentials do not allow to read it",
    "25006|readonly database": "it would change the database, wanted one that only reads",
    "42601|syntax error|incomplete input": "it is no SQL that the database understands",
    "authentication failed|no password supplied|role .* does not exist": "the credentials are refused",
    "database .* does not exist": "the server has no such database",
    "unable to open database file": "there is no such file, or it may not be read",
    "file is not a database|disk image is malformed": "the file is damaged, or no SQLite database",
    "invalid connection option": "the address has an option that the driver does not know",
    "connection|resolve|timeout|server closed": "the server cannot be reached, or broke off",
}
"""What an error of a database means, by its SQLSTATE or what it says outside quotes; the first that fits counts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """Rows of a database.

    Attributes:
        columns: Column by its name there.
        watermark: The incremental column's value in the last row; None without rows, or without such a column.
    """

    columns: Mapping[str, pa.Array]
    watermark: Any


def read_database(origin: Origin) -> Table:
    """Read the columns of a table or query that ``origin`` wants.

    Raises:
        DataError: The database cannot be opened or read, or lacks the table or a column.
    """
    return as_table(origin, fetch(origin, database_address(origin), None).columns)


def as_table(origin: Origin, columns: Mapping[str, pa.Array]) -> Table:
    """Return columns as a table whose rows have numbers, in the order in which they were read."""
    return Table(source=str(origin), columns=columns, where=row_places)


def fetch(origin: Origin, address: URL, watermark: Any) -> Rows:
    """Read rows of a table or query.

    Args:
        origin: Which table or query, which of its columns, and which of these only grows.
        address: The database.
        watermark: Only rows in which that column is greater are read; None: all rows.

    Raises:
        DataError: The database cannot be opened or read, or lacks the table or a column.
    """
    with _connected(origin, address) as connection, _told(origin, _what(origin)):
        probe = select(text("*")).select_from(_relation(origin, ())).where(false())
        found = list(connection.execute(probe).keys())
        check_names(str(origin), found)
        growing = [origin.incremental] if origin.incremental else []
        check_present(str(origin), found, [*origin.required.values(), *growing])
        names = [name for name in found if origin.wants(name)]
        return _stream(origin, connection, _statement(origin, names, watermark), names)


def _relation(origin: Origin, names: Sequence[str]) -> FromClause:
    columns: list[ColumnClause[Any]] = [column(name) for name in names]
    if origin.table:
        schema, _, name = origin.table.rpartition(".")
        return table(name, *columns, schema=schema or None)
    return _query(origin).columns(*columns).subquery("source")


def _query(origin: Origin) -> TextClause:
    """Return the site's own query; its colons are no parameters, and a comment at its end ends there."""
    return text(origin.query.rstrip("; \t\r\n").replace(":", r"\:") + "\n")


def _statement(origin: Origin, names: Sequence[str], watermark: Any) -> Executable:
    if origin.query and not origin.incremental:
        return _query(origin)  # as it stands: it may order its rows
    relation = _relation(origin, names)
    statement = select(*(relation.c[name] for name in names))
    if not origin.incremental:
        return statement
    growing = relation.c[origin.incremental]
    if watermark is not None:
        newer = growing > bindparam("watermark", watermark, type_=NullType())
        statement = statement.where(or_(newer, growing.is_(None)))
    return statement.order_by(growing)


def _stream(origin: Origin, connection: Connection, statement: Executable, names: Sequence[str]) -> Rows:
    options = {"stream_results": True, "yield_per": _CHUNK}
    parts: dict[str, list[pa.Array]] = {name: [] for name in names}
    watermark = None
    with connection.execute(statement, execution_options=options) as result:  # closed, lest an error leave it locked
        found = list(result.keys())
        check_names(str(origin), found)  # a subquery of SQLite's gave the second of two a name of its own
        for rows in result.partitions():
            values = dict(zip(found, zip(*rows, strict=True), strict=True))
            for name in names:
                parts[name].append(as_column(f"{origin}: column {name!r}", values[name]))
            if origin.incremental:
                if None in values[origin.incremental]:
                    raise DataError(
                        f"{origin}: incremental column {origin.incremental!r} must never be NULL, but it is"
                    )
                watermark = values[origin.incremental][-1]
    columns = {name: joined(f"{origin}: column {name!r}", chunks) for name, chunks in parts.items()}
    return Rows(columns=columns, watermark=watermark)


@contextmanager
def _connected(origin: Origin, address: URL) -> Iterator[Connection]:
    what = f"the database that {holder_of(origin)} names cannot be opened"
    with _told(origin, what):
        engine = create_engine(
            address, poolclass=NullPool, hide_parameters=True, connect_args=dict(connect_options(address))
        )
        connection = engine.connect()
    with connection:
        if address.get_backend_name() == "postgresql":
            connection = connection.execution_options(postgresql_readonly=True)
        yield connection


def _what(origin: Origin) -> str:
    return f"table {origin.table!r} cannot be read" if origin.table else "the query cannot be read"


@contextmanager
def _told(origin: Origin, what: str) -> Iterator[None]:
    """Raise a DataError in place of whatever goes wrong, without the error that it comes from, which quotes."""
    try:
        yield
    except ImportError as error:
        wish = "install it; PostgreSQL's is installed with metarec[postgres]"
        raise DataError(f"{origin}: {what}: its driver {error.name} is missing, {wish}") from None
    except NoSuchModuleError:
        raise DataError(f"{origin}: {what}: SQLAlchemy knows no such kind of database or driver") from None
    except (SQLAlchemyError, ValueError, TypeError) as error:
        raise DataError(f"{origin}: {what}: {_reason(error)}") from None


def _reason(error: Exception) -> str:
    cause = (isinstance(error, DBAPIError) and error.orig) or error
    state, (said, *_) = getattr(cause, "sqlstate", None) or "", str(cause).split("\n")
    unquoted = re.sub(r'"[^"]*"', "", f"{state} {said}".lower())
    for pattern, reason in _REASONS.items():
        if re.search(pattern, unquoted):
            return reason
    return f"{type(cause).__name__}, whose text may be private and is left out"
