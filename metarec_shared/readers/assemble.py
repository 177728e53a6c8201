"""Turn the tables of any layout into a catalogue and interactions, checking every row on the way."""

from collections.abc import Iterable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from metarec_shared.attributes import NOT_TOLD, attribute_hash
from metarec_shared.catalogue import Catalogue
from metarec_shared.dataset import MOST_PLACES, Problem, RatingScale
from metarec_shared.errors import DataError
from metarec_shared.interactions import Interactions, starts
from metarec_shared.readers.checks import id_faults, interaction_faults, readable
from metarec_shared.readers.table import Table
from metarec_shared.settings import DataSettings

_SHORTEST_TASK = 2  # one item to adapt to, one to be evaluated on


def build_catalogue(table: Table, settings: DataSettings) -> tuple[Catalogue, tuple[Problem, ...]]:
    """Build the catalogue from columns ``item_id``, ``title`` and further ones of text, in file order.

    Raises:
        DataError: There is no item, an item has no id, or two have the same one.
    """
    table = readable(table, id_faults(table, "item_id"), settings)
    if not len(table):
        raise DataError(f"{table.source}: holds no item")
    item_ids: list[str] = table.text("item_id").to_pylist()
    _check_unique(table.source, table.text("item_id"))
    names = [name for name in table.columns if name not in ("item_id", "title")]
    titles = [" ".join(title.split()) for title in table.text("title").to_pylist()]
    further = zip(*(table.text(name).to_pylist() for name in names), strict=True) if names else [()] * len(titles)
    texts = [_sentence(title, parts) for title, parts in zip(titles, further, strict=True)]
    problems = _skipped(table, "unreadable item rows") + _problems(
        ("items without text", texts.count(""), "their id stands in"),
    )
    catalogue = Catalogue(
        item_ids=tuple(item_ids),
        titles=tuple(title or item_id for title, item_id in zip(titles, item_ids, strict=True)),
        texts=tuple(text or item_id for text, item_id in zip(texts, item_ids, strict=True)),
    )
    return catalogue, problems


def build_interactions(
    table: Table, catalogue: Catalogue, layout_scale: RatingScale | None, settings: DataSettings
) -> tuple[Interactions, RatingScale | None, tuple[Problem, ...]]:
    """Build histories from columns ``user_id``, ``item_id`` and, where present, ``rating`` and ``timestamp``.

    Args:
        table: The interactions, in file order.
        catalogue: The items that interactions may be with; others are dropped.
        layout_scale: The ratings' scale where the layout fixes it.
        settings: May override the scale, and says whether unreadable rows are errors or are skipped.

    Returns:
        The interactions, the ratings' scale (None where nothing fixes it), and what was gone past.

    Raises:
        DataError: A row cannot be read, or nothing is left.
    """
    if not len(table) and not len(table.skipped):
        raise DataError(f"{table.source}: holds no interaction")
    scale = set_scale(settings) or layout_scale
    table = readable(table, interaction_faults(table, scale), settings)
    if not len(table):
        raise DataError(f"{table.source}: none of its {len(table.skipped):,} rows can be read as an interaction")
    rated, has_time = "rating" in table.columns, "timestamp" in table.columns
    ratings = table.numbers("rating") if rated else np.full(len(table), np.nan)
    times = table.numbers("timestamp") if has_time else np.zeros(len(table))
    user_ids, users = _users(table.text("user_id"))
    items = _positions(table.text("item_id"), catalogue)
    known = np.flatnonzero(items >= 0)
    if not len(known):
        raise DataError(f"{table.source}: none of its {len(table):,} interactions is with an item of the catalogue")
    _, firsts = np.unique(users[known] * len(catalogue) + items[known], return_index=True)
    rows = known[np.sort(firsts)]
    rows = rows[np.lexsort((times[rows], users[rows]))]  # stable: equal times stay in file order
    lengths = np.bincount(users[rows], minlength=len(user_ids))
    interactions = Interactions(
        user_ids=user_ids,
        offsets=starts(lengths),
        items=items[rows].astype(np.int32),
        ratings=ratings[rows].astype(np.float32),
        has_time=has_time,
    )
    problems = _skipped(table, "unreadable interaction rows") + _problems(
        ("interactions with unknown items", len(table) - len(known), "dropped"),
        ("duplicate interactions", len(known) - len(rows), "the first is kept"),
        ("short users", int((lengths < _SHORTEST_TASK).sum()), "kept, but too short to form a task"),
    )
    return interactions, scale if rated else None, problems


