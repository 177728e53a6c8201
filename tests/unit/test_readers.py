"""Reading folders of data: every layout, everything that can be wrong with one."""

import gzip
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from metarec_shared.dataset import Dataset, Problem, RatingScale
from metarec_shared.errors import DataError
from metarec_shared.packed import write_packed
from metarec_shared.readers import read_catalogue, read_dataset
from metarec_shared.readers.delimited import CSV, read_delimited
from metarec_shared.settings import DataSettings

SKIP = DataSettings(on_bad_rows="skip")
ITEMS = "item_id,title,genre\n007,Toy Story (1995),Animation|Comedy\nx,Heat,\n"
INTERACTIONS = "user_id,item_id,rating,timestamp\nu1,007,5,20\nu1,x,3,10\nu0,x,1,5\nu0,007,2,5\n"

LAYOUT_FILES = {
    "movielens-1m": {
        "ratings.dat": "10::7::5::20\n10::8::3::10\n9::8::1::5\n",
        "movies.dat": "7::Star Wars: Am\xe9lie (1995)::Animation|Children's\n8::Heat (1995)::Crime\n",
    },
    "movielens-100k": {
        "u.data": "10\t7\t5\t20\n10\t8\t3\t10\n9\t8\t1\t5\n",
        "u.item": "7|Star Wars: Am\xe9lie (1995)|01-Jan-1995||http://a|0|1|1\n8|Heat (1995)|||http://b|0|0|0\n\n",
        "u.genre": "unknown|0\nAnimation|1\nChildren's|2\n\n",
    },
    "movielens-csv": {
        "ratings.csv": "userId,movieId,rating,timestamp\n10,7,5.0,20\n10,8,3.0,10\n9,8,1.0,5\n",
        "movies.csv": 'movieId,title,genres\n7,"Star Wars: Amélie (1995)",Animation|Children\'s\n'
        "8,Heat (1995),(no genres listed)\n",
    },
    "recbole": {
        "film.inter": "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"
        "10\t7\t5\t20\n10\t8\t3\t10\n9\t8\t1\t5\n",
        "film.item": "item_id:token\tyear:float\tclass:token_seq\tmovie_title:token_seq\n"
        "7\t1995\tAnimation Children's\tStar Wars: Amélie (1995)\n8\t1995\t\tHeat (1995)\n",
    },
    "own": {
        "interactions.csv": "timestamp,item_id,user_id,rating\n20,7,10,5\n10,8,10,3\n5,8,9,1\n",
        "items.csv": "item_id,title,genre\n7,Star Wars: Amélie (1995),Animation|Children's\n8,Heat (1995),\n",
    },
}


def write(folder: Path, files: dict[str, str]) -> Path:
    for name, content in files.items():
        latin = name.endswith(".dat") or name.startswith("u.")
        (folder / name).write_bytes(content.encode("latin-1" if latin else "utf-8"))
    return folder


def own(folder: Path, *, interactions: str = INTERACTIONS, items: str = ITEMS) -> Path:
    return write(folder, {"interactions.csv": interactions, "items.csv": items})


def histories(dataset: Dataset) -> dict[str, list[str]]:
    rows = dataset.interactions
    return {
        str(user): [dataset.catalogue.item_ids[item] for item in rows.history(position)]
        for position, user in enumerate(rows.user_ids)
    }


def problems(dataset: Dataset) -> list[str]:
    return [str(problem) for problem in dataset.problems]


@pytest.mark.parametrize("layout", LAYOUT_FILES)
def test_every_layout_gives_the_same_data(tmp_path: Path, layout: str) -> None:
    dataset = read_dataset(write(tmp_path, LAYOUT_FILES[layout]), DataSettings())
    assert dataset.layout == layout
    assert dataset.name == tmp_path.name
    assert dataset.catalogue.titles == ("Star Wars: Amélie (1995)", "Heat (1995)")
    assert dataset.catalogue.texts[0] == "Star Wars: Amélie (1995). Animation Children's"
    assert histories(dataset) == {"9": ["8"], "10": ["8", "7"]}
    assert list(dataset.interactions.user_ids) == ["9", "10"]
    assert dataset.interactions.ratings.tolist() == [1, 3, 5]
    assert dataset.interactions.has_time
    assert problems(dataset) == ["1 short users: kept, but too short to form a task"]


