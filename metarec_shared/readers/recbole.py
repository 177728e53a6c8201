"""RecBole's atomic files: ``NAME.inter``, ``NAME.item``, by choice ``NAME.user``: tabs, a header of ``column:type``.

References:
    Zhao et al. (2021), RecBole: Towards a Unified, Comprehensive and Efficient Framework for Recommendation
    Algorithms, section 3.1.
"""

import dataclasses
from pathlib import Path

from metarec_shared.errors import DataError
from metarec_shared.readers.delimited import Dialect, read_delimited
from metarec_shared.readers.layout import TableLayout
from metarec_shared.readers.table import Table, check_names
from metarec_shared.settings import DataSettings

_TABS = Dialect(delimiter="\t")
_TYPES = ("token", "token_seq", "float", "float_seq")


def _read_interactions(path: Path, settings: DataSettings) -> Table:
    if not settings.catalogue and not path.with_suffix(".item").is_file():
        raise DataError(f"{path.parent}: {path.name} wants {path.stem}.item beside it, got another item file")
    table, _ = _read(path, settings)
    return table.select({"user_id": "user_id", "item_id": "item_id"}, {"rating": "rating", "timestamp": "timestamp"})


def _read_items(path: Path, settings: DataSettings) -> Table:
    table, types = _read(path, settings)
    texts = [name for name in table.columns if types[name].startswith("token") and name != "item_id"]
    if not texts:
        raise DataError(f"{path.name}: no text, wanted a column of type token or token_seq beside item_id")
    titles = [name for part in ("title", "name") for name in texts if part in name.lower()]
    title = (titles or texts)[0]
    further = {f"text {number}": name for number, name in enumerate(texts) if name != title}
    return table.select({"item_id": "item_id", "title": title, **further})


def _read_users(path: Path, settings: DataSettings) -> Table:
    table, types = _read(path, settings)
    attributes = {name: name for name in table.columns if types[name] == "token"}
    return table.select({"user_id": "user_id"}, attributes)


def _read(path: Path, settings: DataSettings) -> tuple[Table, dict[str, str]]:
    """Return the table under bare column names, and the type of each column."""
    table = read_delimited(path, _TABS, settings)
    types = {}
    for position, header in enumerate(table.columns, start=1):
        name, _, kind = header.partition(":")
        if kind not in _TYPES:
            raise DataError(f"{path.name} line 1: column {position} must be name:type, with type {', '.join(_TYPES)}")
        types[name] = kind
    names = [header.partition(":")[0] for header in table.columns]
    check_names(path.name, names)
    return dataclasses.replace(table, columns=dict(zip(names, table.columns.values(), strict=True))), types


LAYOUT = TableLayout(
    name="recbole",
    interaction_files=("*.inter",),
    item_files=("*.item",),
    user_files=("*.user",),
    read_interactions=_read_interactions,
    read_items=_read_items,
    read_users=_read_users,
)
