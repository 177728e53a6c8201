"""Turn the values that a database's driver returns into Arrow columns."""

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, date, datetime, time
from decimal import Decimal
from types import NoneType
from typing import Any
from uuid import UUID

import pyarrow as pa

from metarec_shared.errors import DataError

_NUMBERS = {bool, int, float}


def as_column(where: str, values: Sequence[Any]) -> pa.Array:
    """Return values of a column as an Arrow array: text, numbers, booleans or timestamps in UTC.

    Decimal numbers without places are whole numbers, others are floats; dates are midnights; UUIDs are text. Where
    text and numbers are mixed, as SQLite allows, all are text.

    Args:
        where: The column, for messages.
        values: Its values, None where there is none.

    Raises:
        DataError: There is a value that Arrow has no type for.
    """
    kinds = set(map(type, values))
    if kinds & _PLAIN.keys():
        values = [_PLAIN[type(value)](value) if type(value) in _PLAIN else value for value in values]
        kinds = set(map(type, values))
    kinds.discard(NoneType)
    try:
        if len(kinds) > 1 and kinds <= _NUMBERS | {str}:
            values = _each(str if str in kinds else float, values)
        return pa.array(values)
    except (pa.ArrowException, OverflowError, TypeError):
        if kinds == {int}:  # wider than 64 bits: an id, if anything
            return pa.array(_each(str, values))
        raise DataError(f"{where} must hold text, numbers or dates, got {_names(kinds)}") from None


def joined(where: str, parts: Sequence[pa.Array]) -> pa.Array:
    """Return the parts of a column as one array, of a type that holds them all.

    Raises:
        DataError: There is no such type.
    """
    kinds = list(dict.fromkeys(part.type for part in parts if not pa.types.is_null(part.type)))
    kind = kinds[0] if kinds else pa.null()
    if len(kinds) > 1:
        kind = pa.float64() if all(map(_is_number, kinds)) else pa.string()
    try:
        return pa.concat_arrays([part.cast(kind, safe=False) for part in parts] or [pa.nulls(0)])
    except pa.ArrowException:
        raise DataError(f"{where} must hold values of one kind, got {', '.join(map(str, kinds))}") from None


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_boolean(kind) or pa.types.is_integer(kind) or pa.types.is_floating(kind))


def _each(convert: Callable[[Any], Any], values: Sequence[Any]) -> list[Any]:
    return [None if value is None else convert(value) for value in values]


def _number(value: Decimal) -> int | float:
    exponent = value.as_tuple().exponent
    return int(value) if isinstance(exponent, int) and exponent >= 0 else float(value)


def _utc(value: datetime) -> datetime:
    return value.astimezone(UTC).replace(tzinfo=None) if value.tzinfo else value


def _midnight(value: date) -> datetime:
    return datetime.combine(value, time.min)


def _names(kinds: set[type]) -> str:
    return ", ".join(sorted(kind.__name__ for kind in kinds))


_PLAIN: Mapping[type, Callable[[Any], Any]] = {Decimal: _number, datetime: _utc, date: _midnight, UUID: str}
