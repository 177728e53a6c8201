"""Values of a database as Arrow columns, whatever they are and however they are mixed."""

from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any
from uuid import UUID

import pyarrow as pa
import pytest

from metarec_shared.errors import DataError
from metarec_shared.readers.values import as_column, joined

NOON = datetime(2026, 1, 31, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("values", "kind", "expected"),
    [
        ([None, None], pa.null(), [None, None]),
        ([1, None], pa.int64(), [1, None]),
        ([1, 2.5, None], pa.float64(), [1, 2.5, None]),
        ([True, None], pa.bool_(), [True, None]),
        ([True, 2], pa.float64(), [1, 2]),
        (["a", None], pa.string(), ["a", None]),
        (["five", 5, 4.5, None], pa.string(), ["five", "5", "4.5", None]),
        ([2**70, 1, None], pa.string(), [str(2**70), "1", None]),
        ([Decimal(7), None], pa.int64(), [7, None]),
        ([Decimal("7.0"), Decimal(2)], pa.float64(), [7, 2]),
        ([Decimal("Infinity"), 1], pa.float64(), [float("inf"), 1]),
        ([UUID(int=1)], pa.string(), ["00000000-0000-0000-0000-000000000001"]),
        ([date(2026, 1, 31), None], pa.timestamp("us"), [datetime(2026, 1, 31), None]),
        ([NOON.replace(tzinfo=None)], pa.timestamp("us"), [NOON.replace(tzinfo=None)]),
        ([NOON.astimezone(timezone(timedelta(hours=5)))], pa.timestamp("us"), [NOON.replace(tzinfo=None)]),
    ],
)
def test_values_of_each_kind_have_a_type(values: list[Any], kind: pa.DataType, expected: list[Any]) -> None:
    column = as_column("column 'x'", values)
    assert (column.type, column.to_pylist()) == (kind, expected)


@pytest.mark.parametrize("values", [[object()], [1, b"x"], [10**400, 0.5]])
def test_values_without_a_type_are_errors_that_quote_none(values: list[Any]) -> None:
    kinds = ", ".join(sorted(type(value).__name__ for value in values))
    with pytest.raises(DataError, match=f"^column 'x' must hold text, numbers or dates, got {kinds}$"):
        as_column("column 'x'", values)


@pytest.mark.parametrize(
    ("parts", "kind", "expected"),
    [
        ([], pa.null(), []),
        ([[None], ["a"]], pa.string(), [None, "a"]),
        ([[1], [2.5], [True]], pa.float64(), [1, 2.5, 1]),
        ([[1], [None], ["a"]], pa.string(), ["1", None, "a"]),
        ([[2**63], [1]], pa.string(), [str(2**63), "1"]),
        ([[NOON], [None]], pa.timestamp("us"), [NOON.replace(tzinfo=None), None]),
    ],
)
def test_parts_of_different_kinds_are_joined(parts: list[list[Any]], kind: pa.DataType, expected: list[Any]) -> None:
    column = joined("column 'x'", [as_column("column 'x'", part) for part in parts])
    assert (column.type, column.to_pylist()) == (kind, expected)


def test_parts_that_have_nothing_in_common_are_an_error() -> None:
    with pytest.raises(DataError, match=r"^column 'x' must hold values of one kind, got int64, list<item: int64>$"):
        joined("column 'x'", [pa.array([1]), pa.array([[1]])])
