"""Packed data sets: what is packed is read again, as memory maps, and nothing but what was packed."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from metarec_shared.dataset import Dataset, Problem, RatingScale
from metarec_shared.errors import DataError
from metarec_shared.fingerprint import data_fingerprint
from metarec_shared.generator import generate_dataset
from metarec_shared.packed import COLUMNS, read_packed, write_packed
from metarec_shared.readers import read_catalogue, read_dataset
from metarec_shared.settings import DataSettings, GeneratorSettings

DATASET = replace(
    generate_dataset(GeneratorSettings(users=30, items=40, interactions=9)),
    problems=(
        Problem(kind="duplicate interactions", count=3, handling="the first is kept"),
        Problem(kind="unreadable interaction rows", count=2, handling="skipped", places=("line 4", "line 9")),
    ),
)
USERS, INTERACTIONS = len(DATASET.interactions), len(DATASET.interactions.items)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return the folder of a packed data set."""
    write_packed(DATASET, tmp_path / "packed")
    return tmp_path / "packed"


def unrated(dataset: Dataset) -> Dataset:
    nothing = np.full_like(dataset.interactions.ratings, np.nan)
    return replace(dataset, rating_scale=None, interactions=replace(dataset.interactions, ratings=nothing))


def test_a_data_set_is_read_as_it_was_packed_under_the_name_of_its_folder(folder: Path) -> None:
    read = read_dataset(folder, DataSettings())
    assert read.name == "packed"
    assert read.layout == DATASET.layout
    assert read.catalogue == DATASET.catalogue
    assert (read.rating_scale, read.problems) == (RatingScale(low=1, high=5), DATASET.problems)
    assert read.interactions.has_time
    for name in COLUMNS:
        ours, theirs = getattr(read.interactions, name), getattr(DATASET.interactions, name)
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(ours, theirs)
    assert data_fingerprint(read) == data_fingerprint(DATASET)


def test_a_data_set_without_time_scale_and_ratings_is_read_so(tmp_path: Path) -> None:
    bare = unrated(DATASET)
    bare = replace(bare, interactions=replace(bare.interactions, has_time=False))
    write_packed(bare, tmp_path / "packed")
    read = read_packed(tmp_path / "packed")
    assert not read.interactions.has_time
    assert read.rating_scale is None
    assert np.isnan(read.interactions.ratings).all()


def test_interactions_are_memory_maps_that_nobody_can_write_to(folder: Path) -> None:
    histories = read_packed(folder).interactions
    for name in COLUMNS:
        column = getattr(histories, name)
        assert isinstance(column, np.memmap)
        assert not column.flags.writeable
    assert histories.items.dtype == np.int32


def test_a_data_set_packed_before_places_were_told_is_read(folder: Path) -> None:
    described = json.loads((folder / "packed.json").read_text())
    for problem in described["problems"]:
        del problem["places"]
    (folder / "packed.json").write_text(json.dumps(described))
    assert [problem.places for problem in read_packed(folder).problems] == [(), ()]


def test_a_packed_data_set_can_be_packed_again(folder: Path, tmp_path: Path) -> None:
    write_packed(read_packed(folder), tmp_path / "again")
    for path in folder.iterdir():
        assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes()


def test_the_catalogue_is_read_without_interactions(folder: Path) -> None:
    for name in COLUMNS:
        (folder / f"{name}.npy").unlink()
    assert read_catalogue(folder, DataSettings()) == DATASET.catalogue


def test_only_the_owner_may_read_a_packed_data_set(folder: Path) -> None:
    assert folder.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o600}
    assert {path.name for path in folder.iterdir()} == {"packed.json", *(f"{name}.npy" for name in COLUMNS)}


@pytest.mark.parametrize("make", [Path.mkdir, Path.touch, lambda path: path.symlink_to("nowhere")])
def test_what_exists_is_not_overwritten(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / "packed")
    with pytest.raises(DataError, match="packed: exists already; remove it, or choose another folder"):
        write_packed(DATASET, tmp_path / "packed")
    assert [path.name for path in tmp_path.iterdir()] == ["packed"]


def test_a_folder_that_cannot_be_written_is_an_error_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(DataError, match="packed: cannot be written: No space left on device"):
        write_packed(DATASET, tmp_path / "packed")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", COLUMNS)
