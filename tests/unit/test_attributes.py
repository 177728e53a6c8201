"""Attributes of users: read where they are asked for and nowhere else, hashed alike by everybody, never required."""

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from client.data_source import site_settings
from client.history import Item, Profile, attribute_pairs, read_attributes
from client.recommend import recommend
from metarec_shared import sources
from metarec_shared.attributes import NOT_TOLD, attribute_hash
from metarec_shared.dataset import Dataset
from metarec_shared.errors import DataError, SettingsError
from metarec_shared.packed import write_packed
from metarec_shared.population import Population
from metarec_shared.readers import read_dataset
from metarec_shared.settings import DataSettings, Settings, TaskSettings
from metarec_shared.tasks import Task, pad
from tests.small import ITEMS, SMALL_MODEL, small_model, small_settings
from tests.unit.test_readers import LAYOUT_FILES, write

USER_FILES = {
    "movielens-1m": {"users.dat": "9::F::25::4::48067\n10::M::56::0::70072\n11::M::1::0::70072\n"},
    "movielens-100k": {"u.user": "9|25|F|4|48067\n10|99|M|0|T8H1N\n11|7|M|0|70072\n"},
    "recbole": {
        "film.user": "user_id:token\tage:token\tgender:token\toccupation:token\tzip:token\theight:float\n"
        "9\t25\tF\t4\t4\t1.7\n10\t56\tM\t0\t7\t1.8\n"
    },
    "own": {"users.csv": "occupation,user_id,age,gender,zip\n4,9,25,f,4\n0,10,56, M ,7\n"},
}
ASKED = DataSettings(user_attributes="gender, age,occupation,gender")


def told(dataset: Dataset) -> list[list[int]]:
    assert dataset.interactions.attributes is not None
    return dataset.interactions.attributes.tolist()  # type: ignore[no-any-return]


def hashes(**attributes: str) -> list[int]:
    return [attribute_hash(column, value) for column, value in attributes.items()]


def test_the_hash_is_blake2b_under_one_key_for_all_runs() -> None:
    digest = hashlib.blake2b(b"gender=f", key=b"attribute of a user", digest_size=8).digest()
    assert attribute_hash(" Gender", "F ") == int.from_bytes(digest, "big") >> 1 == 6158093684086429778
    assert attribute_hash("gender", "m") != attribute_hash("sex", "m")
    assert attribute_hash("gender", "  ") == NOT_TOLD


@pytest.mark.parametrize("layout", USER_FILES)
def test_every_layout_with_a_file_of_users_gives_the_same_attributes(tmp_path: Path, layout: str) -> None:
    folder = write(tmp_path, LAYOUT_FILES[layout] | USER_FILES[layout])
    dataset = read_dataset(folder, ASKED)
    assert told(dataset) == [hashes(gender="F", age="25", occupation="4"), hashes(gender="M", age="56", occupation="0")]
    assert dataset.interactions.user_ids.tolist() == ["9", "10"]
    assert [problem.kind for problem in dataset.problems] == ["short users"]


@pytest.mark.parametrize(("layout", "regions"), [("movielens-1m", "47"), ("movielens-100k", "4T")])
def test_of_a_zip_code_the_region_is_read(tmp_path: Path, layout: str, regions: str) -> None:
    folder = write(tmp_path, LAYOUT_FILES[layout] | USER_FILES[layout])
    dataset = read_dataset(folder, DataSettings(user_attributes="zip"))
    assert told(dataset) == [hashes(zip=region) for region in regions]


def test_ages_of_movielens_100k_are_read_as_the_brackets_of_1m(tmp_path: Path) -> None:
    users = "9|24|F|4|48067\n10|0|M|0|70072\n"
    folder = write(tmp_path, LAYOUT_FILES["movielens-100k"] | {"u.user": users})
    assert told(read_dataset(folder, DataSettings(user_attributes="age"))) == [hashes(age="18"), [NOT_TOLD]]


