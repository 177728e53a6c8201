"""Data that source.toml finds in a database: the same on SQLite and on PostgreSQL."""

import itertools
import logging
import re
import stat
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from sqlalchemy import NullPool, create_engine, make_url, text

from metarec_shared.errors import DataError
from metarec_shared.readers import database, read_catalogue, read_dataset
from metarec_shared.readers.address import connect_options
from metarec_shared.settings import DataSettings
from tests.postgres import new_database, postgres, read_only_role
from tests.unit.test_readers import SKIP, histories, own, problems
from tests.unit.test_source import assert_equal, own_site

VARIABLE = "METAREC_TEST_DATABASE_URL"
CACHE = ".interactions.parquet"
SOURCE = f"""
[interactions]
url-env = "{VARIABLE}"
table = "orders"
[interactions.columns]
user_id = "customer"
item_id = "sku"
rating = "stars"
timestamp = "ordered at"
[items]
url-env = "{VARIABLE}"
table = "articles"
[items.columns]
item_id = "sku"
title = "name"
genre = "category"
"""
INCREMENTAL = SOURCE.replace('table = "orders"', 'table = "orders"\nincremental = "id"')
ORDERS = (
    "CREATE TABLE orders (id INTEGER PRIMARY KEY, customer VARCHAR(40), sku VARCHAR(40), stars NUMERIC(3, 1),"
    ' "ordered at" TIMESTAMP, card VARCHAR(40))'
)
ROWS = (
    "INSERT INTO orders VALUES (1, 'u1', '007', 5, '1970-01-01 00:00:20', 'card'), (2, 'u1', 'x', 3, '1970-01-01"
    " 00:00:10', 'card'), (3, 'u0', 'x', 1, '1970-01-01 00:00:05', 'card'), (4, 'u0', '007', 2, '1970-01-01 00:00:05',"
    " NULL)"
)
ARTICLES = "CREATE TABLE articles (sku VARCHAR(40), name VARCHAR(40), category VARCHAR(40))"
ITEM_ROWS = "INSERT INTO articles VALUES ('007', 'Toy Story (1995)', 'Animation|Comedy'), ('x', 'Heat', NULL)"


@dataclass(frozen=True)
class Site:
    """A site's folder and its database, in which the tests may do anything."""

    folder: Path
    url: str = "sqlite://"

    @property
    def password(self) -> str | None:
        return make_url(self.url).password

    @property
    def on_server(self) -> bool:
        return make_url(self.url).get_backend_name() == "postgresql"

    def run(self, *statements: str) -> None:
        engine = create_engine(self.url, poolclass=NullPool)
        with engine.begin() as connection:
            for statement in statements:
                connection.execute(text(statement))

    def source(self, toml: str) -> Path:
        (self.folder / "source.toml").write_text(toml)
        return self.folder

    def read(self, toml: str = SOURCE, settings: DataSettings | None = None) -> Any:
        return read_dataset(self.source(toml), settings or DataSettings())

    def error(self, toml: str = SOURCE) -> str:
        """Return what is said of reading in vain; nowhere in it is a password, nor in what a traceback would show."""
        with pytest.raises(DataError) as caught:
            self.read(toml)
        told = "".join(traceback.format_exception(caught.value))
        assert "hidden" not in told
        assert not self.password or self.password not in told
        assert "\n" not in str(caught.value)
        return str(caught.value)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], str]]:
    """Return a function that makes a new database on a PostgreSQL server; both are started when first asked for."""
    names = (f"site{number}" for number in itertools.count())
    with postgres(tmp_path_factory.mktemp("postgres")) as url:
        yield lambda: new_database(url, next(names))