@pytest.mark.parametrize("layout", LAYOUT_FILES)
def test_a_catalogue_needs_no_interactions_and_equals_the_dataset_s(tmp_path: Path, layout: str) -> None:
    folder = write(tmp_path, LAYOUT_FILES[layout])
    expected = read_dataset(folder, DataSettings()).catalogue
    assert read_catalogue(folder, DataSettings()) == expected
    (folder / next(iter(LAYOUT_FILES[layout]))).unlink()
    assert read_catalogue(folder, DataSettings()) == expected


@pytest.mark.parametrize(
    ("layout", "scale"),
    [
        ("movielens-1m", RatingScale(low=1, high=5)),
        ("movielens-100k", RatingScale(low=1, high=5)),
        ("movielens-csv", RatingScale(low=0.5, high=5)),
        ("recbole", None),
        ("own", None),
    ],
)
def test_only_a_layout_that_fixes_it_has_a_rating_scale(tmp_path: Path, layout: str, scale: RatingScale | None) -> None:
    assert read_dataset(write(tmp_path, LAYOUT_FILES[layout]), DataSettings()).rating_scale == scale


def test_the_rating_scale_of_the_settings_overrides_the_layout_s(tmp_path: Path) -> None:
    folder = write(tmp_path, LAYOUT_FILES["movielens-1m"])
    settings = DataSettings(rating_low=0, rating_high=10)
    assert read_dataset(folder, settings).rating_scale == RatingScale(low=0, high=10)


def test_without_ratings_and_timestamps_there_is_no_scale_and_file_order_stands(tmp_path: Path) -> None:
    dataset = read_dataset(own(tmp_path, interactions="user_id,item_id\nu,x\nu,007\n"), DataSettings())
    assert dataset.rating_scale is None
    assert np.isnan(dataset.interactions.ratings).all()
    assert not dataset.interactions.has_time
    assert histories(dataset) == {"u": ["x", "007"]}


def test_ids_stay_strings_and_equal_times_stay_in_file_order(tmp_path: Path) -> None:
    dataset = read_dataset(own(tmp_path), DataSettings())
    assert dataset.catalogue.item_ids == ("007", "x")
    assert histories(dataset) == {"u0": ["x", "007"], "u1": ["x", "007"]}


def test_users_sort_as_strings_unless_all_ids_are_digits(tmp_path: Path) -> None:
    rows = "".join(f"{user},{item}\n" for user in ("10", "9", "009", "a") for item in ("x", "007"))
    mixed = read_dataset(own(tmp_path, interactions="user_id,item_id\n" + rows), DataSettings())
    assert list(mixed.interactions.user_ids) == ["009", "10", "9", "a"]
    digits = read_dataset(own(tmp_path, interactions="user_id,item_id\n" + rows.replace("a,", "8,")), DataSettings())
    assert list(digits.interactions.user_ids) == ["8", "009", "9", "10"]


def test_gzip_parquet_and_csv_hold_the_same_data(tmp_path: Path) -> None:
    expected = read_dataset(own(tmp_path), DataSettings())
    (tmp_path / "interactions.csv").unlink()
    (tmp_path / "items.csv").unlink()
    (tmp_path / "interactions.csv.gz").write_bytes(gzip.compress(INTERACTIONS.encode()))
    columns = {"item_id": ["007", "x"], "title": ["Toy Story (1995)", "Heat"], "genre": ["Animation|Comedy", None]}
    pq.write_table(pa.table(columns), tmp_path / "items.parquet")
    mixed = read_dataset(tmp_path, DataSettings())
    assert mixed.catalogue == expected.catalogue
    assert histories(mixed) == histories(expected)


def test_parquet_columns_may_be_numbers_categories_and_dates(tmp_path: Path) -> None:
    items = {"item_id": [7, 8], "title": pa.array(["a", "b"]).dictionary_encode(), "year": [1995, 1996], "x": [0.5, 1]}
    pq.write_table(pa.table(items), tmp_path / "items.parquet")
    times = pa.array([20, 10], pa.timestamp("ms"))
    rows = {"user_id": pa.array([1, 1], pa.int32()), "item_id": [7, 8], "rating": [4, 2], "timestamp": times}
    pq.write_table(pa.table(rows), tmp_path / "interactions.parquet")
    dataset = read_dataset(tmp_path, DataSettings())
    assert dataset.catalogue.texts == ("a. 1995", "b. 1996")
    assert histories(dataset) == {"1": ["8", "7"]}
    assert dataset.interactions.ratings.tolist() == [2, 4]


