"""What every layout is read into first: named columns that remember which line of which file a row came from."""

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

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
        where: Place of a row (position) in the file, for example ``"line 17"``; valid while no row was dropped.
        skipped: Rows that could not be split into fields and were left out.
    """

    source: str
    columns: Mapping[str, pa.Array]
    where: Callable[[int], str]
    skipped: int = 0

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def select(self, required: Mapping[str, str], optional: Mapping[str, str] | None = None) -> "Table":
        """Return the table with only the named columns, ``{new name: name in the file}``.

        Raises:
            DataError: A required column is missing.
        """
        for name in required.values():
            if name not in self.columns:  # the names found may be a first row of private data: leave them out
                raise DataError(f"{self.source}: no column {name!r} among its {len(self.columns)} columns")
        wanted = {**required, **(optional or {})}
        present = {new: self.columns[old] for new, old in wanted.items() if old in self.columns}
        return dataclasses.replace(self, columns=present)

    def filter(self, kept: NDArray[np.bool_]) -> "Table":
        """Return the table of the rows where ``kept`` holds."""
        mask = pa.array(kept)
        return dataclasses.replace(self, columns={name: column.filter(mask) for name, column in self.columns.items()})

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


def check_names(source: str, names: Iterable[str]) -> None:
    """Raise a DataError if a column name appears twice."""
    first: dict[str, int] = {}
    for position, name in enumerate(names, start=1):
        if first.setdefault(name, position) != position:
            raise DataError(f"{source}: columns {first[name]} and {position} have the same name")