@pytest.fixture(params=["sqlite", "postgresql"])
def site(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    """Return a site whose database holds the interactions and items of the own layout's tests."""
    (tmp_path / "site").mkdir()
    on_server = request.param == "postgresql"
    url = request.getfixturevalue("server")() if on_server else f"sqlite:///{tmp_path / 'shop #1?.db'}"
    found = Site(folder=tmp_path / "site", url=url)
    found.run(ORDERS, ROWS, ARTICLES, ITEM_ROWS)
    monkeypatch.setenv(VARIABLE, url)
    return found


@pytest.fixture
def fetched(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that grows by the number of rows of each fetch."""
    counts: list[int] = []
    fetch = database._stream

    def counted(*arguments: Any) -> database.Rows:
        rows = fetch(*arguments)
        counts.append(len(next(iter(rows.columns.values()))))
        return rows

    monkeypatch.setattr(database, "_stream", counted)
    return counts


def with_query(query: str, more: str = "") -> str:
    return SOURCE.replace('table = "orders"', f'query = """{query}"""\n{more}')


def test_a_table_gives_the_data_of_the_own_layout(site: Site, tmp_path: Path) -> None:
    assert_equal(site.read(), read_dataset(own_site(tmp_path / "own"), DataSettings()))


def test_a_query_gives_it_too_and_is_run_as_it_stands(site: Site, tmp_path: Path) -> None:
    query = (
        "SELECT customer, sku, stars, \"ordered at\" FROM orders WHERE ':no' LIKE '%:n%' AND customer LIKE 'u%' "
        "ORDER BY id -- all;\n;"
    )
    expected = read_dataset(own_site(tmp_path / "own"), DataSettings())
    assert_equal(site.read(with_query(query)), expected)
    assert_equal(site.read(with_query(query, 'incremental = "customer"')), expected)
    turned = site.read(with_query(query.replace("BY id", "BY id DESC")).replace('timestamp = "ordered at"\n', ""))
    assert histories(turned) == {"u0": ["007", "x"], "u1": ["x", "007"]}


def test_more_rows_than_a_chunk_holds_are_read_whole(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = site.read()
    monkeypatch.setattr(database, "_CHUNK", 3)
    assert_equal(site.read(), expected)
    assert_equal(site.read(INCREMENTAL), expected)


def test_without_columns_our_names_and_every_further_text_of_items_are_read(site: Site, tmp_path: Path) -> None:
    site.run(
        "CREATE TABLE films (item_id VARCHAR(9), title VARCHAR(9), year INTEGER, price FLOAT, seen TIMESTAMP)",
        "INSERT INTO films VALUES ('007', 'a', 1995, 1.5, NULL), ('x', 'b', NULL, 2.5, '2026-01-31 10:00:00')",
        "CREATE TABLE seen (card VARCHAR(9), item_id VARCHAR(9), user_id INTEGER)",
        "INSERT INTO seen VALUES ('c', '007', 7), ('c', 'x', 10)",
    )
    source = re.sub(r"\[[a-z]+\.columns\]\n([a-z].*\n)*", "", SOURCE).replace("orders", "seen")
    dataset = site.read(source.replace("articles", "films"))
    seen = "" if site.on_server else ". 2026-01-31 10:00:00"
    assert dataset.catalogue.texts == ("a. 1995", f"b{seen}")  # SQLite has no type of its own for times
    assert histories(dataset) == {"7": ["007"], "10": ["x"]}
    assert read_catalogue(site.folder, DataSettings()) == dataset.catalogue


def test_only_columns_with_a_name_of_ours_leave_the_database(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "sqlalchemy.engine")
    site.read()
    statements = [record.getMessage() for record in caplog.records if "FROM orders" in record.getMessage()]
    assert len(statements) == 2
    assert "card" not in statements[1]
    assert "*" not in statements[1]


TYPES = {
    "INTEGER": ("1", "10", [1, 10]),
    "BIGINT": ("9007199254740993", "9007199254740992", [2**53, 2**53]),
    "REAL": ("0.5", "4.5", [0.5, 4.5]),
    "NUMERIC(5, 2)": ("0.25", "4.00", [0.25, 4]),
    "NUMERIC(30, 0)": ("100000000000000000000000", "4", [1e23, 4]),
    "BOOLEAN": ("TRUE", "FALSE", [1, 0]),
    "VARCHAR(9)": ("'4.5'", "' 1 '", [4.5, 1]),
}


@pytest.mark.parametrize("kind", TYPES)
def test_ratings_may_be_of_any_type_that_spells_numbers(site: Site, kind: str) -> None:
    first, second, ratings = TYPES[kind]
    site.run(
        f"CREATE TABLE rated (customer VARCHAR(9), sku VARCHAR(9), stars {kind})",
        f"INSERT INTO rated VALUES ('a', '007', {first}), ('a', 'x', {second})",
    )
    source = SOURCE.replace("orders", "rated").replace('timestamp = "ordered at"\n', "")
    np.testing.assert_allclose(site.read(source).interactions.ratings, ratings, rtol=1e-6)


@pytest.mark.parametrize("kind", ["TIMESTAMP", "DATE", "TIMESTAMP WITH TIME ZONE", "VARCHAR(40)"])
def test_times_may_be_of_any_type_that_has_an_order(site: Site, kind: str) -> None:
    times = ("2026-02-01 10:00:00", "2026-01-31 23:59:59", "1960-01-01 00:00:00")
    rows = [
        f"('a', '{sku}', '{time[:10] if kind == 'DATE' else time}')"
        for sku, time in zip(("007", "x", "y"), times, strict=True)
    ]
    site.run(
        f"CREATE TABLE seen (customer VARCHAR(9), sku VARCHAR(9), happened {kind})",
        f"INSERT INTO seen VALUES {', '.join(rows)}",
        "INSERT INTO articles VALUES ('y', 'third', NULL)",
    )
    source = SOURCE.replace("orders", "seen").replace("ordered at", "happened").replace('rating = "stars"\n', "")
    assert histories(site.read(source)) == {"a": ["y", "x", "007"]}


@pytest.mark.parametrize(
    ("kind", "spelt", "ids"),
    [
        ("BIGINT", ("9007199254740993", "9007199254740992"), ["9007199254740992", "9007199254740993"]),
        ("NUMERIC(30, 0)", ("'100000000000000000000001'", "'2'"), ["2", "100000000000000000000001"]),
        ("VARCHAR(9)", ("'é'", "' a '"), ["a", "é"]),
        ("UUID", ("'8b8c1b6e-0000-4000-8000-000000000000'",) * 2, ["8b8c1b6e-0000-4000-8000-000000000000"]),
    ],
)
def test_ids_may_be_whole_numbers_text_and_uuids(site: Site, kind: str, spelt: tuple[str, str], ids: list[str]) -> None:
    if kind.startswith("NUMERIC") and not site.on_server:
        kind = "VARCHAR(30)"  # SQLite's own numbers have 64 bits
    site.run(
        f"CREATE TABLE seen (customer {kind}, sku VARCHAR(9))",
        f"INSERT INTO seen VALUES ({spelt[0]}, '007'), ({spelt[1]}, 'x')",
    )
    source = (
        SOURCE.replace("orders", "seen").replace('timestamp = "ordered at"\n', "").replace('rating = "stars"\n', "")
    )
    assert list(site.read(source).interactions.user_ids) == ids


def test_rows_without_a_value_are_errors_or_skipped_by_number(site: Site) -> None:
    site.run(
        "INSERT INTO orders VALUES (5, NULL, 'x', 1, NULL, 'hidden'), (6, 'hidden', 'x', NULL, '2026-01-31 00:00:00',"
        " NULL), (7, 'hidden', NULL, 1, '2026-01-31 00:00:00', NULL), (8, 'v', 'x', 1, '2026-01-31 00:00:00', NULL)"
    )
    assert site.error(INCREMENTAL) == "source.toml [interactions] row 5: user_id must not be empty"
    dataset = site.read(INCREMENTAL, SKIP)
    assert problems(dataset)[0] == "3 unreadable interaction rows: skipped (row 5, row 6, row 7)"
    assert list(dataset.interactions.user_ids) == ["u0", "u1", "v"]


def test_a_schema_and_names_that_need_quotes_are_quoted(site: Site) -> None:
    name = '"Old Shop"."Order"' if site.on_server else '"Order"'
    site.run(
        *(['CREATE SCHEMA "Old Shop"'] if site.on_server else []),
        f'CREATE TABLE {name} ("select" INTEGER, "it""em" VARCHAR(9), "%s" INTEGER)',
        f"INSERT INTO {name} VALUES (1, '007', 3)",
    )
    source = SOURCE.replace('"orders"', "'Old Shop.Order'" if site.on_server else "'Order'")
    source = source.replace('"customer"', '"select"').replace('"sku"\nrating', "'it\"em'\nrating")
    dataset = site.read(source.replace('"stars"', '"%s"').replace('timestamp = "ordered at"\n', ""))
    assert dataset.interactions.ratings.tolist() == [3]
    evil = "orders; DROP TABLE orders"
    assert site.error(SOURCE.replace('"orders"', f'"{evil}"')).endswith("cannot be read: there is no such table")
    site.read()


def test_nothing_can_be_written(site: Site) -> None:
    if site.on_server:
        site.run(
            "CREATE FUNCTION spoil() RETURNS TABLE (customer TEXT, sku TEXT) LANGUAGE plpgsql AS"
            " $$ BEGIN DELETE FROM orders; RETURN QUERY SELECT 'hidden'::text, 'x'::text; END $$"
        )
    query = "SELECT * FROM spoil()" if site.on_server else "DELETE FROM orders RETURNING *"
    source = with_query(query).replace('rating = "stars"\ntimestamp = "ordered at"\n', "")
    reason = "it would change the database, wanted one that only reads" if site.on_server else "it is no SQL that"
    assert f"source.toml [interactions]: the query cannot be read: {reason}" in site.error(source)
    assert len(site.read().interactions.items) == 4


def test_a_role_that_may_only_read_one_table_suffices(server: Callable[[], str], tmp_path: Path) -> None:
    url = server()
    site = Site(folder=tmp_path, url=url)
    site.run(ORDERS, ROWS, ARTICLES, ITEM_ROWS)
    reader = read_only_role(url, "reader", "orders")
    (tmp_path / "database.url").write_text(f"{reader}\n")
    (tmp_path / "database.url").chmod(0o600)
    (tmp_path / "items.csv").write_text("sku,name,category\n007,a,\nx,b,\n")
    source = SOURCE.replace(f'url-env = "{VARIABLE}"', 'url-file = "database.url"', 1)
    files = source.replace(f'url-env = "{VARIABLE}"\ntable = "articles"', 'file = "items.csv"')
    assert len(site.read(files).interactions.items) == 4
    wrong = source.replace(f'url-env = "{VARIABLE}"', 'url-file = "database.url"')
    assert site.error(wrong) == (
        "source.toml [items]: table 'articles' cannot be read: the credentials do not allow to read it"
    )


def test_increments_give_the_same_data_and_fetch_only_new_rows(site: Site, tmp_path: Path, fetched: list[int]) -> None:
    expected = site.read()
    assert fetched == [2, 4]
    assert_equal(site.read(INCREMENTAL), expected)
    assert_equal(site.read(INCREMENTAL), expected)
    site.run(
        "INSERT INTO orders VALUES (9, 'u2', 'x', 4, '2026-01-31 00:00:00', NULL)", "DELETE FROM orders WHERE id < 3"
    )
    grown = site.read(INCREMENTAL)
    assert fetched[2:] == [2, 4, 2, 0, 2, 1]
    assert histories(grown) == {"u0": ["x", "007"], "u1": ["x", "007"], "u2": ["x"]}
    (site.folder / CACHE).unlink()
    assert histories(site.read(INCREMENTAL)) == {"u0": ["x", "007"], "u2": ["x"]}


@pytest.mark.parametrize(
    "kind", ["BIGINT", "NUMERIC(12, 3)", "VARCHAR(30)", "TIMESTAMP", "TIMESTAMP WITH TIME ZONE", "DATE"]
)
def test_the_incremental_column_may_be_of_any_type_with_an_exact_order(
    site: Site, kind: str, fetched: list[int]
) -> None:
    texts = {"BIGINT": ("4294967296", "4294967297"), "NUMERIC(12, 3)": ("7", "12")}
    old, new = texts.get(kind, ("'2026-01-30 10:00:00.123456'", "'2026-01-31 10:00:00'"))
    site.run(
        f"CREATE TABLE seen (step {kind}, customer VARCHAR(9), sku VARCHAR(9))",
        f"INSERT INTO seen VALUES ({old}, 'a', '007')",
    )
    source = INCREMENTAL.replace("orders", "seen").replace('"id"', '"step"')
    source = source.replace('rating = "stars"\ntimestamp = "ordered at"\n', "")
    site.read(source)
    site.run(f"INSERT INTO seen VALUES ({new}, 'a', 'x')")
    assert histories(site.read(source)) == {"a": ["007", "x"]}
    site.read(source)
    assert fetched == [2, 1, 2, 1, 2, 0]


def test_what_was_read_is_kept_for_its_owner_alone(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    modes, write = [], pq.write_table

    def noted(table: Any, path: Path) -> None:
        modes.append(stat.S_IMODE(path.stat().st_mode))
        write(table, path)

    monkeypatch.setattr(pq, "write_table", noted)
    site.read(INCREMENTAL)
    assert modes == [0o600]
    assert {path.name for path in site.folder.iterdir()} == {"source.toml", CACHE}
    assert stat.S_IMODE((site.folder / CACHE).stat().st_mode) == 0o600
    (site.folder / CACHE).chmod(0o644)
    site.run("INSERT INTO orders VALUES (9, 'u2', 'x', 4, '2026-01-31 00:00:00', NULL)")
    site.read(INCREMENTAL)
    assert stat.S_IMODE((site.folder / CACHE).stat().st_mode) == 0o600
    assert not site.password or site.password.encode() not in (site.folder / CACHE).read_bytes()


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('table = "orders"', 'table = "copies"'),
        ('table = "orders"', 'query = "SELECT * FROM orders"'),
        ('incremental = "id"', 'incremental = "ordered at"'),
        ('rating = "stars"', 'rating = "id"'),
        (VARIABLE, f"{VARIABLE}_2"),
    ],
)
def test_what_was_read_otherwise_is_read_anew(
    site: Site, fetched: list[int], monkeypatch: pytest.MonkeyPatch, old: str, new: str
) -> None:
    monkeypatch.setenv(f"{VARIABLE}_2", site.url)
    site.run("CREATE TABLE copies AS SELECT * FROM orders")
    site.read(INCREMENTAL)
    site.read(INCREMENTAL.replace(old, new, 1))
    assert fetched == [2, 4, 2, 4]


def test_another_database_under_the_same_name_is_read_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number, name in enumerate(("first.db", "second.db")):
        site = Site(folder=tmp_path, url=f"sqlite:///{tmp_path / name}")
        site.run(ORDERS, ROWS.replace("u1", f"person {number}"), ARTICLES, ITEM_ROWS)
        monkeypatch.setenv(VARIABLE, f"sqlite:///{name}")  # relative to the folder
        assert list(site.read(INCREMENTAL).interactions.user_ids) == [f"person {number}", "u0"]


@pytest.mark.parametrize("damage", ["cut short", "no Parquet", "not ours"])
def test_a_damaged_cache_is_read_anew_with_a_warning(
    site: Site, fetched: list[int], caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    expected = site.read(INCREMENTAL)
    path = site.folder / CACHE
    if damage == "not ours":
        pq.write_table(pq.read_table(path).replace_schema_metadata({}), path)
    else:
        path.write_bytes(path.read_bytes()[:-20] if damage == "cut short" else b"something else")
    assert_equal(site.read(INCREMENTAL), expected)
    assert [record.getMessage() for record in caplog.records] == [f"{path}: damaged, so all rows are read anew"]
    assert fetched == [2, 4, 2, 4]
    site.read(INCREMENTAL)
    assert fetched[4:] == [2, 0]


def test_items_too_are_read_by_increments_and_anew_where_they_have_other_columns(
    site: Site, fetched: list[int]
) -> None:
    site.run("CREATE TABLE films (item_id VARCHAR(9), title VARCHAR(9))", "INSERT INTO films VALUES ('007', 'a')")
    source = f'[items]\nurl-env = "{VARIABLE}"\ntable = "films"\nincremental = "item_id"\n'
    assert read_catalogue(site.source(source), DataSettings()).texts == ("a",)
    site.run("INSERT INTO films VALUES ('x', 'b')")
    assert read_catalogue(site.folder, DataSettings()).texts == ("a", "b")
    site.run("ALTER TABLE films ADD COLUMN genre VARCHAR(9)", "UPDATE films SET genre = 'c'")
    assert read_catalogue(site.folder, DataSettings()).texts == ("a. c", "b. c")
    assert fetched == [1, 1, 0, 2]
    assert {path.name for path in site.folder.iterdir()} == {"source.toml", ".items.parquet"}


def test_a_cache_that_cannot_be_written_is_an_error(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pq, "write_table", full)
    assert site.error(INCREMENTAL).endswith(f"{CACHE}: cannot be written: No space left on device")
    assert [path.name for path in site.folder.iterdir()] == ["source.toml"]


def test_an_incremental_column_without_an_exact_order_is_an_error(site: Site) -> None:
    site.run(
        "CREATE TABLE seen (step FLOAT, customer VARCHAR(9), sku VARCHAR(9))", "INSERT INTO seen VALUES (1.5, 'a', 'x')"
    )
    source = INCREMENTAL.replace("orders", "seen").replace('"id"', '"step"')
    source = source.replace('rating = "stars"\ntimestamp = "ordered at"\n', "")
    where = "source.toml [interactions]: incremental column 'step' must"
    assert site.error(source) == f"{where} hold whole numbers, dates or text, got float"
    site.run("UPDATE seen SET step = NULL")
    assert site.error(source) == f"{where} never be NULL, but it is"
    assert site.error(source.replace('"step"', '"none"')) == (
        "source.toml [interactions]: no column 'none' among its 3 columns"
    )


def test_what_is_not_in_the_database_is_an_error(site: Site) -> None:
    where = "source.toml [interactions]:"
    assert site.error(SOURCE.replace('"customer"', '"client"')) == f"{where} no column 'client' among its 6 columns"
    assert site.error(with_query("SELECT hidden FROM orders")) == (
        f"{where} the query cannot be read: it names a column that is not there"
    )
    assert site.error(with_query("SELECT 'hidden' FRM orders")) == (
        f"{where} the query cannot be read: it is no SQL that the database understands"
    )
    assert site.error(with_query('SELECT customer, sku, stars, "ordered at", sku FROM orders')) == (
        "source.toml [interactions]: columns 2 and 5 have the same name"
    )
    site.run("DELETE FROM orders")
    assert site.error() == "source.toml [interactions]: holds no interaction"
    assert site.error(INCREMENTAL) == "source.toml [interactions]: holds no interaction"
    site.run("DROP TABLE orders")
    assert site.error() == f"{where} table 'orders' cannot be read: there is no such table"


def test_a_column_of_another_kind_is_an_error(site: Site) -> None:
    site.run(
        "CREATE TABLE seen (customer FLOAT, sku VARCHAR(9), stars BYTEA)"
        if site.on_server
        else "CREATE TABLE seen (customer FLOAT, sku VARCHAR(9), stars BLOB)",
        "INSERT INTO seen VALUES (1.5, 'x', 'hidden')",
    )
    source = SOURCE.replace("orders", "seen").replace('timestamp = "ordered at"\n', "")
    where = "source.toml [interactions]: column"
    assert site.error(source) == f"{where} 'user_id' must hold text or whole numbers, got double"


def test_a_value_that_fails_in_the_database_is_not_quoted(
    server: Callable[[], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = Site(folder=tmp_path, url=server())
    monkeypatch.setenv(VARIABLE, site.url)
    site.run(ORDERS, ROWS.replace("'card'", "'hidden'"), ARTICLES, ITEM_ROWS)
    message = site.error(with_query('SELECT customer, sku, CAST(card AS INTEGER) AS stars, "ordered at" FROM orders'))
    assert message == (
        "source.toml [interactions]: the query cannot be read: InvalidTextRepresentation, whose text may be private "
        "and is left out"
    )


def test_a_connection_that_breaks_off_is_an_error(
    server: Callable[[], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = Site(folder=tmp_path, url=server())
    monkeypatch.setenv(VARIABLE, site.url)
    site.run(ORDERS, ROWS, ARTICLES, ITEM_ROWS)
    ended = "(SELECT CASE WHEN id = 4 THEN pg_terminate_backend(pg_backend_pid()) END) IS NULL"
    query = f'SELECT customer, sku, stars, "ordered at" FROM orders WHERE {ended}'
    assert site.error(with_query(query)) == (
        "source.toml [interactions]: the query cannot be read: the server cannot be reached, or broke off"
    )


def test_wrong_credentials_and_databases_are_errors_without_the_password(
    server: Callable[[], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    site = Site(folder=tmp_path, url=server())
    url = make_url(site.url)
    what = f"source.toml [items]: the database that the variable {VARIABLE} names cannot be opened:"
    wrong = {
        url.set(password="hidden"): "the credentials are refused",
        url.set(username="hidden readonly database"): "the credentials are refused",
        url.set(database="hidden"): "the server has no such database",
        url.set(host="127.0.0.1", port=1): "the server cannot be reached, or broke off",
        url.set(host="hidden.invalid"): "the server cannot be reached, or broke off",
        url.set(host="hidden" * 20): "UnicodeError, whose text may be private and is left out",
        url.update_query_dict({"hidden": "1"}): "the address has an option that the driver does not know",
        url.set(drivername="postgres"): "SQLAlchemy knows no such kind of database or driver",
    }
    for address, reason in wrong.items():
        monkeypatch.setenv(VARIABLE, address.render_as_string(hide_password=False))
        assert site.error() == f"{what} {reason}"
    assert site.password not in caplog.text
    assert "hidden" not in caplog.text


@pytest.mark.parametrize(
    ("address", "options"),
    [
        ("postgresql+psycopg://h/d", {"connect_timeout": 30}),
        ("postgresql+psycopg://h/d?connect_timeout=5", {}),
        ("sqlite:///d", {}),
    ],
)
def test_an_address_that_says_nothing_of_it_is_tried_for_half_a_minute(address: str, options: dict[str, int]) -> None:
    assert connect_options(make_url(address)) == options


def test_a_missing_driver_is_an_error_that_says_how_to_install_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, "postgresql+psycopg://u:hidden@127.0.0.1/d")
    monkeypatch.setitem(sys.modules, "psycopg", None)
    assert Site(folder=tmp_path).error() == (
        f"source.toml [items]: the database that the variable {VARIABLE} names cannot be opened: its driver psycopg is "
        "missing, install it; PostgreSQL's is installed with metarec[postgres]"
    )


def test_an_address_that_is_missing_or_none_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = Site(folder=tmp_path)
    monkeypatch.delenv(VARIABLE, raising=False)
    unset = f"source.toml [items]: the variable {VARIABLE} is not set, wanted a database's address there"
    assert site.error() == unset
    for address in ("u:hidden@h/d", "postgresql+psycopg://u:p@:hidden/d", "postgresql+psycopg://h:hidden/d"):
        monkeypatch.setenv(VARIABLE, address)
        assert f"the variable {VARIABLE} holds no database's address, wanted one such as" in site.error()
    monkeypatch.setenv(VARIABLE, "sqlite:///nowhere/hidden.db")
    assert site.error().endswith("cannot be opened: there is no such file, or it may not be read")
    (tmp_path / "text.db").write_text("hidden" * 999)
    monkeypatch.setenv(VARIABLE, "sqlite:///text.db")
    assert site.error().endswith("table 'articles' cannot be read: the file is damaged, or no SQLite database")


def test_a_file_with_an_address_must_be_its_owner_s_alone(site: Site) -> None:
    source, path = SOURCE.replace(f'url-env = "{VARIABLE}"', 'url-file = "database.url"'), site.folder / "database.url"
    assert site.error(source) == f"{path}: cannot be read: No such file or directory"
    path.write_text(site.url)
    for mode in (0o644, 0o640, 0o602):
        path.chmod(mode)
        wish = f"others may use it, its mode must be 0600 or stricter, got {mode:04o}"
        assert site.error(source) == f"{path}: {wish}"
    path.chmod(0o400)
    assert len(site.read(source).interactions.items) == 4
    path.chmod(0o600)
    path.write_text("\n")
    assert site.error(source).endswith("the file database.url is empty, wanted a database's address there")
    path.write_bytes(b"\xff")
    assert site.error(source) == f"{path}: holds bytes that are no UTF-8 text"


def test_the_file_of_sqlite_is_left_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = Site(folder=tmp_path / "site", url=f"sqlite:///{tmp_path / 'shop.db'}")
    site.folder.mkdir()
    site.run(ORDERS, ROWS, ARTICLES, ITEM_ROWS)
    before = (tmp_path / "shop.db").read_bytes()
    (tmp_path / "shop.db").chmod(0o400)
    monkeypatch.setenv(VARIABLE, "sqlite:///../shop.db")
    own(site.folder)  # stray files of another layout
    assert len(site.read().interactions.items) == 4
    assert (tmp_path / "shop.db").read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} == {"site", "shop.db"}
