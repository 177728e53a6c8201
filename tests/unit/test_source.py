"""Data that source.toml points at: files with names of their own, columns with names of their own."""

import gzip
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from metarec_shared.data_cli import app
from metarec_shared.dataset import Dataset
from metarec_shared.errors import DataError
from metarec_shared.fingerprint import data_fingerprint
from metarec_shared.readers import read_catalogue, read_dataset
from metarec_shared.readers.reading import layout_of
from metarec_shared.settings import DataSettings
from tests.unit.test_readers import INTERACTIONS, ITEMS, LAYOUT_FILES, SKIP, histories, own, problems, write

ORDERS = INTERACTIONS.replace("user_id,item_id,rating,timestamp", "customer,sku,stars,ordered at")
CATALOGUE = ITEMS.replace("item_id,title,genre", "sku,name,category")
MAPPED = """
[interactions]
file = "export/orders.csv"
[interactions.columns]
user_id = "customer"
item_id = "sku"
rating = "stars"
timestamp = "ordered at"
[items]
file = "../catalogue/articles.csv"
[items.columns]
item_id = "sku"
title = "name"
genre = "category"
"""


def site(folder: Path, source: str = MAPPED, *, orders: str = ORDERS, items: str = CATALOGUE) -> Path:
    """Write a catalogue and a site's folder, which is returned."""
    directory = folder / "site"
    (directory / "export").mkdir(parents=True)
    (folder / "catalogue").mkdir()
    (folder / "catalogue" / "articles.csv").write_text(items)
    (directory / "export" / "orders.csv").write_text(orders)
    (directory / "source.toml").write_text(source)
    return directory


def own_site(folder: Path) -> Path:
    """Write the same data in MetaRec's own layout and return its folder."""
    folder.mkdir()
    return own(folder)


def assert_equal(read: Dataset, expected: Dataset) -> None:
    assert read.catalogue == expected.catalogue
    assert read.rating_scale == expected.rating_scale
    assert problems(read) == problems(expected)
    for name in ("user_ids", "offsets", "items", "ratings"):
        np.testing.assert_array_equal(getattr(read.interactions, name), getattr(expected.interactions, name))
    assert read.interactions.has_time == expected.interactions.has_time
    assert data_fingerprint(read) == data_fingerprint(expected)


def test_files_elsewhere_with_other_columns_give_the_data_of_the_own_layout(tmp_path: Path) -> None:
    dataset = read_dataset(site(tmp_path), DataSettings())
    assert (dataset.name, dataset.layout) == ("site", "source")
    assert_equal(dataset, read_dataset(own_site(tmp_path / "own"), DataSettings()))


def test_parquet_and_compressed_files_and_absolute_paths_do_as_well(tmp_path: Path) -> None:
    folder = site(tmp_path)
    (tmp_path / "orders.csv.gz").write_bytes(gzip.compress(ORDERS.encode()))
    table = pa.table(
        {"sku": ["007", "x"], "name": ["Toy Story (1995)", "Heat"], "category": ["Animation|Comedy", None]}
    )
    pq.write_table(table, tmp_path / "articles.parquet")
    source = MAPPED.replace("export/orders.csv", str(tmp_path / "orders.csv.gz"))
    (folder / "source.toml").write_text(source.replace("../catalogue/articles.csv", "../articles.parquet"))
    assert_equal(read_dataset(folder, DataSettings()), read_dataset(own_site(tmp_path / "own"), DataSettings()))


def test_without_columns_the_names_are_ours_and_every_further_text_belongs_to_an_item(tmp_path: Path) -> None:
    source = '[interactions]\nfile = "export/orders.csv"\n[items]\nfile = "../catalogue/articles.csv"\n'
    folder = site(tmp_path, source, orders=INTERACTIONS, items=ITEMS)
    assert_equal(read_dataset(folder, DataSettings()), read_dataset(own_site(tmp_path / "own"), DataSettings()))