def test_nothing_is_read_where_nothing_is_asked_for(tmp_path: Path) -> None:
    folder = write(tmp_path, LAYOUT_FILES["own"])
    (folder / "users.parquet").write_bytes(b"no Parquet file")
    assert read_dataset(folder, DataSettings()).interactions.attributes is None
    with pytest.raises(DataError, match=r"users\.parquet: damaged"):
        read_dataset(folder, ASKED)


def test_who_has_no_row_or_an_empty_value_tells_nothing(tmp_path: Path) -> None:
    folder = write(tmp_path, LAYOUT_FILES["own"])
    table = pa.table({"user_id": ["10", "somebody else"], "age": [56, None], "gender": ["", "f"]})
    pq.write_table(table, folder / "users.parquet")
    dataset = read_dataset(folder, DataSettings(user_attributes="gender,age"))
    assert told(dataset) == [[NOT_TOLD, NOT_TOLD], [NOT_TOLD, attribute_hash("age", "56")]]
    assert "1 users without attributes: told apart by history alone" in [str(found) for found in dataset.problems]


@pytest.mark.parametrize(
    ("users", "message"),
    [
        ("user_id,age\n9,1\n", r"users\.csv: no column 'gender' among its 2 columns"),
        ("user_id,gender\n9,f\n,m\n", r"users\.csv line 3: user_id must not be empty"),
        ("user_id,gender\n9,f\n9,m\n", r"users\.csv: a user must have one row, got 2 rows of 1"),
        ("user_id,gender\n9,f\n10\n", r"users\.csv line 3: wanted 2 fields, got 1"),
    ],
)
def test_a_file_of_users_that_cannot_be_read_is_an_error(tmp_path: Path, users: str, message: str) -> None:
    folder = write(tmp_path, LAYOUT_FILES["own"] | {"users.csv": users})
    with pytest.raises(DataError, match=message):
        read_dataset(folder, DataSettings(user_attributes="gender"))


@pytest.mark.parametrize(
    ("layout", "message"), [("own", "wants users.csv or users.csv.gz"), ("movielens-csv", "layout movielens-csv has")]
)
def test_a_folder_without_a_file_of_users_says_so(tmp_path: Path, layout: str, message: str) -> None:
    with pytest.raises(DataError, match=f"no file of users for data.user-attributes = gender.*{message}"):
        read_dataset(write(tmp_path, LAYOUT_FILES[layout]), DataSettings(user_attributes="gender"))


def test_a_packed_folder_holds_no_attributes_and_says_so(tmp_path: Path) -> None:
    folder = write(tmp_path, LAYOUT_FILES["own"] | USER_FILES["own"])
    write_packed(read_dataset(folder, ASKED), tmp_path / "packed")
    assert read_dataset(tmp_path / "packed", DataSettings()).interactions.attributes is None
    with pytest.raises(DataError, match="a packed folder holds no attributes of users"):
        read_dataset(tmp_path / "packed", ASKED)


def test_attributes_follow_their_users(tmp_path: Path) -> None:
    folder = write(tmp_path, LAYOUT_FILES["own"] | USER_FILES["own"])
    histories = read_dataset(folder, ASKED).interactions
    swapped = histories.take(np.array([1, 0])).attributes
    assert swapped is not None
    assert swapped.tolist() == told(read_dataset(folder, ASKED))[::-1]
    assert histories.keep_items(np.array([0]), 2).attributes is histories.attributes


def _population(users: int = 400) -> Population:
    histories = Settings().with_values({"generator.users": users}, "test")
    found = sources.load_dataset(histories).interactions
    attributes = np.arange(1, 2 * users + 1).reshape(users, 2)
    return Population.of(replace(found, attributes=attributes), None, 0)


def test_training_hides_attributes_with_the_chance_that_is_set() -> None:
    population = _population()
    assert population.interactions.attributes is not None
    for chance in (0.0, 0.3, 1.0):
        sizes = TaskSettings(attribute_dropout=chance)
        batch = population.training_tasks(np.arange(400), 3, sizes, 4, None)
        assert batch.attributes is not None
        hidden = batch.attributes.numpy() == NOT_TOLD
        assert (hidden | (batch.attributes.numpy() == population.interactions.attributes)).all()
        assert hidden.mean() == pytest.approx(chance, abs=0.06)
        alone = population.training_tasks(np.array([7]), 3, sizes, 4, None)
        torch.testing.assert_close(alone.attributes, batch.attributes[7:8])