def test_spaces_byte_order_mark_windows_line_ends_and_quoted_line_breaks_are_read_through(tmp_path: Path) -> None:
    folder = own(tmp_path, items='\ufeffitem_id , title,plot\r\n 007 ,A  film!,"one\r\ntwo, three"\r\n\r\nx,Heat,\r\n')
    dataset = read_dataset(folder, DataSettings())
    assert dataset.catalogue.item_ids == ("007", "x")
    assert dataset.catalogue.texts == ("A film! one two, three", "Heat")


def test_the_genres_of_movielens_100k_have_names_without_u_genre(tmp_path: Path) -> None:
    flags = "|".join("1" if genre in (5, 18) else "0" for genre in range(19))
    files = LAYOUT_FILES["movielens-100k"] | {"u.item": f"7|A|||x|{flags}\n8|B|||x|{flags}\n"}
    del files["u.genre"]
    assert read_catalogue(write(tmp_path, files), DataSettings()).texts == ("A. Comedy Western", "B. Comedy Western")


def test_a_recbole_title_is_the_column_named_so_else_the_first_text(tmp_path: Path) -> None:
    inter = "user_id:token\titem_id:token\na\t1\na\t2\n"
    named = "item_id:token\ttags:token_seq\tname:token\n1\tt\tn\n2\t\tm\n"
    assert read_catalogue(write(tmp_path, {"f.inter": inter, "f.item": named}), DataSettings()).titles == ("n", "m")
    other = named.replace("name", "colour")
    assert read_catalogue(write(tmp_path, {"f.item": other}), DataSettings()).titles == ("t", "2")


def test_what_is_mended_is_counted(tmp_path: Path) -> None:
    rows = "user_id,item_id,rating\na,x,1\na,x,5\na,nowhere,3\nb,nowhere,3\nc,x,2\nc,007,4\n"
    dataset = read_dataset(own(tmp_path, interactions=rows, items=ITEMS + "bare,,\n"), DataSettings())
    assert problems(dataset) == [
        "1 items without text: their id stands in",
        "2 interactions with unknown items: dropped",
        "1 duplicate interactions: the first is kept",
        "2 short users: kept, but too short to form a task",
    ]
    assert dataset.catalogue.titles[2] == dataset.catalogue.texts[2] == "bare"
    assert histories(dataset) == {"a": ["x"], "b": [], "c": ["x", "007"]}
    assert dataset.interactions.ratings.tolist() == [1, 2, 4]


BAD_ROWS = {
    "a,x,five,1": "rating must be a number, got 'five'",
    "a,x,,1": "rating must be a number, got ''",
    "a,x,1_0,1": "rating must be a number, got '1_0'",
    "a,x,nan,1": "rating must be finite, got 'nan'",
    "a,x,-inf,1": "rating must be finite, got '-inf'",
    "a,x,1e39,1": "rating must be finite, got '1e39'",
    "a,x,1,noon": "timestamp must be a number, got 'noon'",
    "a,x,1,": "timestamp must be a number, got ''",
    "a,x,1,inf": "timestamp must be finite, got 'inf'",
    ",x,1,1": "user_id must not be empty",
    "a, ,1,1": "item_id must not be empty",
    "a" * 257 + ",x,1,1": "user_id must have at most 256 characters",
    "a,x,1": "wanted 4 fields, got 3",
    "a,x,1,1,1": "wanted 4 fields, got 5",
    "a\0,x,1,1": "user_id must not hold a NUL character",
    "a,x," + "z" * 60 + ",1": f"rating must be a number, got '{'z' * 20}…'",
}


@pytest.mark.parametrize("row", BAD_ROWS)
def test_a_row_that_cannot_be_read_is_an_error_with_its_line(tmp_path: Path, row: str) -> None:
    folder = own(tmp_path, interactions=f"{INTERACTIONS}\n{row}\nu2,x,1,1\n")
    with pytest.raises(DataError, match=f"^interactions.csv line 7: {re.escape(BAD_ROWS[row])}$"):
        read_dataset(folder, DataSettings())


@pytest.mark.parametrize("row", BAD_ROWS)
def test_a_row_that_cannot_be_read_is_skipped_and_counted_on_request(tmp_path: Path, row: str) -> None:
    dataset = read_dataset(own(tmp_path, interactions=f"{INTERACTIONS}\n{row}\n"), SKIP)
    assert problems(dataset) == ["1 unreadable interaction rows: skipped (line 7)"]
    assert list(dataset.interactions.user_ids) == ["u0", "u1"]


