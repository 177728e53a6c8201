"""A public data set over a private one's catalogue: what a public warm start is meta-trained on.

Items are matched by title. People who are in both data sets are left out, so that a warm start holds none of the users
it is later judged on. That check reads the private interactions, and nothing else here does: it is there for an honest
evaluation. A coordinator without access to them cannot make it, and takes public data as it comes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.sparse import csr_array

from metarec_shared.dataset import RatingScale
from metarec_shared.errors import DataError
from metarec_shared.files import write_private_folder
from metarec_shared.packed import check_absent
from metarec_shared.readers.assemble import build_catalogue
from metarec_shared.readers.checks import interaction_faults, readable
from metarec_shared.readers.layout import TableLayout
from metarec_shared.readers.reading import layout_of
from metarec_shared.settings import DataSettings
from simulations.titles import normalized_title

_ROWS_AT_ONCE = 1024  # public users compared at once: bounds the memory of the comparison


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """What one public data set gave. A user whom several rules leave out counts for the first.

    Attributes:
        name: Name of its folder.
        users: Users who are left.
        interactions: Interactions that are left.
        matched_items: Items of the private catalogue that these are with.
        dropped_by_year: Users with a matched item whose first rating, of any item, lies in the year that is left out.
        dropped_by_overlap: Users who look like a private user.
        dropped_short: Users with too few matched interactions.
    """

    name: str
    users: int
    interactions: int
    matched_items: int
    dropped_by_year: int
    dropped_by_overlap: int
    dropped_short: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Tables:
    """A data set as it stands in its files: all text columns of its items, its interactions, its layout's scale."""

    name: str
    items: pd.DataFrame
    interactions: pd.DataFrame
    scale: RatingScale | None


def match_public_data(
    public: Sequence[Path],
    private: Path,
    out: Path,
    *,
    first_year: int | None = None,
    overlap: float = 0.6,
    least: int = 5,
) -> list[Source]:
    """Write the public interactions with items of the private catalogue as a data set over that catalogue.

    Of several public items with the title of one private item, a user's first rating in file order counts; of several
    private items with one title, the first item. Users are compared by the ratings as they stand; what is written lies
    on the scale of the private data's layout, where it fixes one: beyond it, the nearest end.

    Args:
        public: Folders of public data sets; a user's id becomes ``FOLDER-ID``.
        private: Folder of the private one.
        out: Folder to write: ``items.csv``, the private catalogue as it is, and ``interactions.csv``.
        first_year: Leave out users whose first rating lies in this year (UTC); None: nobody.
        overlap: Leave out a user of whose matched (item, rating) pairs a larger share are one private user's.
        least: Leave out users with fewer matched interactions.

    Returns:
        What each public data set gave, in the order of ``public``.

    Raises:
        DataError: A folder cannot be read, two have one name, nothing is left, or ``out`` cannot be written or is there
            already.
    """
    check_absent(out)
    theirs = _read(private)
    found = [_matched(_read(folder, timed=True), theirs, first_year, overlap, least) for folder in public]
    interactions = pd.concat([part for _, part in found])[["user_id", "item_id", "rating", "timestamp"]]
    if interactions["user_id"].nunique() < sum(source.users for source, _ in found):
        raise DataError("public folders: two have names under which their users' ids collide; rename one")
    if interactions.empty:
        raise DataError("public folders: no user is left; wanted titles that the private catalogue has too")
    if theirs.scale is not None:
        interactions["rating"] = interactions["rating"].clip(theirs.scale.low, theirs.scale.high)

    def write(folder: Path) -> None:
        theirs.items.to_csv(folder / "items.csv", index=False)
        interactions.to_csv(folder / "interactions.csv", index=False)

    try:
        write_private_folder(out, write)
    except OSError as error:
        raise DataError(f"{out}: cannot be written: {error.strerror or error}") from error
    return [source for source, _ in found]


