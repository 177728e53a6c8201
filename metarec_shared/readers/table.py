"""What every layout is read into first: named columns that remember which line of which file a row came from."""

import dataclasses
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from metarec_shared.errors import DataError

_LONGEST_WORD = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Columns of one file, as Arrow arrays of equal length, values as they stand there.

    Attributes:
        source: Name of the file, for messages.
        columns: Column by name, in file order.
        where: From positions of rows in the file, rising, to their places there, for example ``"line 17"``.
        skipped: Positions in the file, rising, of rows that were left out.
    """

    source: str
    columns: Mapping[str, pa.Array]
    where: Callable[[Sequence[int]], tuple[str, ...]]
    skipped: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, dtype=np.int64))

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def select(self, required: Mapping[str, str], optional: Mapping[str, str] | None = None) -> "Table":
        """Return the table with only the named columns, ``{new name: name in the file}``.

        Raises:
            DataError: A required column is missing.
        """
        check_present(self.source, self.columns, required.values())
        wanted = {**required, **(optional or {})}
        present = {new: self.columns[old] for new, old in wanted.items() if old in self.columns}
        return dataclasses.replace(self, columns=present)

    def without(self, bad: NDArray[np.bool_]) -> "Table":
        """Return the table without the rows where ``bad`` holds, which count as skipped."""
        mask = pa.array(~bad)
        columns = {name: column.filter(mask) for name, column in self.columns.items()}
        skipped = np.sort(np.concatenate([self.skipped, self._positions(np.flatnonzero(bad))]))
        return dataclasses.replace(self, columns=columns, skipped=skipped)

    def place(self, row: int) -> str:
        """Return where a row of the table stands in the file."""
        return self.where(self._positions(np.array([row])).tolist())[0]

    def skipped_places(self, most: int) -> tuple[str, ...]:
        """Return where the first ``most`` of the rows that were left out stand in the file."""
        return self.where(self.skipped[:most].tolist()) if len(self.skipped) else ()

    def text(self, name: str) -> pa.StringArray:
        """Return a column as text without surrounding white space; what is absent is empty.

        Raises:
            DataError: The column holds something that has no one spelling, such as floats or lists.
        """
        column = self.columns[name]
        if not holds_text(column.type):
            raise DataError(f"{self.source}: column {name!r} must hold text or whole numbers, got {column.type}")
        return pc.utf8_trim_whitespace(pc.fill_null(column.cast(pa.string()), ""))

    def numbers(self, name: str) -> NDArray[np.float64]:
        """Return a column as float64 [rows]; NaN where a value is absent or no number."""
        column = self.columns[name]
        if pa.types.is_timestamp(column.type) or pa.types.is_date(column.type):
            column = column.cast(pa.timestamp("us")).cast(pa.int64())
        if holds_text(column.type) and not pa.types.is_integer(column.type):
            distinct = self.text(name).dictionary_encode()
            values = np.array([as_number(text) for text in distinct.dictionary.to_pylist()], dtype=np.float64)
            return values[distinct.indices.to_numpy()] if len(values) else values
        try:
            return pc.fill_null(column.cast(pa.float64(), safe=False), np.nan).to_numpy(zero_copy_only=False)  # type: ignore[no-any-return]
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise DataError(f"{self.source}: column {name!r} must hold numbers, got {column.type}") from error

    def spelling(self, name: str, row: int) -> str:
        """Return one value for messages: its first word, lest a stray quotation mark drag private fields along."""
        value = self.columns[name][row].as_py()
        text = "" if value is None else str(value).strip()
        word = re.split(r"[\s,;|]", text, maxsplit=1)[0][:_LONGEST_WORD]
        return text if word == text else word + "…"

    def _positions(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the positions in the file of rows of the table: those left out before a row move it on."""
        before = np.searchsorted(self.skipped - np.arange(len(self.skipped)), rows, side="right")
        return rows + before


def holds_text(kind: pa.DataType) -> bool:
    """Whether values of an Arrow type have one obvious spelling as text."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return bool(
        pa.types.is_string(kind)
        or pa.types.is_large_string(kind)
        or pa.types.is_string_view(kind)
        or pa.types.is_integer(kind)
        or pa.types.is_null(kind)
    )


def as_number(text: str) -> float:
    """Return the number that ``text`` spells, NaN where it spells none."""
    try:
        return float(text) if text.isascii() and "_" not in text else np.nan
    except ValueError:
        return np.nan


def row_places(positions: Sequence[int]) -> tuple[str, ...]:
    """Return places of rows that have numbers alone, from 1."""
    return tuple(f"row {position + 1}" for position in positions)


def check_present(source: str, found: Collection[str], required: Iterable[str]) -> None:
    """Raise a DataError if a column is missing among those found."""
    for name in required:
        if name not in found:  # the names found may be a first row of private data: leave them out
            raise DataError(f"{source}: no column {name!r} among its {len(found)} columns")


def check_names(source: str, names: Iterable[str]) -> None:
    """Raise a DataError if a column name appears twice."""
    first: dict[str, int] = {}
    for position, name in enumerate(names, start=1):
        if first.setdefault(name, position) != position:
            raise DataError(f"{source}: columns {first[name]} and {position} have the same name")
