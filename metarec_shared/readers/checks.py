"""Find the rows that cannot be used, and say what is wrong with the first, or leave them out."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from metarec_shared.dataset import RatingScale
from metarec_shared.errors import DataError
from metarec_shared.readers.table import Table, as_number
from metarec_shared.settings import DataSettings

_LONGEST_ID = 256  # one long id would widen the array of all user ids


@dataclass(frozen=True, slots=True)
class Fault:
    """Rows in which a column is wrong, and the sentence about one of them."""

    rows: NDArray[np.bool_]
    message: Callable[[int], str]


def readable(table: Table, faults: Iterable[Fault], settings: DataSettings) -> Table:
    """Return the table without the rows that have a fault, or raise for the first row that has one."""
    faults = list(faults)
    bad = np.zeros(len(table), dtype=np.bool_)
    for fault in faults:
        bad |= fault.rows
    if not bad.any():
        return table
    if settings.on_bad_rows == "error":
        row = int(bad.argmax())
        message = next(fault.message(row) for fault in faults if fault.rows[row])
        raise DataError(f"{table.source} {table.place(row)}: {message}")
    return table.without(bad)


def interaction_faults(table: Table, scale: RatingScale | None) -> Iterable[Fault]:
    """Yield what can be wrong with ids, ratings and timestamps."""
    yield from id_faults(table, "user_id")
    yield from id_faults(table, "item_id")
    if "rating" in table.columns:
        ratings = table.numbers("rating")
        yield _number_fault(table, "rating", ratings)
        if scale is not None:
            outside = (ratings < scale.low) | (ratings > scale.high)
            wish = f"between {scale.low:g} and {scale.high:g}"
            yield Fault(outside, lambda row: f"rating must be {wish}, got {table.spelling('rating', row)!r}")
    if "timestamp" in table.columns:
        yield _number_fault(table, "timestamp", table.numbers("timestamp"))


def id_faults(table: Table, column: str) -> Iterable[Fault]:
    """Yield faults whose messages leave the id out: it may be private."""
    ids = table.text(column)
    lengths = pc.utf8_length(ids).to_numpy(zero_copy_only=False)
    with_nul = pc.match_substring(ids, "\0").to_numpy(zero_copy_only=False)  # NumPy drops it where it ends a string
    yield Fault(lengths == 0, lambda row: f"{column} must not be empty")
    yield Fault(lengths > _LONGEST_ID, lambda row: f"{column} must have at most {_LONGEST_ID} characters")
    yield Fault(with_nul, lambda row: f"{column} must not hold a NUL character")


def _number_fault(table: Table, column: str, values: NDArray[np.float64]) -> Fault:
    def message(row: int) -> str:
        text = table.spelling(column, row)
        spelt = not np.isnan(as_number(text)) or text.lower().lstrip("+-") == "nan"
        return f"{column} must be {'finite' if spelt else 'a number'}, got {text!r}"

    with np.errstate(over="ignore"):
        return Fault(~np.isfinite(values.astype(np.float32)), message)