def test_the_first_bad_row_is_the_one_reported(tmp_path: Path) -> None:
    folder = own(tmp_path, interactions=INTERACTIONS + "a,x,1,noon\na,x,five,1\n")
    with pytest.raises(DataError, match="line 6: timestamp must be a number, got 'noon'"):
        read_dataset(folder, DataSettings())


def test_skipped_rows_are_listed_by_line_in_the_order_of_the_file_and_kept_ones_stay_as_they_were(
    tmp_path: Path,
) -> None:
    rows = "a,x\n,x,1,1\na,x,1\n\na,x,five,1\n,,\n" + "b,x,1,1\n" + ",x,1,1\n" * 30
    dataset = read_dataset(own(tmp_path, interactions=INTERACTIONS + rows), SKIP)
    lines = [6, 7, 8, 10, 11, *range(13, 43)]
    assert dataset.problems[0] == Problem(
        kind="unreadable interaction rows",
        count=35,
        handling="skipped",
        places=tuple(f"line {line}" for line in lines[:20]),
    )
    named = "line 6, line 7, line 8, line 10, line 11, …"
    assert str(dataset.problems[0]) == f"35 unreadable interaction rows: skipped ({named})"
    assert list(dataset.interactions.user_ids) == ["b", "u0", "u1"]


def test_a_bad_row_behind_skipped_ones_is_found_in_its_own_line(tmp_path: Path) -> None:
    table = read_delimited(own(tmp_path, items="item_id,title\n1\n2,a\n3\n4,b\n") / "items.csv", CSV, SKIP)
    assert [table.place(row) for row in range(len(table))] == ["line 3", "line 5"]
    left = table.without(np.array([True, False]))
    assert (left.skipped_places(20), left.place(0)) == (("line 2", "line 3", "line 4"), "line 5")


def test_skipped_rows_of_a_parquet_file_are_listed_by_number(tmp_path: Path) -> None:
    own(tmp_path)
    (tmp_path / "interactions.csv").unlink()
    table = pa.table({"user_id": ["a", "", "a"], "item_id": ["x", "x", None], "rating": [1, 2, 3]})
    pq.write_table(table, tmp_path / "interactions.parquet")
    dataset = read_dataset(tmp_path, SKIP)
    assert problems(dataset)[0] == "2 unreadable interaction rows: skipped (row 2, row 3)"


def test_a_line_number_counts_line_breaks_inside_quotes(tmp_path: Path) -> None:
    folder = own(tmp_path, items='item_id,title\n007,"a\nb"\n,c\n')
    with pytest.raises(DataError, match=r"^items.csv line 4: item_id must not be empty$"):
        read_dataset(folder, DataSettings())


@pytest.mark.parametrize(
    ("layout", "name", "row", "message"),
    [
        ("movielens-1m", "ratings.dat", "1::7::5", "ratings.dat line 4: wanted 4 fields, got 3"),
        ("movielens-1m", "ratings.dat", "1:7:5:5", "ratings.dat line 4: wanted 4 fields, got 1"),
        ("movielens-1m", "ratings.dat", "1::7::6::1", "ratings.dat line 4: rating must be between 1 and 5, got '6'"),
        ("movielens-1m", "movies.dat", "9::Alone", "movies.dat line 3: wanted 3 fields, got 2"),
        ("movielens-100k", "u.data", "1\t7\tx\t5", "u.data line 4: rating must be a number, got 'x'"),
        ("movielens-csv", "ratings.csv", "1,7,x,5", "ratings.csv line 5: rating must be a number, got 'x'"),
        ("recbole", "film.inter", "1\t7\tx\t5", "film.inter line 5: rating must be a number, got 'x'"),
    ],
)
def test_line_numbers_are_right_in_every_layout(tmp_path: Path, layout: str, name: str, row: str, message: str) -> None:
    files = LAYOUT_FILES[layout] | {name: LAYOUT_FILES[layout][name] + row + "\n"}
    with pytest.raises(DataError, match=f"^{re.escape(message)}$"):
        read_dataset(write(tmp_path, files), DataSettings())