def test_what_no_column_names_is_not_read(tmp_path: Path) -> None:
    source = re.sub(r"(rating|timestamp|genre) = .*\n", "", MAPPED)
    dataset = read_dataset(site(tmp_path, source), DataSettings())
    assert dataset.catalogue.texts == ("Toy Story (1995)", "Heat")
    assert np.isnan(dataset.interactions.ratings).all()
    assert histories(dataset) == {"u0": ["x", "007"], "u1": ["007", "x"]}


def test_a_catalogue_needs_no_interactions(tmp_path: Path) -> None:
    folder = site(tmp_path, MAPPED[MAPPED.index("[items]") :])
    assert read_catalogue(folder, DataSettings()).item_ids == ("007", "x")
    with pytest.raises(DataError, match=r"^source.toml: no table \[interactions\], wanted one that says where"):
        read_dataset(folder, DataSettings())


def test_source_toml_decides_whatever_lies_beside_it(tmp_path: Path) -> None:
    folder = write(site(tmp_path), LAYOUT_FILES["movielens-1m"] | LAYOUT_FILES["own"])
    (folder / "items.csv.gz").write_bytes(b"no gzip")
    assert layout_of(folder).name == layout_of(folder, items_only=True).name == "source"
    assert list(read_dataset(folder, DataSettings()).interactions.user_ids) == ["u0", "u1"]


def test_an_unknown_layout_names_source_toml_once(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"; source \(source.toml\); packed"):
        layout_of(tmp_path)


@pytest.mark.parametrize(
    ("times", "order"),
    [
        (("2026-01-31 18:30:00", "2026-01-31T18:29:59.5"), ["x", "007"]),
        (("2026-01-31", "2026-01-30"), ["x", "007"]),
        (("2026-01-31T18:30:00+02:00", "2026-01-31T17:00:00Z"), ["007", "x"]),
        (("1969-12-31", "1970-01-01"), ["007", "x"]),
        (("20", "3"), ["x", "007"]),
    ],
)
def test_times_may_be_iso_text_or_numbers(tmp_path: Path, times: tuple[str, str], order: list[str]) -> None:
    orders = f"customer,sku,stars,ordered at\nu,007,1,{times[0]}\nu,x,1,{times[1]}\n"
    assert histories(read_dataset(site(tmp_path, orders=orders), DataSettings())) == {"u": order}


@pytest.mark.parametrize("times", [("2026-01-31", "noon"), ("12", "2026-01-31")])
def test_a_time_unlike_the_others_is_an_error_with_its_line(tmp_path: Path, times: tuple[str, str]) -> None:
    orders = f"customer,sku,stars,ordered at\nu,007,1,{times[0]}\nu,x,1,{times[1]}\n"
    folder = site(tmp_path, orders=orders)
    with pytest.raises(DataError, match=f"^orders.csv line 3: timestamp must be a number, got '{times[1]}'$"):
        read_dataset(folder, DataSettings())


def test_bad_rows_of_a_file_are_listed_by_line(tmp_path: Path) -> None:
    dataset = read_dataset(site(tmp_path, orders=ORDERS + "u,x,five,1\nu,x\n"), SKIP)
    assert problems(dataset) == ["2 unreadable interaction rows: skipped (line 6, line 7)"]


def test_describe_and_pack_take_the_folder(tmp_path: Path) -> None:
    folder, packed = site(tmp_path), tmp_path / "packed"
    described = CliRunner().invoke(app, ["describe", str(folder)], catch_exceptions=False).stdout
    assert re.search(r"layout +source\s", described)
    CliRunner().invoke(app, ["pack", str(folder), "--out", str(packed)], catch_exceptions=False)
    assert_equal(read_dataset(packed, DataSettings()), read_dataset(folder, DataSettings()))


def test_there_are_no_attributes_of_users(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="layout source has none"):
        read_dataset(site(tmp_path), DataSettings(user_attributes="age"))