def test_a_file_cut_short_is_an_error(folder: Path, name: str) -> None:
    path = folder / f"{name}.npy"
    whole = path.read_bytes()
    for size in (0, 5, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(DataError, match=rf"^{name}.npy: damaged, cut short, or no NumPy file$"):
            read_dataset(folder, DataSettings())


@pytest.mark.parametrize("content", [b"PK\x03\x04 a zip", b"1,2,3\n", b"\x93NUMPY\x01\x00\x10\x00{'descr': (((( \n"])
def test_a_file_that_is_no_numpy_file_is_an_error(folder: Path, content: bytes) -> None:
    (folder / "ratings.npy").write_bytes(content)
    with pytest.raises(DataError, match=r"^ratings.npy: damaged, cut short, or no NumPy file$"):
        read_packed(folder)


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("items", np.zeros(INTERACTIONS, np.int64), "items.npy: must hold int32, got int64"),
        ("ratings", np.zeros(INTERACTIONS), "ratings.npy: must hold float32, got float64"),
        ("user_ids", np.arange(USERS), "user_ids.npy: must hold text, got int64"),
        ("user_ids", np.array(["u"]), f"user_ids.npy: packed.json wants {USERS} values, got shape (1,)"),
        ("items", np.zeros(3, np.int32), f"items.npy: packed.json wants {INTERACTIONS} values, got shape (3,)"),
        (
            "ratings",
            np.zeros((INTERACTIONS, 1), np.float32),
            f"ratings.npy: packed.json wants {INTERACTIONS} values, got shape ({INTERACTIONS}, 1)",
        ),
        ("items", np.full(INTERACTIONS, 40, np.int32), "items.npy: holds positions outside the catalogue of 40 items"),
        ("items", np.full(INTERACTIONS, -1, np.int32), "items.npy: holds positions outside the catalogue of 40 items"),
        ("offsets", np.arange(USERS + 1), f"offsets.npy: must rise from 0 to the {INTERACTIONS} interactions"),
        ("offsets", np.full(USERS + 1, INTERACTIONS), f"offsets.npy: must rise from 0 to the {INTERACTIONS} inter"),
        (
            "offsets",
            np.array([0, INTERACTIONS + 1, *([INTERACTIONS] * (USERS - 1))]),
            f"offsets.npy: must rise from 0 to the {INTERACTIONS} interactions",
        ),
    ],
)
def test_a_column_of_another_data_set_is_an_error(folder: Path, column: str, values: Any, message: str) -> None:
    np.save(folder / f"{column}.npy", values)
    with pytest.raises(DataError, match=f"^{re.escape(message)}"):
        read_dataset(folder, DataSettings())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "damaged, cut short, or not written by metarec data pack"),
        ('{"format": 1, "us', "damaged, cut short, or not written by metarec data pack"),
        ('{"name": "something else"}', "damaged, cut short, or not written by metarec data pack"),
        ("[1]", "damaged, cut short, or not written by metarec data pack"),
        ('{"format": 2}', "format 2 is not the format 1 that this version reads"),
        ('{"format": 1}', "is not what metarec data pack writes: "),
    ],
)
def test_a_foreign_description_is_an_error(folder: Path, content: str, message: str) -> None:
    (folder / "packed.json").write_text(content)
    for read in (read_dataset, read_catalogue):
        with pytest.raises(DataError, match=f"^packed.json: {message}"):
            read(folder, DataSettings())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"users": 29}, "user_ids.npy: packed.json wants 29 values, got shape (30,)"),
        ({"users": "30"}, "packed.json: is not what metarec data pack writes: users must be a count, got '30'"),
        ({"interactions": -1}, "packed.json: is not what metarec data pack writes: interactions must be a count"),
        ({"items": 41}, "packed.json: is not what metarec data pack writes: the catalogue does not hold the 41 items"),
        ({"rating_scale": [1]}, "packed.json: is not what metarec data pack writes: "),
        ({"problems": [{"kind": "x"}]}, "packed.json: is not what metarec data pack writes: "),
        (
            {"catalogue": {"item_ids": [1], "titles": ["a"], "texts": ["a"]}},
            "packed.json: is not what metarec data pack writes: item_ids must be a list of texts",
        ),
        (
            {"items": 2, "catalogue": {"item_ids": ["a", "a"], "titles": ["a", "b"], "texts": ["a", "b"]}},
            "packed.json: is not what metarec data pack writes: item ids must be unique",
        ),
    ],
)
def test_a_description_that_does_not_fit_is_an_error(folder: Path, change: dict[str, Any], message: str) -> None:
    path = folder / "packed.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(DataError, match=f"^{re.escape(message)}"):
        read_packed(folder)


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("packed.json", "layout packed also wants packed.json, which is missing"),
        ("items.npy", "layout packed also wants items.npy, which is missing"),
        ("ratings.npy", "ratings.npy: missing from "),
    ],
)
def test_a_missing_file_is_named(folder: Path, missing: str, message: str) -> None:
    (folder / missing).unlink()
    with pytest.raises(DataError, match=message):
        read_dataset(folder, DataSettings())


def test_a_packed_data_set_beside_another_is_ambiguous(folder: Path) -> None:
    (folder / "items.csv").write_text("item_id,title\n1,a\n")
    (folder / "interactions.csv").write_text("user_id,item_id\nu,1\n")
    for read in (read_dataset, read_catalogue):
        with pytest.raises(DataError, match=r"the layout is ambiguous, .* own .* and packed \(items.npy with packed"):
            read(folder, DataSettings())


def test_the_rating_scale_of_the_settings_overrides_the_packed_one(folder: Path) -> None:
    read = read_dataset(folder, DataSettings(rating_low=0, rating_high=10))
    assert read.rating_scale == RatingScale(low=0, high=10)
    assert isinstance(read.interactions.ratings, np.memmap)


@pytest.mark.parametrize(("low", "high", "rating"), [(2, 5, 1), (1, 4.5, 5)])
def test_ratings_outside_the_scale_of_the_settings_are_an_error(
    folder: Path, low: float, high: float, rating: int
) -> None:
    message = rf"^ratings.npy: rating must be between {low:g} and {high:g}, got '{rating}'$"
    with pytest.raises(DataError, match=message):
        read_dataset(folder, DataSettings(rating_low=low, rating_high=high))


def test_without_ratings_the_settings_set_no_scale(tmp_path: Path) -> None:
    write_packed(unrated(DATASET), tmp_path / "packed")
    assert read_dataset(tmp_path / "packed", DataSettings(rating_low=0, rating_high=10)).rating_scale is None
