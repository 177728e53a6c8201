"""Settings: one typed tree, and errors that say what, where, got and wanted."""

import dataclasses
import tomllib
from pathlib import Path

import pytest

from metarec_shared.errors import SettingsError
from metarec_shared.settings import Settings, flatten, load_toml, parse_assignments

PYPROJECT = Path(__file__).parents[2] / "pyproject.toml"


def test_flowers_run_configuration_repeats_every_setting_with_its_default() -> None:
    document = tomllib.loads(PYPROJECT.read_text())
    assert flatten(document["tool"]["flwr"]["app"]["config"], "pyproject.toml") == Settings().flat()


def test_flat_settings_parse_back_to_the_same_settings() -> None:
    settings = Settings().with_values({"outer.learning-rate": 0.5, "model.item-ids": False}, "test")
    assert Settings().with_values(settings.flat(), "test") == settings


def test_every_setting_says_what_it_means() -> None:
    for table in dataclasses.fields(Settings):
        for key in dataclasses.fields(table.type):  # type: ignore[arg-type]
            assert len(key.metadata["doc"]) > 10, (table.name, key.name)


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("outer.lr=1", "--set: unknown setting outer.lr; outer has optimizer, learning-rate"),
        ("nothing.x=1", "--set: unknown table 'nothing'; the tables are run, data"),
        ("federation.rounds=2.5", "--set: federation.rounds must be a whole number, got 2.5"),
        ("federation.rounds=true", "--set: federation.rounds must be a whole number, got True"),
        ("federation.rounds=0", "--set: federation.rounds must be at least 1, got 0"),
        ("tasks.id-dropout=1.0", "--set: tasks.id-dropout must be between 0 and 0.95, got 1.0"),
        ("outer.learning-rate=nan", "--set: outer.learning-rate must be finite, got nan"),
        ("outer.learning-rate=inf", "--set: outer.learning-rate must be finite, got inf"),
        ("outer.learning-rate=-1", "--set: outer.learning-rate must be at least 0, got -1.0"),
        ("outer.optimizer=lion", "--set: outer.optimizer must be one of adamw, adam, sgd, got 'lion'"),
        ("model.item-ids=1", "--set: model.item-ids must be a boolean (true or false), got 1"),
        ("text.encoder=3", "--set: text.encoder must be a string, got 3"),
        ("model.heads=3", "--set: model.width must be a multiple of model.heads, got 64 and 3"),
        ("data.rating-low=2", "--set: data.rating-high must not be below data.rating-low (2.0), got 0.0"),
        ("outer=1", "--set outer=1: wanted table.key=value"),
        ("outer.optimizer", "--set outer.optimizer: wanted table.key=value"),
    ],
)
def test_a_bad_setting_is_refused_with_its_name_and_what_was_wanted(assignment: str, message: str) -> None:
    with pytest.raises(SettingsError) as error:
        Settings().with_values(parse_assignments([assignment]), "--set")
    assert message in str(error.value)


def test_whole_numbers_become_numbers_and_bare_words_strings() -> None:
    values = parse_assignments(["outer.learning-rate=1", "text.encoder=some/hub-name", 'run.out="a b"'])
    settings = Settings().with_values(values, "--set")
    assert settings.outer.learning_rate == 1.0
    assert settings.text.encoder == "some/hub-name"
    assert settings.run.out == "a b"


def test_a_settings_file_is_read_table_by_table(tmp_path: Path) -> None:
    path = tmp_path / "settings.toml"
    path.write_text('[outer]\noptimizer = "sgd"\n[federation]\nrounds = 7\n')
    settings = Settings().with_values(load_toml(path), str(path))
    assert (settings.outer.optimizer, settings.federation.rounds) == ("sgd", 7)


@pytest.mark.parametrize(
    ("text", "message"),
    [("rounds = 3", "'rounds' must be a table"), ("[outer", "not TOML"), (None, "cannot read the settings file")],
)
def test_a_settings_file_that_cannot_be_used_is_named(tmp_path: Path, text: str | None, message: str) -> None:
    path = tmp_path / "settings.toml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(SettingsError, match=message) as error:
        load_toml(path)
    assert str(path) in str(error.value)
