"""Interactions survive writing, packing and reading; choosing users and items keeps the rest as it was."""

import csv
import hashlib
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metarec_shared import fingerprint
from metarec_shared import interactions as interactions_module
from metarec_shared.catalogue import Catalogue
from metarec_shared.dataset import Dataset
from metarec_shared.fingerprint import data_fingerprint
from metarec_shared.interactions import Interactions
from metarec_shared.packed import read_packed, write_packed
from metarec_shared.readers import read_dataset
from metarec_shared.settings import DataSettings

ITEM_COUNT = 6
# What a spreadsheet may write: any letters, marks and quotes, but no control characters, and no spaces at the ends.
IDS = st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"]), min_size=1, max_size=5)
CATALOGUE = Catalogue(*(tuple(f"{name} {n}" for n in range(ITEM_COUNT)) for name in ("id", "title", "text")))
HISTORY = st.lists(st.tuples(st.integers(0, ITEM_COUNT - 1), st.integers(1, 5)), unique_by=lambda pair: pair[0])


@st.composite
def interactions(draw: st.DrawFn) -> Interactions:
    histories = draw(st.lists(HISTORY, min_size=1, max_size=6))
    flat = [pair for history in histories for pair in history]
    return Interactions(
        user_ids=np.array([f"user {number}" for number in range(len(histories))]),
        offsets=np.cumsum([0, *map(len, histories)]).astype(np.int64),
        items=np.array([item for item, _ in flat], dtype=np.int64),
        ratings=np.array([rating for _, rating in flat], dtype=np.float32),
        has_time=True,
    )


@given(
    item_ids=st.lists(IDS, min_size=ITEM_COUNT, max_size=ITEM_COUNT, unique=True),
    histories=st.dictionaries(IDS, HISTORY.filter(bool), min_size=1, max_size=5),
    shuffle=st.randoms(use_true_random=False),
)
@settings(deadline=None)
def test_what_is_written_is_read(item_ids: list[str], histories: dict[str, list[tuple[int, int]]], shuffle) -> None:  # type: ignore[no-untyped-def]
    rows = [
        (user, item_ids[item], rating, time)
        for user, history in histories.items()
        for time, (item, rating) in enumerate(history)
    ]
    shuffle.shuffle(rows)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _write(folder / "items.csv", [("item_id", "title"), *((item_id, "") for item_id in item_ids)])
        _write(folder / "interactions.csv", [("user_id", "item_id", "rating", "timestamp"), *rows])
        dataset = read_dataset(folder, DataSettings())
    read = dataset.interactions
    assert dataset.catalogue.item_ids == tuple(item_ids)
    assert set(read.user_ids) == set(histories)
    for position, user in enumerate(read.user_ids):
        ratings = read.ratings[read.offsets[position] : read.offsets[position + 1]]
        assert list(zip(read.history(position), ratings, strict=True)) == histories[str(user)]


@given(data=st.data(), whole=interactions())
@settings(deadline=None)
def test_taking_users_keeps_their_histories_in_the_order_asked_for(data: st.DataObject, whole: Interactions) -> None:
    users = np.array(data.draw(st.lists(st.integers(0, len(whole) - 1))), dtype=np.int64)
    taken = whole.take(users)
    assert len(taken) == len(users)
    assert taken.offsets[0] == 0
    for position, user in enumerate(users):
        assert taken.user_ids[position] == whole.user_ids[user]
        assert taken.history(position).tolist() == whole.history(int(user)).tolist()
    assert taken.ratings.shape == taken.items.shape


@given(data=st.data(), whole=interactions())
@settings(deadline=None)
def test_keeping_items_drops_the_others_and_renumbers(data: st.DataObject, whole: Interactions) -> None:
    positions = np.array(data.draw(st.permutations(range(ITEM_COUNT)))[: data.draw(st.integers(0, ITEM_COUNT))], int)
    kept = whole.keep_items(positions, ITEM_COUNT)
    assert len(kept) == len(whole)
    for user in range(len(whole)):
        expected = [item for item in whole.history(user) if item in positions]
        assert positions[kept.history(user)].tolist() == expected


@given(data=st.data(), whole=interactions(), chunk=st.integers(1, 4))
@settings(deadline=None)
def test_maps_of_int32_give_what_int64_in_memory_gives(data: st.DataObject, whole: Interactions, chunk: int) -> None:
    users = np.array(data.draw(st.lists(st.integers(0, len(whole) - 1))), dtype=np.int64)
    positions = np.array(data.draw(st.permutations(range(ITEM_COUNT)))[: data.draw(st.integers(0, ITEM_COUNT))], int)
    expected = whole.take(users), whole.keep_items(positions, ITEM_COUNT)
    with _packed(whole) as mapped, pytest.MonkeyPatch.context() as patch:
        patch.setattr(interactions_module, "_CHUNK", chunk)
        for ours, theirs in zip((mapped.take(users), mapped.keep_items(positions, ITEM_COUNT)), expected, strict=True):
            assert ours.items.dtype == np.int32
            assert not isinstance(ours.items, np.memmap)
            for name in ("user_ids", "offsets", "items", "ratings"):
                np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name))
        for user in range(len(whole)):
            assert mapped.history(user).dtype == np.int64
            assert mapped.history(user).flags.writeable
            np.testing.assert_array_equal(mapped.history(user), whole.history(user))


@given(whole=interactions(), chunk=st.integers(1, 4))
@settings(deadline=None)
def test_the_fingerprint_is_that_of_the_whole_columns_whatever_the_integers_and_the_chunks(
    whole: Interactions, chunk: int
) -> None:
    digest = hashlib.blake2b(CATALOGUE.fingerprint.encode(), digest_size=16)
    digest.update("\x1f".join((*CATALOGUE.titles, *whole.user_ids.tolist())).encode())
    for column in (whole.offsets, whole.items, whole.ratings):
        digest.update(column.tobytes())
    with _packed(whole) as mapped, pytest.MonkeyPatch.context() as patch:
        patch.setattr(fingerprint, "_CHUNK", chunk)
        for histories in (whole, replace(whole, items=whole.items.astype(np.int32)), mapped):
            assert data_fingerprint(_dataset(histories)) == digest.hexdigest()


@contextmanager
def _packed(histories: Interactions) -> Iterator[Interactions]:
    """Yield the same histories as memory maps."""
    with tempfile.TemporaryDirectory() as name:
        write_packed(_dataset(histories), Path(name) / "packed")
        yield read_packed(Path(name) / "packed").interactions


def _dataset(histories: Interactions) -> Dataset:
    return Dataset(name="x", layout="own", catalogue=CATALOGUE, interactions=histories, rating_scale=None)


def _write(path: Path, rows: list[tuple[object, ...]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
