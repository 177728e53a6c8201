"""Public data over a private catalogue: titles, people in both, and what is written."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from metarec_shared.errors import DataError
from metarec_shared.settings import Settings
from metarec_shared.sources import load_item_features
from simulations.public_data import match_public_data, users_in_both
from simulations.public_data_cli import match_app
from simulations.titles import normalized_title

PAIRS_OF_ONE = 20
Row = tuple[str, int, float, int]


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ("Matrix, The (1999)", "The Matrix (1999)"),
        ("Matrix, The (1999)", "matrix,  the (1999) "),
        ("Beautiful Mind, A (2001)", "A Beautiful Mind (2001)"),
        ("Amélie (2001)", "Amelie (2001)"),
        ("Fabuleux destin d'Amélie Poulain, Le (Amelie) (2001)", "Le Fabuleux Destin d'Amelie Poulain (2001)"),
        ("Tom & Viv (1994)", "Tom and Viv (1994)"),
        ("Léon: The Professional (1994)", "Leon - The Professional (1994)"),
        ("Alien³ (1992)", "Alien 3 (1992)"),
    ],
)
def test_two_spellings_of_a_title_are_one(left: str, right: str) -> None:
    assert normalized_title(left) == normalized_title(right)


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ("Sabrina (1954)", "Sabrina (1995)"),
        ("Alien (1979)", "Aliens (1979)"),
        ("Seven (1995)", "Seven"),
        ("七人の侍 (1954)", "山椒大夫 (1954)"),
        ("!!! (2000)", "$ (2000)"),
    ],
)
def test_two_titles_stay_two(left: str, right: str) -> None:
    assert normalized_title(left) != normalized_title(right)


def folder(path: Path, items: list[str], rows: list[Row]) -> Path:
    path.mkdir(parents=True)
    described = {"item_id": range(len(items)), "title": items, "genres": ['Drama|"New, Wave"'] * len(items)}
    pd.DataFrame(described).to_csv(path / "items.csv", index=False)
    frame = pd.DataFrame(rows, columns=["user_id", "item_id", "rating", "timestamp"])
    frame.to_csv(path / "interactions.csv", index=False)
    return path


def written(path: Path) -> pd.DataFrame:
    return pd.read_csv(path / "interactions.csv", dtype={"user_id": str, "item_id": str})


TITLES = [f"Film {number}, The (19{number:02d})" for number in range(40)]
IN_2000, IN_2001 = 955_000_000, 985_000_000


@pytest.fixture
def data(tmp_path: Path) -> tuple[Path, Path]:
    """Make a private data set of two users, and a public one that holds one of them under another name."""
    rng = np.random.default_rng(0)
    ratings = rng.integers(1, 6, PAIRS_OF_ONE)
    one = [("7", item, float(rating), IN_2000) for item, rating in enumerate(ratings)]
    other = [("8", item, 3.0, IN_2000) for item in range(20, 40)]
    private = folder(tmp_path / "private", TITLES, one + other)

    def like_one(user: str, share: float, when: int = IN_2001) -> list[Row]:
        same = round(share * PAIRS_OF_ONE)
        return [
            (user, 39 - item, float(rating) if item < same else float(rating) % 5 + 1, when)
            for item, rating in enumerate(ratings)
        ]

    reversed_titles = [title.replace("Film", "film").replace(", The", "") for title in TITLES[::-1]]
    reversed_titles = ["The " + title for title in reversed_titles]
    rows = like_one("1", 0.7) + like_one("2", 0.5) + like_one("3", 0.0, IN_2000) + like_one("4", 0.0)[:3]
    return private, folder(tmp_path / "public", reversed_titles, rows)


def test_people_in_both_data_sets_are_left_out(data: tuple[Path, Path], tmp_path: Path) -> None:
    private, public = data
    (source,) = match_public_data([public], private, tmp_path / "out", first_year=2000)
    assert (source.dropped_by_overlap, source.dropped_by_year, source.dropped_short) == (1, 1, 1)
    assert (source.users, source.interactions, source.matched_items) == (1, 20, 20)
    left = written(tmp_path / "out")
    assert set(left["user_id"]) == {"public-2"}
    assert set(left["item_id"]) == {str(item) for item in range(20)}


def test_the_first_rating_may_be_of_an_item_that_is_not_matched(tmp_path: Path) -> None:
    private = folder(tmp_path / "private", TITLES, [("7", 0, 1.0, IN_2000)])
    rows = [("1", 40, 5.0, IN_2000), *(("1", item, 4.0, IN_2001) for item in range(9))]
    rows += [("2", item, 4.0, IN_2001) for item in range(9)]
    public = folder(tmp_path / "public", [*TITLES, "Another (2000)"], rows)
    (source,) = match_public_data([public], private, tmp_path / "out", first_year=2000)
    assert (source.users, source.dropped_by_year) == (1, 1)


def test_the_share_is_of_the_matched_pairs_only(data: tuple[Path, Path], tmp_path: Path) -> None:
    private, _ = data
    theirs = written(private)
    same = [("1", int(row.item_id), float(row.rating), IN_2001) for row in theirs.head(7).itertuples()]
    unknown = [("1", item, 5.0, IN_2001) for item in range(40, 60)]
    harmless = [("2", item, 0.5, IN_2001) for item in range(9)]
    public = folder(tmp_path / "more", TITLES + [f"Another {n} (2010)" for n in range(20)], same + unknown + harmless)
    (source,) = match_public_data([public], private, tmp_path / "out")
    assert (source.users, source.dropped_by_overlap) == (1, 1)


def test_the_share_is_of_the_public_users_own_pairs() -> None:
    own = pd.DataFrame({"user_id": ["a"] * 10 + ["b"] * 10, "item_id": [*range(10)] * 2, "rating": [5.0] * 20})
    theirs = pd.DataFrame({"user_id": ["x"] * 7 + ["y"] * 100, "item_id": [*range(7), *range(20, 120)], "rating": 5.0})
    theirs.loc[6, "rating"] = 4.0  # six of ten are left: not more than 60%
    assert users_in_both(own, theirs, 0.6) == set()
    assert users_in_both(own, pd.concat([theirs, theirs]), 0.6) == set()
    theirs.loc[6, "rating"] = 5.0
    assert users_in_both(own, theirs, 0.6) == {"a", "b"}


def test_half_stars_equal_no_whole_ones_and_are_written_on_the_private_scale(tmp_path: Path) -> None:
    private = tmp_path / "ml"
    private.mkdir()
    (private / "movies.dat").write_text("".join(f"{n}::{t}::Drama\n" for n, t in enumerate(TITLES)), encoding="latin-1")
    (private / "ratings.dat").write_text("".join(f"7::{item}::1::0\n" for item in range(9)))
    public = folder(tmp_path / "public", TITLES, [("1", item, 0.5, IN_2001) for item in range(9)])
    (source,) = match_public_data([public], private, tmp_path / "out")
    assert source.dropped_by_overlap == 0
    assert set(written(tmp_path / "out")["rating"]) == {1.0}


def test_users_of_two_sources_with_one_id_stay_two(data: tuple[Path, Path], tmp_path: Path) -> None:
    private, public = data
    twin = folder(tmp_path / "twin", TITLES, [("2", item, 0.5, IN_2001) for item in range(9)])
    match_public_data([public, twin], private, tmp_path / "out", first_year=2000)
    assert set(written(tmp_path / "out")["user_id"]) == {"public-2", "twin-2"}


def test_sources_of_one_name_are_refused(data: tuple[Path, Path], tmp_path: Path) -> None:
    private, public = data
    with pytest.raises(DataError, match="ids collide; rename one"):
        match_public_data([public, public], private, tmp_path / "out")


def test_of_several_items_with_one_title_the_first_counts(tmp_path: Path) -> None:
    private = folder(tmp_path / "private", [*TITLES[:6], TITLES[0], ""], [("7", 5, 1.0, IN_2000)])
    rows = [("1", item, 5.0 - item / 2, IN_2001) for item in range(8)]
    public = folder(tmp_path / "public", [TITLES[0], *TITLES[:6], ""], rows)
    match_public_data([public], private, tmp_path / "out")
    left = written(tmp_path / "out")
    assert list(left["item_id"]) == ["0", "1", "2", "3", "4", "5"]
    assert list(left["rating"]) == [5.0, 4.0, 3.5, 3.0, 2.5, 2.0]


def test_the_catalogue_is_the_private_one(data: tuple[Path, Path], tmp_path: Path) -> None:
    private, public = data
    match_public_data([public], private, tmp_path / "out")
    found = [
        load_item_features(
            Settings().with_values({"data.path": str(path), "text.encoder": "builtin", "text.builtin-steps": 1}, "test")
        ).fingerprint
        for path in (private, tmp_path / "out")
    ]
    assert found[0] == found[1]


def test_nothing_is_written_over(data: tuple[Path, Path], tmp_path: Path) -> None:
    private, public = data
    with pytest.raises(DataError, match="exists already"):
        match_public_data([public], private, private)
    with pytest.raises(DataError, match="no such folder"):
        match_public_data([tmp_path / "nowhere"], private, tmp_path / "out")
    with pytest.raises(DataError, match="no user is left"):
        match_public_data([public], private, tmp_path / "out", least=100)
    assert not (tmp_path / "out").exists()


def test_a_write_that_fails_leaves_nothing(
    data: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    private, public = data
    before = set(tmp_path.iterdir())

    def full(frame: pd.DataFrame, path: Path, **_: object) -> None:
        path.write_text("half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pd.DataFrame, "to_csv", full)
    with pytest.raises(DataError, match="out: cannot be written: No space left on device"):
        match_public_data([public], private, tmp_path / "out")
    assert set(tmp_path.iterdir()) == before


def test_the_command_says_what_was_left_out(data: tuple[Path, Path], tmp_path: Path) -> None:
    private, public = data
    out = tmp_path / "out"
    result = CliRunner().invoke(
        match_app, [str(public), "--onto", str(private), "--out", str(out), "--drop-first-year", "2000"]
    )
    assert result.exit_code == 0, result.output
    assert "public: 1 users, 20 interactions with 20 items" in result.output
    assert "left out 1 by the year, 1 by overlap, 1 with too few" in result.output


def test_no_user_of_ml_1m_is_left_in_its_public_warm_start(real_data: Callable[[str], Path], tmp_path: Path) -> None:
    ml_1m = real_data("ml-1m")
    sources = match_public_data(
        [real_data("ml-100k"), real_data("ml-latest-small")], ml_1m, tmp_path / "out", first_year=2000
    )
    left = written(tmp_path / "out")
    assert sum(source.users for source in sources) == left["user_id"].nunique() >= 1000
    theirs = pd.read_csv(ml_1m / "ratings.dat", sep=":", header=None, usecols=[0, 2, 4])
    theirs.columns = pd.Index(["user", "item", "rating"])
    by_pair = {
        (str(item), float(rating)): users.to_numpy()
        for (item, rating), users in theirs.groupby(["item", "rating"])["user"]
    }
    pairs = {user: set(zip(rows["item_id"], rows["rating"], strict=True)) for user, rows in left.groupby("user_id")}
    for own in pairs.values():
        shared = np.bincount(
            np.concatenate([by_pair[pair] for pair in own if pair in by_pair] + [[0]]).astype(np.int64)
        )
        assert shared[1:].max(initial=0) <= 0.6 * len(own)
    raw = pd.read_csv(real_data("ml-latest-small") / "ratings.csv")
    first = pd.to_datetime(raw.groupby("userId")["timestamp"].min(), unit="s").dt.year
    of_2000 = {f"ml-latest-small-{user}" for user in first[first == 2000].index}
    assert len(of_2000) >= 24
    assert sources[1].dropped_by_year <= len(of_2000)
    assert not of_2000 & set(left["user_id"])