def users_in_both(own: pd.DataFrame, theirs: pd.DataFrame, overlap: float) -> set[str]:
    """Return the users of ``own`` of whose (item, rating) pairs more than ``overlap`` are one user's of ``theirs``."""
    pairs = [frame["item_id"].astype(str) + " " + frame["rating"].astype(float).astype(str) for frame in (own, theirs)]
    codes, distinct = pd.factorize(pd.concat(pairs))
    ours, users = _one_hot(own["user_id"], codes[: len(own)], len(distinct))
    others, _ = _one_hot(theirs["user_id"], codes[len(own) :], len(distinct))
    same: set[str] = set()
    for start in range(0, len(users), _ROWS_AT_ONCE):
        rows = ours[start : start + _ROWS_AT_ONCE]
        shared = (rows @ others.T).max(axis=1).toarray().ravel()
        share = shared / np.asarray(rows.sum(axis=1)).ravel()
        same |= set(users[start : start + _ROWS_AT_ONCE][share > overlap])
    return same


def _matched(
    own: _Tables, theirs: _Tables, first_year: int | None, overlap: float, least: int
) -> tuple[Source, pd.DataFrame]:
    """Return what is left of one public data set, its items renamed to the private catalogue's."""
    matches = own.items.set_index("item_id")["title"].map(normalized_title).map(_ids_by_title(theirs.items)).dropna()
    rows = own.interactions.assign(
        user_id=own.name + "-" + own.interactions["user_id"], item_id=own.interactions["item_id"].map(matches)
    )
    from_year = _users_since(rows, first_year)
    rows = rows.dropna(subset=["item_id"]).drop_duplicates(["user_id", "item_id"])
    from_year &= set(rows["user_id"])
    same = users_in_both(rows, theirs.interactions, overlap) - from_year
    others = rows[~rows["user_id"].isin(from_year | same)]
    left = others[others.groupby("user_id")["item_id"].transform("size") >= least]
    source = Source(
        name=own.name,
        users=left["user_id"].nunique(),
        interactions=len(left),
        matched_items=left["item_id"].nunique(),
        dropped_by_year=len(from_year),
        dropped_by_overlap=len(same),
        dropped_short=others["user_id"].nunique() - left["user_id"].nunique(),
    )
    return source, left


def _one_hot(user_ids: "pd.Series[str]", codes: NDArray[np.int64], columns: int) -> tuple[csr_array, NDArray[np.str_]]:
    rows, users = pd.factorize(user_ids)
    matrix = csr_array((np.ones(len(rows)), (rows, codes)), shape=(len(users), columns))
    matrix.sum_duplicates()
    matrix.data[:] = 1.0  # a pair that stands there twice counts once
    return matrix, np.asarray(users, dtype=np.str_)


def _users_since(interactions: pd.DataFrame, year: int | None) -> set[str]:
    if year is None:
        return set()
    first = interactions.groupby("user_id")["timestamp"].min()
    bounds = [datetime(one, 1, 1, tzinfo=UTC).timestamp() for one in (year, year + 1)]
    return set(first[(first >= bounds[0]) & (first < bounds[1])].index)


def _ids_by_title(items: pd.DataFrame) -> dict[str, str]:
    """Return the item of each title; of several with one title, the first. Items without a title match none."""
    titles = items["title"].map(normalized_title)
    return {title: item for title, item in zip(titles[::-1], items["item_id"][::-1], strict=True) if title}


def _read(folder: Path, *, timed: bool = False) -> _Tables:
    layout, settings = layout_of(folder), DataSettings()
    if not isinstance(layout, TableLayout):
        raise DataError(f"{folder}: wanted a data set with titles, got layout {layout.name}")
    items_file, interactions_file = layout.find_items(folder), layout.find_interactions(folder)
    assert items_file is not None
    assert interactions_file is not None
    items, interactions = layout.read_items(items_file, settings), layout.read_interactions(interactions_file, settings)
    numbers = ("rating", "timestamp") if timed else ("rating",)
    for name in numbers:
        if name not in interactions.columns:
            raise DataError(f"{interactions_file}: no column {name}, which matching needs")
    build_catalogue(items, settings)
    interactions = readable(interactions, interaction_faults(interactions, layout.scale), settings)
    columns = {name: interactions.text(name).to_pylist() for name in ("user_id", "item_id")}
    return _Tables(
        name=folder.resolve().name,
        items=pd.DataFrame({name: items.text(name).to_pylist() for name in items.columns}),
        interactions=pd.DataFrame(columns | {name: interactions.numbers(name) for name in numbers}),
        scale=layout.scale,
    )