def test_a_bad_parquet_value_is_reported_by_row(tmp_path: Path) -> None:
    own(tmp_path)
    (tmp_path / "interactions.csv").unlink()
    table = pa.table({"user_id": ["a", "a"], "item_id": ["x", "007"], "rating": [1.0, None]})
    pq.write_table(table, tmp_path / "interactions.parquet")
    with pytest.raises(DataError, match=r"^interactions.parquet row 2: rating must be a number, got ''$"):
        read_dataset(tmp_path, DataSettings())


def test_parquet_columns_of_the_wrong_type_are_errors(tmp_path: Path) -> None:
    own(tmp_path)
    (tmp_path / "interactions.csv").unlink()
    path = tmp_path / "interactions.parquet"
    pq.write_table(pa.table({"user_id": [1.5], "item_id": ["x"]}), path)
    with pytest.raises(DataError, match="column 'user_id' must hold text or whole numbers, got double"):
        read_dataset(tmp_path, DataSettings())
    pq.write_table(pa.table({"user_id": ["a"], "item_id": ["x"], "rating": [[1]]}), path)
    with pytest.raises(DataError, match=r"column 'rating' must hold numbers, got list"):
        read_dataset(tmp_path, DataSettings())


def test_a_rating_outside_the_scale_of_the_settings_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"^interactions.csv line 2: rating must be between 0.5 and 4, got '5'$"):
        read_dataset(own(tmp_path), DataSettings(rating_low=0.5, rating_high=4))


def test_no_error_about_interactions_names_a_user_or_an_item(tmp_path: Path) -> None:
    rows = "secret-user,secret-item,five,1", "secret-user,secret-item", "secret-user,,1,1"
    stray_quote = 'a,x,"1\nsecret-user,secret-item",1'
    quoted_row = 'a,x,"1,secret-item,secret-user",1'
    headless = "secret-user,secret-item,5,1\n", "secret-user,secret-user,5,1\n"
    for interactions in (*(f"{INTERACTIONS}{row}\n" for row in (*rows, stray_quote, quoted_row)), *headless):
        with pytest.raises(DataError) as caught:
            read_dataset(own(tmp_path, interactions=interactions), DataSettings())
        assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("interactions", "message"),
    [
        ("", "interactions.csv: is empty, wanted a first line that names the columns"),
        ("user_id,item_id\n", "interactions.csv: holds no interaction"),
        ("user,item_id\na,x\n", "interactions.csv: no column 'user_id' among its 2 columns"),
        ("user_id,user_id\na,x\n", "interactions.csv: columns 1 and 2 have the same name"),
        (
            "user_id,item_id\na,1\na,2\n",
            "interactions.csv: none of its 2 interactions is with an item of the catalogue",
        ),
    ],
)
def test_interactions_without_use_are_errors(tmp_path: Path, interactions: str, message: str) -> None:
    with pytest.raises(DataError, match=f"^{re.escape(message)}$"):
        read_dataset(own(tmp_path, interactions=interactions), DataSettings())


def test_nothing_left_after_skipping_is_an_error(tmp_path: Path) -> None:
    folder = own(tmp_path, interactions="user_id,item_id,rating\na,x,five\na,x\n")
    with pytest.raises(DataError, match=r"^interactions.csv: none of its 2 rows can be read as an interaction$"):
        read_dataset(folder, SKIP)


def test_an_empty_file_without_header_holds_no_interaction(tmp_path: Path) -> None:
    files = LAYOUT_FILES["movielens-1m"] | {"ratings.dat": ""}
    with pytest.raises(DataError, match=r"^ratings.dat: holds no interaction$"):
        read_dataset(write(tmp_path, files), DataSettings())


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ("item_id,title\n", "items.csv: holds no item"),
        ("item_id,name\n1,a\n", "items.csv: no column 'title' among its 2 columns"),
        (
            "item_id,title\n1,a\n2,b\n1,c\n2,d\n3,e\n",
            "items.csv: item ids must be unique, got more than one row for 1, 2",
        ),
        ("item_id,title\n1,a,b\n", "items.csv line 2: wanted 2 fields, got 3"),
    ],
)
def test_items_that_make_no_catalogue_are_errors(tmp_path: Path, items: str, message: str) -> None:
    for read in (read_dataset, read_catalogue):
        with pytest.raises(DataError, match=f"^{re.escape(message)}$"):
            read(own(tmp_path, items=items), DataSettings())


def test_unreadable_item_rows_are_skipped_and_counted_on_request(tmp_path: Path) -> None:
    dataset = read_dataset(own(tmp_path, items=ITEMS + ",Nameless,\nshort\n"), SKIP)
    assert problems(dataset) == ["2 unreadable item rows: skipped (line 4, line 5)"]