def test_other_draws_do_not_depend_on_attributes() -> None:
    population = _population(50)
    without = replace(population, interactions=replace(population.interactions, attributes=None))
    batches = [one.training_tasks(np.arange(50), 1, TaskSettings(), 4, None).tensors() for one in (population, without)]
    assert batches[0].keys() - batches[1].keys() == {"attributes"}
    for name, value in batches[1].items():
        torch.testing.assert_close(batches[0][name], value, rtol=0, atol=0)


def test_evaluation_hides_nothing_and_pads_those_who_tell_less() -> None:
    population = _population(50)
    assert population.interactions.attributes is not None
    task = population.evaluation_task(7, "random", 3, 2, None)
    nobody = replace(task, attributes=None)
    assert pad([nobody, nobody]).attributes is None
    batch = pad([nobody, task])
    assert batch.attributes is not None
    assert batch.attributes.tolist() == [[NOT_TOLD] * 2, population.interactions.attributes[7].tolist()]
    assert isinstance(task, Task)


def test_a_site_tells_what_it_chooses_and_never_what_the_run_names() -> None:
    run = small_settings(data__user_attributes="gender,income", model__attribute_buckets=16)
    assert site_settings(run, {"data-path": "/data"}).data.user_attributes == ""
    told = site_settings(run, {"data-path": "/data", "user-attributes": "gender"})
    assert told.data.attribute_names == ("gender",)
    plain = small_settings()  # a model without a table: the site still takes part, and reads nothing
    assert site_settings(plain, {"data-path": "/data", "user-attributes": "gender"}).data.user_attributes == ""


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"data.user-attributes": "age"}, "data.user-attributes needs a table .* set model.attribute-buckets"),
        ({"model.attribute-buckets": 8, "model.encoder": "gpt2"}, "attribute-buckets needs model.encoder = bert"),
        ({"model.attribute-buckets": -1}, "model.attribute-buckets must be at least 0, got -1"),
    ],
)
def test_settings_that_no_model_can_have_are_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        Settings().with_values(values, "test")


def test_generated_users_have_no_attributes() -> None:
    with pytest.raises(DataError, match=r"data\.user-attributes needs data\.path: generated users have none"):
        sources.load_dataset(small_settings(data__user_attributes="age", model__attribute_buckets=8))


def test_recommendations_hear_what_the_user_tells() -> None:
    model = small_model(sizes=replace(SMALL_MODEL, attribute_buckets=16), dtype=torch.float32)
    settings = small_settings(model__attribute_buckets=16)
    for items in ([], [Item(position=3, feedback=5)]):
        quiet = recommend(model, Profile(items=items), ITEMS)
        told = read_attributes(attribute_pairs(["gender = F", "Age=25"]), settings)
        assert told == hashes(gender="f", age="25")
        heard = recommend(model, Profile(items=items, attributes=told), ITEMS)
        assert dict(heard).keys() == dict(quiet).keys()
        assert heard != quiet
        again = dict(recommend(model, Profile(items=items, attributes=told[::-1]), ITEMS))
        assert all(again[item] == pytest.approx(score, abs=1e-4) for item, score in heard)


@pytest.mark.parametrize(
    ("assignment", "changes", "message"),
    [
        ("gender", {}, "--attribute must be column=value, got 'gender'"),
        ("gender=", {}, "--attribute must be column=value, got 'gender='"),
        ("gender=f", {"model.attribute-buckets": 0}, "attribute gender: the model reads no attributes of users"),
        ("sex=f", {"data.user-attributes": "gender,age"}, "attribute sex: the model was trained on gender, age"),
    ],
)
def test_an_attribute_that_the_model_cannot_read_is_refused(
    assignment: str, changes: dict[str, object], message: str
) -> None:
    settings = Settings().with_values({"model.attribute-buckets": 16, **changes}, "test")
    with pytest.raises(DataError, match=message):
        read_attributes(attribute_pairs([assignment]), settings)
