"""The file ``source.toml`` of a partner site: where interactions and items come from, and what columns they have there.

It never holds a database's address: that bears a password, and stands in an environment variable or a private file.
"""

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metarec_shared.errors import DataError
from metarec_shared.readers.table import Table, holds_text

_COLUMNS: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "interactions": (("user_id", "item_id"), ("rating", "timestamp")),
    "items": (("item_id", "title"), ()),
}
_KEYS = ("file", "url-env", "url-file", "table", "query", "incremental")
_ENDINGS = (".csv", ".csv.gz", ".parquet")


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """One table of ``source.toml``: where its rows come from. Texts are empty where the table does not have them.

    Attributes:
        path: The file ``source.toml``.
        kind: Name of the table, ``interactions`` or ``items``.
        file: CSV or Parquet file, relative to the folder.
        url_env: Environment variable that holds the database's address.
        url_file: File that holds it, relative to the folder.
        table: Table of the database, perhaps behind its schema and a dot.
        query: Query in place of a table.
        incremental: Column that only grows, by which newer rows are told from those read before.
        required: Column there by our name; each must be there.
        optional: Likewise, but it need not be there.
        has_further: Whether every further column of text is read too.
    """

    path: Path
    kind: str
    file: str
    url_env: str
    url_file: str
    table: str
    query: str
    incremental: str
    required: Mapping[str, str]
    optional: Mapping[str, str]
    has_further: bool

    def __str__(self) -> str:
        return f"{self.path.name} [{self.kind}]"

    @property
    def folder(self) -> Path:
        """The folder that relative paths start from."""
        return self.path.parent

    def wants(self, name: str) -> bool:
        """Whether a column of that name there is read."""
        return self.has_further or name in (*self.required.values(), *self.optional.values(), self.incremental)

    def select(self, table: Table) -> Table:
        """Return the columns that are read, under our names.

        Raises:
            DataError: A required one is missing.
        """
        further = [name for name, column in table.columns.items() if self.has_further and holds_text(column.type)]
        return table.select(self.required, {**self.optional, **{name: name for name in further}})


def read_origin(path: Path, kind: str) -> Origin:
    """Read one table of ``source.toml``.

    Args:
        path: The file.
        kind: ``interactions`` or ``items``.

    Raises:
        DataError: The file is no TOML, lacks the table, or the table says too little, too much or something unknown.
            No value is quoted: it may be an address with a password that somebody wrote in the wrong place.
    """
    document = _read_toml(path)
    for name in document:
        if name not in _COLUMNS:
            raise DataError(f"{path.name}: unknown table {name!r}; the tables are {', '.join(_COLUMNS)}")
    entries = document.get(kind)
    if not isinstance(entries, Mapping):
        raise DataError(f"{path.name}: no table [{kind}], wanted one that says where {kind} come from")
    where = f"{path.name} [{kind}]"
    columns = _texts(entries.get("columns", {}), f"{where} columns")
    values = _texts({name: value for name, value in entries.items() if name != "columns"}, where)
    _check_keys(values, where)
    always, by_choice = _COLUMNS[kind]
    if columns:
        _check_columns(columns, kind, where)
    return Origin(
        path=path,
        kind=kind,
        **{key.replace("-", "_"): values.get(key, "") for key in _KEYS},
        required=columns or {name: name for name in always},
        optional={} if columns else {name: name for name in by_choice},
        has_further=kind == "items" and not columns,
    )


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path.name}: holds bytes that are no UTF-8 text") from error
    except tomllib.TOMLDecodeError as error:
        raise DataError(f"{path.name}: not TOML: {error}") from error


def _texts(entries: Any, where: str) -> dict[str, str]:
    if not isinstance(entries, Mapping):
        raise DataError(f"{where}: must be a table")
    for key, value in entries.items():
        if not isinstance(value, str) or not value.strip():
            raise DataError(f"{where}: {key} must be a string that is not empty")
    return {key: value.strip() for key, value in entries.items()}


def _check_keys(values: Mapping[str, str], where: str) -> None:
    for key in values:
        if key not in _KEYS:
            raise DataError(f"{where}: unknown key {key!r}; it has {', '.join(_KEYS)} and columns")
    addresses, contents = (sum(key in values for key in keys) for keys in (("url-env", "url-file"), ("table", "query")))
    if "file" in values:
        if len(values) > 1:
            raise DataError(f"{where}: file goes with no other key than columns, got {', '.join(values)}")
        if not values["file"].endswith(_ENDINGS):
            raise DataError(f"{where}: file must end in {', '.join(_ENDINGS)}")
    elif (addresses, contents) != (1, 1):
        wish = "either file, or one of url-env and url-file with one of table and query"
        raise DataError(f"{where}: wanted {wish}, got {', '.join(values) or 'none of them'}")
    if not re.fullmatch(r"[A-Za-z_]\w*", values.get("url-env", "_")):
        raise DataError(f"{where}: url-env must be the name of an environment variable, not the address itself")
    if "://" in values.get("url-file", ""):
        raise DataError(f"{where}: url-file must be the path of a file, not the address itself")


def _check_columns(columns: Mapping[str, str], kind: str, where: str) -> None:
    always, by_choice = _COLUMNS[kind]
    for name in always:
        if name not in columns:
            raise DataError(f"{where} columns: {name} is missing, wanted {name} = the name of that column there")
    for name in columns:
        if kind == "interactions" and name not in always + by_choice:
            raise DataError(f"{where} columns: unknown name {name!r}; the names are {', '.join(always + by_choice)}")