def test_undecodable_bytes_are_an_error_with_their_line(tmp_path: Path) -> None:
    own(tmp_path)
    (tmp_path / "items.csv").write_bytes(b"item_id,title\n1,a\n2,Am\xe9lie\n")
    with pytest.raises(DataError, match=r"^items.csv line 3: holds bytes that are no UTF-8 text$"):
        read_dataset(tmp_path, DataSettings())


@pytest.mark.parametrize("content", [b"no gzip", gzip.compress(INTERACTIONS.encode())[:-12]])
def test_a_damaged_gzip_file_is_an_error(tmp_path: Path, content: bytes) -> None:
    own(tmp_path)
    (tmp_path / "interactions.csv").unlink()
    (tmp_path / "interactions.csv.gz").write_bytes(content)
    with pytest.raises(DataError, match=r"^interactions.csv.gz: damaged or cut short, cannot be decompressed$"):
        read_dataset(tmp_path, DataSettings())


def test_a_damaged_parquet_file_is_an_error(tmp_path: Path) -> None:
    own(tmp_path)
    (tmp_path / "interactions.csv").unlink()
    (tmp_path / "interactions.parquet").write_bytes(b"PAR1 but not really PAR1")
    with pytest.raises(DataError, match=r"^interactions.parquet: damaged, or no Parquet file$"):
        read_dataset(tmp_path, DataSettings())


def test_a_missing_folder_and_a_file_in_its_place_are_errors(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere: no such folder"):
        read_dataset(tmp_path / "nowhere", DataSettings())
    own(tmp_path)
    with pytest.raises(DataError, match="is no folder"):
        read_dataset(tmp_path / "items.csv", DataSettings())


def test_an_unknown_layout_lists_the_known_ones_and_their_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="unknown layout; the known ones are") as caught:
        read_dataset(tmp_path, DataSettings())
    assert "movielens-1m (ratings.dat with movies.dat)" in str(caught.value)
    assert "recbole (*.inter with *.item)" in str(caught.value)


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("ratings.dat", "layout movielens-1m also wants ratings.dat, which is missing"),
        ("movies.dat", "layout movielens-1m also wants movies.dat, which is missing"),
    ],
)
def test_half_a_layout_names_the_missing_file(tmp_path: Path, missing: str, message: str) -> None:
    (write(tmp_path, LAYOUT_FILES["movielens-1m"]) / missing).unlink()
    with pytest.raises(DataError, match=message):
        read_dataset(tmp_path, DataSettings())


def test_two_layouts_in_one_folder_are_ambiguous(tmp_path: Path) -> None:
    write(tmp_path, LAYOUT_FILES["movielens-1m"] | LAYOUT_FILES["own"])
    for read in (read_dataset, read_catalogue):
        with pytest.raises(DataError, match=r"the layout is ambiguous, .* movielens-1m .* and own "):
            read(tmp_path, DataSettings())


def test_stray_items_of_another_layout_do_not_make_dataset_and_catalogue_differ(tmp_path: Path) -> None:
    folder = write(tmp_path, LAYOUT_FILES["movielens-1m"] | {"items.csv": ITEMS})
    assert read_catalogue(folder, DataSettings()) == read_dataset(folder, DataSettings()).catalogue


def test_one_file_in_two_formats_is_ambiguous(tmp_path: Path) -> None:
    own(tmp_path)
    (tmp_path / "items.csv.gz").write_bytes(gzip.compress(ITEMS.encode()))
    with pytest.raises(DataError, match=r"layout own wants one of .*, got items.csv and items.csv.gz"):
        read_dataset(tmp_path, DataSettings())


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"f.inter": "user_id\titem_id\n"}, "f.inter line 1: column 1 must be name:type, with type token"),
        ({"f.item": "item_id:token\tyear:float\n1\t2\n"}, "f.item: no text, wanted a column of type token"),
        ({"f.item": "item_id:token\tt:token\tt:float\n1\t2\t3\n"}, "f.item: columns 2 and 3 have the same name"),
        ({"g.inter": ""}, "layout recbole wants one of .*, got f.inter and g.inter"),
    ],
)
def test_recbole_files_that_break_the_format_are_errors(tmp_path: Path, files: dict[str, str], message: str) -> None:
    good = {"f.inter": "user_id:token\titem_id:token\na\t1\n", "f.item": "item_id:token\tt:token\n1\tx\n"}
    with pytest.raises(DataError, match=message):
        read_dataset(write(tmp_path, good | files), DataSettings())