ADDRESS = "postgresql://u:hidden@h/d"  # where somebody wrote it in the wrong place, it must not be repeated
WRONG = {
    "= 1": r"source.toml: not TOML: Invalid statement \(at line 1, column 1\)",
    "[users]\n": r"source.toml: unknown table 'users'; the tables are interactions, items",
    "interactions = 3": r"source.toml: no table \[interactions\], wanted one that says where interactions come from",
    "[interactions]\n": r"source.toml \[interactions\]: wanted either file, or one of url-env and url-file with one of "
    "table and query, got none of them",
    '[interactions]\nurl-env = "A"\nurl-file = "b"': r"wanted either file, or .*, got url-env, url-file",
    '[interactions]\nurl-env = "A"\ntable = "t"\nquery = "q"': r"wanted either file, or .*, got url-env, table, query",
    '[interactions]\nurl-env = "A"': r"wanted either file, or .*, got url-env",
    '[interactions]\nfile = "a.csv"\ntable = "t"': r"file goes with no other key than columns, got file, table",
    '[interactions]\nfile = "a.csv"\nincremental = "t"': r"file goes with no other key than columns, got file, incr",
    '[interactions]\nfile = "a.xls"': r"file must end in .csv, .csv.gz, .parquet",
    '[interactions]\nfile = " "': r"source.toml \[interactions\]: file must be a string that is not empty",
    "[interactions]\nfile = 3": r"source.toml \[interactions\]: file must be a string that is not empty",
    f'[interactions]\nurl = "{ADDRESS}"': r"unknown key 'url'; it has file, url-env, url-file, table, query, incr",
    f'[interactions]\nurl-env = ["{ADDRESS}"]': r"url-env must be a string that is not empty",
    f'[interactions]\nurl-env = "{ADDRESS}"\ntable = "t"': r"url-env must be the name of an environment variable, not",
    f'[interactions]\nurl-file = "{ADDRESS}"\ntable = "t"': r"url-file must be the path of a file, not the address",
    '[interactions]\nfile = "a.csv"\ncolumns = "x"': r"source.toml \[interactions\] columns: must be a table",
    '[interactions]\nfile = "a.csv"\n[interactions.columns]\nuser_id = "u"': r"columns: item_id is missing, wanted",
    '[interactions]\nfile = "a.csv"\n[interactions.columns]\nuser_id = "u"\nitem_id = "i"\nprice = "p"': r"columns: "
    "unknown name 'price'; the names are user_id, item_id, rating, timestamp",
}


@pytest.mark.parametrize("text", WRONG)
def test_a_source_toml_that_says_something_else_is_an_error_that_quotes_no_value(tmp_path: Path, text: str) -> None:
    items = "" if text.startswith("=") else '\n[items]\nfile = "../catalogue/articles.csv"\n[items.columns]\n'
    names = 'item_id = "sku"\ntitle = "name"\n' if items else ""
    with pytest.raises(DataError, match=WRONG[text]) as caught:
        read_dataset(site(tmp_path, f"{text}{items}{names}"), DataSettings())
    assert "hidden" not in str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("export/orders.csv", "export/none.csv", r"^source.toml \[interactions\]: no such file: .*export/none.csv$"),
        ('"customer"', '"client"', r"^orders.csv: no column 'client' among its 4 columns$"),
        ('"category"', '"colour"', r"^articles.csv: no column 'colour' among its 3 columns$"),
        ('title = "name"\n', "", r"^source.toml \[items\] columns: title is missing, wanted title = the name of"),
    ],
)
def test_a_file_or_column_that_is_not_there_is_an_error(tmp_path: Path, old: str, new: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_dataset(site(tmp_path, MAPPED.replace(old, new)), DataSettings())


def test_a_source_toml_of_other_bytes_is_an_error(tmp_path: Path) -> None:
    (site(tmp_path) / "source.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match=r"^source.toml: holds bytes that are no UTF-8 text$"):
        read_dataset(tmp_path / "site", DataSettings())