def build_attributes(
    table: Table, user_ids: NDArray[np.str_], settings: DataSettings
) -> tuple[NDArray[np.int64], tuple[Problem, ...]]:
    """Build the attributes of users from column ``user_id`` and the columns that the settings name.

    Args:
        table: The file of users; whom nobody asked for are passed over.
        user_ids: Whose attributes, [users].
        settings: Which columns, and whether unreadable rows are errors or are skipped.

    Returns:
        Hashes as ``attribute_hash`` makes them, int64 [users, columns], and what was gone past.

    Raises:
        DataError: A column is missing, a row cannot be read, or two are of one user.
    """
    names = settings.attribute_names
    table = table.select({"user_id": "user_id"} | {f"attribute {name}": name for name in names})
    table = readable(table, id_faults(table, "user_id"), settings)
    found = table.text("user_id")
    if len(found.unique()) < len(found):
        raise DataError(f"{table.source}: a user must have one row, got {len(found):,} rows of {len(found.unique()):,}")
    rows = pc.fill_null(pc.index_in(pa.array(user_ids.tolist(), pa.string()), value_set=found), -1).to_numpy()
    attributes = np.full((len(user_ids), len(names)), NOT_TOLD, dtype=np.int64)
    for column, name in enumerate(names):
        values = table.text(f"attribute {name}").dictionary_encode()
        hashes = np.array([attribute_hash(name, value) for value in values.dictionary.to_pylist()], dtype=np.int64)
        told = hashes[values.indices.to_numpy()] if len(hashes) else np.zeros(0, dtype=np.int64)
        attributes[rows >= 0, column] = told[rows[rows >= 0]]
    problems = _skipped(table, "unreadable user rows") + _problems(
        ("users without attributes", int((attributes == NOT_TOLD).all(axis=1).sum()), "told apart by history alone"),
    )
    return attributes, problems


def set_scale(settings: DataSettings) -> RatingScale | None:
    """Return the ratings' scale that the settings fix, None where they leave it to the layout."""
    if settings.rating_high > settings.rating_low:
        return RatingScale(low=settings.rating_low, high=settings.rating_high)
    return None


def _positions(item_ids: pa.StringArray, catalogue: Catalogue) -> NDArray[np.int64]:
    """Return the catalogue position of each item id, -1 where it has none."""
    found = pc.index_in(item_ids, value_set=pa.array(catalogue.item_ids))
    positions: NDArray[np.int64] = pc.fill_null(found, -1).to_numpy().astype(np.int64)
    return positions


def _users(column: pa.StringArray) -> tuple[NDArray[np.str_], NDArray[np.int64]]:
    """Return the distinct user ids, sorted, and the position of each row's user among them."""
    encoded = column.dictionary_encode()
    names: list[str] = encoded.dictionary.to_pylist()
    numbers = all(name.isascii() and name.isdigit() for name in names)
    order = sorted(range(len(names)), key=lambda user: _number_order(names[user]) if numbers else (0, names[user], ""))
    rank = np.empty(len(names), dtype=np.int64)
    rank[order] = np.arange(len(names))
    return np.array([names[user] for user in order], dtype=np.str_), rank[encoded.indices.to_numpy()]


def _number_order(digits: str) -> tuple[int, str, str]:
    significant = digits.lstrip("0")
    return len(significant), significant, digits


def _check_unique(source: str, item_ids: pa.StringArray) -> None:
    counts = pc.value_counts(item_ids)
    twice = [entry["values"] for entry in counts.filter(pc.greater(counts.field("counts"), 1)).to_pylist()]
    if twice:
        shown = ", ".join(twice[:5]) + (", …" if len(twice) > 5 else "")
        raise DataError(f"{source}: item ids must be unique, got more than one row for {shown}")


def _sentence(title: str, parts: Iterable[str]) -> str:
    """Join title and further texts, ended by full stops: ``"Toy Story (1995). Animation Comedy"``."""
    text = title
    for part in (" ".join(part.replace("|", " ").split()) for part in parts):
        if part:
            text += (" " if text.endswith((".", "!", "?")) else ". ") + part if text else part
    return text


def _skipped(table: Table, kind: str) -> tuple[Problem, ...]:
    count, places = len(table.skipped), table.skipped_places(MOST_PLACES)
    return (Problem(kind=kind, count=count, handling="skipped", places=places),) if count else ()


def _problems(*found: tuple[str, int, str]) -> tuple[Problem, ...]:
    return tuple(Problem(kind=kind, count=count, handling=handling) for kind, count, handling in found if count)