def test_recbole_files_of_two_data_sets_do_not_belong_together(tmp_path: Path) -> None:
    files = {"f.inter": "user_id:token\titem_id:token\na\t1\n", "g.item": "item_id:token\tt:token\n1\tx\n"}
    with pytest.raises(DataError, match=r"f.inter wants f.item beside it"):
        read_dataset(write(tmp_path, files), DataSettings())


@pytest.mark.parametrize(
    ("name", "users", "items", "interactions", "scale", "has_time"),
    [
        ("ml-1m", 6040, 3883, 1_000_209, (1, 5), True),
        ("ml-100k", 943, 1682, 100_000, (1, 5), True),
        ("ml-latest-small", 610, 9742, 100_836, (0.5, 5), True),
        ("anime", 4714, 7390, 419_943, None, False),
    ],
)
def test_real_data_is_read_whole(
    real_data: Callable[[str], Path],
    name: str,
    users: int,
    items: int,
    interactions: int,
    scale: tuple[float, float] | None,
    has_time: bool,
) -> None:
    dataset = read_dataset(real_data(name), DataSettings())
    assert len(dataset.interactions) == users
    assert len(dataset.catalogue) == items
    assert len(dataset.interactions.items) == interactions
    assert dataset.rating_scale == (None if scale is None else RatingScale(low=scale[0], high=scale[1]))
    assert dataset.interactions.has_time is has_time
    assert dataset.interactions.user_ids[1] == "2"
    assert {problem.kind for problem in dataset.problems} <= {"short users"}
    assert read_catalogue(real_data(name), DataSettings()) == dataset.catalogue


@pytest.mark.parametrize("name", LAYOUT_FILES)
def test_items_may_lie_in_a_folder_of_their_own(tmp_path: Path, name: str) -> None:
    (tmp_path / "both").mkdir()
    (tmp_path / "private").mkdir()
    both, private = write(tmp_path / "both", LAYOUT_FILES[name]), tmp_path / "private"
    together = read_dataset(both, DataSettings())
    interactions = next(
        file for file in LAYOUT_FILES[name] if file.startswith(("ratings", "u.data", "film.inter", "inter"))
    )
    (both / interactions).rename(private / interactions)
    apart = read_dataset(private, DataSettings(catalogue=str(both)))
    assert apart.catalogue == together.catalogue
    assert apart.interactions.items.tolist() == together.interactions.items.tolist()
    assert (apart.name, apart.layout, apart.rating_scale) == ("private", name, together.rating_scale)
    with pytest.raises(DataError, match=r"layout .* also wants"):
        read_dataset(both, DataSettings(catalogue=str(both)))


def test_items_beside_interactions_are_passed_over_where_others_are_named(tmp_path: Path) -> None:
    for folder in ("data", "catalogue"):
        (tmp_path / folder).mkdir()
    own(tmp_path / "data")
    write(tmp_path / "catalogue", {"items.csv": "item_id,title\n007,Another\n"})
    dataset = read_dataset(tmp_path / "data", DataSettings(catalogue=str(tmp_path / "catalogue")))
    assert dataset.catalogue.titles == ("Another",)
    assert str(dataset.problems[0]) == "2 interactions with unknown items: dropped"


def test_a_packed_folder_keeps_its_own_items(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    write_packed(read_dataset(own(tmp_path / "data"), DataSettings()), tmp_path / "packed")
    with pytest.raises(DataError, match=r"a packed folder has its own items, which data\.catalogue cannot replace"):
        read_dataset(tmp_path / "packed", DataSettings(catalogue=str(tmp_path / "data")))


def test_a_source_needs_no_items_where_a_catalogue_is_named(tmp_path: Path) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "catalogue").mkdir()
    both = own(tmp_path / "site")
    (both / "items.csv").rename(tmp_path / "catalogue" / "items.csv")
    (both / "source.toml").write_text(
        '[interactions]\nfile = "interactions.csv"\ncolumns = { user_id = "user_id", item_id = "item_id" }\n'
    )
    dataset = read_dataset(both, DataSettings(catalogue=str(tmp_path / "catalogue")))
    assert (dataset.layout, len(dataset.catalogue), len(dataset.interactions.items)) == ("source", 2, 4)
