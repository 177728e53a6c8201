"""Read files of delimited text: every field a string, every row of the wrong width noticed."""

import csv
import gzip
import io
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.csv

from metarec_shared.errors import DataError
from metarec_shared.readers.table import Table, check_names
from metarec_shared.settings import DataSettings

_UNIT_SEPARATOR = "\x1f"
_LARGEST_BLOCK = 2**31 - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialect:
    """How fields stand in a line. Fields may be quoted, and then hold line breaks, only where ``quoted``."""

    delimiter: str
    quoted: bool = False
    encoding: str = "utf-8"

    @property
    def separator(self) -> str:
        """The one character that separates fields once a longer delimiter has been replaced by it."""
        return self.delimiter if len(self.delimiter) == 1 else _UNIT_SEPARATOR


CSV = Dialect(delimiter=",", quoted=True)


def read_delimited(
    path: Path, dialect: Dialect, settings: DataSettings, *, names: Sequence[str] | None = None
) -> Table:
    """Read a file of delimited text, also a gzip-compressed one.

    Args:
        path: The file; compressed where it ends in ``.gz``.
        dialect: Delimiter, quoting and encoding.
        settings: Says whether a row of the wrong width is an error or is skipped.
        names: Names of the columns; None: the first line names them.

    Returns:
        One string column a name. Blank lines do not count as rows.

    Raises:
        DataError: The file cannot be read, decoded or decompressed, names a column twice, or has a row of the wrong
            width.
    """
    content = _decoded(path, dialect)
    header_lines = 0
    if names is None:
        names, header_lines = _header(path.name, content, dialect)
    widths: dict[int, int] = {}

    def note(row: Any) -> str:
        widths[row.number - 1 - (header_lines > 0)] = row.actual_columns
        return "skip"

    def where(positions: Sequence[int]) -> tuple[str, ...]:
        return _places(content, dialect, [position + (header_lines > 0) for position in positions])

    try:
        table = pa.csv.read_csv(
            pa.BufferReader(content if content.strip() else b"\n"),
            read_options=pa.csv.ReadOptions(
                column_names=list(names),
                skip_rows=header_lines,
                use_threads=False,  # else rows of the wrong width bear no number
                block_size=min(len(content) + 2, _LARGEST_BLOCK),
            ),
            parse_options=pa.csv.ParseOptions(
                delimiter=dialect.separator,
                quote_char='"' if dialect.quoted else False,
                newlines_in_values=dialect.quoted,
                invalid_row_handler=note,
            ),
            convert_options=pa.csv.ConvertOptions(
                column_types={name: pa.string() for name in names}, strings_can_be_null=False
            ),
        )
    except pa.ArrowInvalid as error:
        raise DataError(f"{path.name}: cannot be split into {len(names)} fields a row") from error
    if widths and settings.on_bad_rows == "error":
        row, width = next(iter(widths.items()))
        raise DataError(f"{path.name} {where([row])[0]}: wanted {len(names)} fields, got {width}")
    columns = {name: table.column(name).combine_chunks() for name in names}
    return Table(source=path.name, columns=columns, where=where, skipped=np.array(list(widths), dtype=np.int64))


def _decoded(path: Path, dialect: Dialect) -> bytes:
    """Return the file as UTF-8 with fields separated by ``dialect.separator``."""
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{path.name}: damaged or cut short, cannot be decompressed") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    content = content.removeprefix(b"\xef\xbb\xbf")
    try:
        text = content.decode(dialect.encoding)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path.name} line {line}: holds bytes that are no {dialect.encoding.upper()} text") from error
    if dialect.encoding != "utf-8":
        content = text.encode()
    return content.replace(dialect.delimiter.encode(), dialect.separator.encode())


def _records(content: bytes, dialect: Dialect) -> Iterator[tuple[int, list[str]]]:
    """Yield the line where each record starts, and its fields; blank lines are no records."""
    lines = io.TextIOWrapper(io.BytesIO(content), encoding="utf-8", newline="")
    quoting: Literal[0, 3] = csv.QUOTE_MINIMAL if dialect.quoted else csv.QUOTE_NONE
    reader = csv.reader(lines, delimiter=dialect.separator, quoting=quoting)
    start = 1
    for fields in reader:
        if fields:
            yield start, fields
        start = reader.line_num + 1


def _header(source: str, content: bytes, dialect: Dialect) -> tuple[list[str], int]:
    """Return the column names and how many lines they and the blank lines before them take."""
    try:
        line, fields = next(_records(content, dialect))
    except StopIteration:
        raise DataError(f"{source}: is empty, wanted a first line that names the columns") from None
    except csv.Error as error:
        raise DataError(f"{source} line 1: cannot be read as column names: {error}") from error
    names = [field.strip() for field in fields]
    check_names(source, names)
    return names, line + sum(field.count("\n") for field in fields)


def _places(content: bytes, dialect: Dialect, records: Sequence[int]) -> tuple[str, ...]:
    """Say where records stand. Reads the file again, this time slowly, up to the last: only bad rows ask."""
    places = {record: f"row {record + 1}" for record in records}
    try:
        for position, (line, _) in enumerate(islice(_records(content, dialect), max(records) + 1)):
            if position in places:
                places[position] = f"line {line}"
    except csv.Error:  # a field too long for this slower reader
        pass
    return tuple(places.values())
