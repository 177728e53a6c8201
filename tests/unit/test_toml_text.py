"""Settings written as TOML are read again as they were, by Python's own reader."""

import tomllib

from hypothesis import given
from hypothesis import strategies as st

from metarec_shared.toml_text import toml_tables

NAMES = st.from_regex(r"[a-z][a-z0-9-]{0,8}", fullmatch=True)
SCALARS = st.one_of(
    st.booleans(), st.integers(-(2**53), 2**53), st.floats(allow_nan=False, allow_infinity=False), st.text(max_size=20)
)


@given(st.dictionaries(NAMES, st.dictionaries(NAMES, SCALARS, min_size=1, max_size=4), max_size=4))
def test_what_is_written_is_read_again(tables: dict[str, dict[str, bool | int | float | str]]) -> None:
    flat = {f"{table}.{key}": value for table, entries in tables.items() for key, value in entries.items()}
    assert tomllib.loads(toml_tables(flat)) == tables
    nested = tomllib.loads(toml_tables(flat, prefix="tool.metarec."))
    assert nested.get("tool", {}).get("metarec", {}) == tables
