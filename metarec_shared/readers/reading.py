"""Find out a folder's layout and read it."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from metarec_shared.catalogue import Catalogue
from metarec_shared.dataset import Dataset, Problem
from metarec_shared.errors import DataError
from metarec_shared.packed import DESCRIPTION_FILE, read_packed, read_packed_catalogue
from metarec_shared.readers import movielens_1m, movielens_100k, movielens_csv, own, recbole, source
from metarec_shared.readers.assemble import build_attributes, build_catalogue, build_interactions, set_scale
from metarec_shared.readers.layout import Layout, TableLayout
from metarec_shared.readers.table import Table
from metarec_shared.settings import DataSettings

PACKED = Layout(name="packed", interaction_files=("items.npy",), item_files=(DESCRIPTION_FILE,))
LAYOUTS: tuple[Layout, ...] = (
    movielens_1m.LAYOUT,
    movielens_100k.LAYOUT,
    movielens_csv.LAYOUT,
    recbole.LAYOUT,
    own.LAYOUT,
    source.LAYOUT,
    PACKED,
)


def read_dataset(directory: Path, settings: DataSettings) -> Dataset:
    """Read the interactions and items in a folder.

    Args:
        directory: Folder in one of the known layouts; its items are passed over where the settings name another
            folder for them.
        settings: What to do with rows that cannot be read, the ratings' scale where the layout does not fix it, and
            which attributes of users to read; where it names none, their file is not opened.

    Returns:
        Items in file order. Users sorted by id, by number where all ids are digits. Each history in time order where
        the data has timestamps, else in file order. The ratings' scale is None where neither layout nor settings
        fix it: what a node observes may differ from node to node. The interactions of a packed folder are read-only
        memory maps, those of any other lie in memory.

    Raises:
        DataError: The folder is missing, is in no known layout or in two, or its files cannot be read or used; or it
            has no attributes of users where some are wanted.
    """
    layout = layout_of(directory, interactions_only=bool(settings.catalogue))
    if isinstance(layout, TableLayout):
        return _read_tables(directory, layout, settings)
    if settings.catalogue:
        raise DataError(f"{directory}: a packed folder has its own items, which data.catalogue cannot replace")
    if settings.attribute_names:
        raise DataError(f"{directory}: a packed folder holds no attributes of users; data.user-attributes wants some")
    return _rescaled(read_packed(directory), settings)


def read_catalogue(directory: Path, settings: DataSettings) -> Catalogue:
    """Read only the items in a folder, which need not hold interactions; the catalogue equals ``read_dataset``'s.

    Raises:
        DataError: The folder is missing, is in no known layout or in two, or its items cannot be read.
    """
    return _read_items(directory, settings)[0]


def _read_items(directory: Path, settings: DataSettings) -> tuple[Catalogue, tuple[Problem, ...]]:
    layout = layout_of(directory, items_only=True)
    if not isinstance(layout, TableLayout):
        return read_packed_catalogue(directory), ()
    items_file = layout.find_items(directory)
    assert items_file is not None
    return build_catalogue(layout.read_items(items_file, settings), settings)


def _read_tables(directory: Path, layout: TableLayout, settings: DataSettings) -> Dataset:
    interactions_file = layout.find_interactions(directory)
    assert interactions_file is not None
    catalogue, item_problems = _read_items(Path(settings.catalogue or directory), settings)
    table = layout.read_interactions(interactions_file, settings)
    interactions, scale, problems = build_interactions(table, catalogue, layout.scale, settings)
    if settings.attribute_names:
        users = _read_users(directory, layout, settings)
        attributes, user_problems = build_attributes(users, interactions.user_ids, settings)
        interactions, problems = replace(interactions, attributes=attributes), problems + user_problems
    return Dataset(
        name=directory.resolve().name,
        layout=layout.name,
        catalogue=catalogue,
        interactions=interactions,
        rating_scale=scale,
        problems=item_problems + problems,
    )


def _read_users(directory: Path, layout: TableLayout, settings: DataSettings) -> Table:
    users_file = layout.find_users(directory)
    if layout.read_users is None or users_file is None:
        wish = f"wants {' or '.join(layout.user_files)}" if layout.user_files else f"layout {layout.name} has none"
        raise DataError(f"{directory}: no file of users for data.user-attributes = {settings.user_attributes}: {wish}")
    return layout.read_users(users_file, settings)


def _rescaled(dataset: Dataset, settings: DataSettings) -> Dataset:
    """Put a packed data set on the scale of the settings, if they fix one and there are ratings."""
    scale, ratings = set_scale(settings), dataset.interactions.ratings
    if scale is None or np.isnan(low := np.fmin.reduce(ratings)):
        return dataset
    for rating in (low, np.fmax.reduce(ratings)):
        if not scale.low <= rating <= scale.high:
            raise DataError(f"ratings.npy: rating must be between {scale.low:g} and {scale.high:g}, got '{rating:g}'")
    return replace(dataset, rating_scale=scale)


def layout_of(directory: Path, *, items_only: bool = False, interactions_only: bool = False) -> Layout:
    """Return the layout of a folder.

    Args:
        directory: The folder.
        items_only: Whether it may lack interactions.
        interactions_only: Whether it may lack items.

    Raises:
        DataError: The folder is missing, or is in no known layout or in two.
    """
    if not directory.is_dir():
        raise DataError(f"{directory}: {'is no folder' if directory.exists() else 'no such folder'}")
    if source.LAYOUT.find_interactions(directory):
        return source.LAYOUT  # it says where the data lies, whatever else lies beside it
    with_items = _claiming(directory, Layout.find_items)
    found = [layout for layout in with_items if layout.find_interactions(directory)]
    if items_only:
        found = found or with_items
    if interactions_only:
        found = found or _claiming(directory, Layout.find_interactions)
    if len(found) > 1:
        names = " and ".join(map(str, found))
        raise DataError(f"{directory}: the layout is ambiguous, the files fit {names}; keep the files of one")
    if not found:
        raise DataError(_nothing_found(directory, with_items))
    return found[0]


def _claiming(directory: Path, find: Callable[[Layout, Path], Path | None]) -> list[Layout]:
    claimed: dict[Path, Layout] = {}
    for layout in LAYOUTS:
        if file := find(layout, directory):
            claimed.setdefault(file, layout)  # u.item is MovieLens 100K's, though RecBole's *.item fits it
    return list(claimed.values())


def _nothing_found(directory: Path, with_items: list[Layout]) -> str:
    partial = with_items or [layout for layout in LAYOUTS if layout.find_interactions(directory)]
    if len(partial) == 1:
        missing = partial[0].interaction_files if with_items else partial[0].item_files
        return f"{directory}: layout {partial[0].name} also wants {' or '.join(missing)}, which is missing"
    return f"{directory}: unknown layout; the known ones are {'; '.join(map(str, LAYOUTS))}"
