"""The search space of a study: what it may hold, and how it is refused."""

from pathlib import Path

import pytest

from metarec_shared.errors import SettingsError
from metarec_shared.settings import Settings
from simulations.tuning.choices import Pruner, Sampler
from simulations.tuning.plan import Plan, first_values, planned
from simulations.tuning.space import BUILT_IN, Choices, Range, Space, load_space


def space_of(folder: Path, text: str) -> Space:
    path = folder / "space.toml"
    path.write_text(text)
    return load_space(path, Settings())


def test_a_space_is_read_with_the_types_of_its_settings(tmp_path: Path) -> None:
    space = space_of(
        tmp_path,
        '"outer.learning-rate" = { low = 1, high = 2 }\n"adaptation.steps" = { low = 1, high = 5, step = 2 }\n'
        "[model]\nfeedback = { choices = [true, false] }\nwidth = { low = 16, high = 64, log = true }\n",
    )
    assert space.parameters == (
        Range(key="outer.learning-rate", low=1.0, high=2.0, log=False, step=None, whole=False),
        Range(key="adaptation.steps", low=1, high=5, log=False, step=2, whole=True),
        Choices(key="model.feedback", choices=(True, False)),
        Range(key="model.width", low=16, high=64, log=True, step=None, whole=True),
    )
    assert space.described()["adaptation.steps"] == "1 to 5, step 2"
    assert space.described()["model.feedback"] == "true, false"


def test_the_built_in_space_holds_the_defaults_and_can_be_drawn_from() -> None:
    space = load_space(BUILT_IN, Settings())
    values = space.values_of(Settings())
    assert values is not None
    assert values.keys() == space.distributions.keys()
    for parameter in space.parameters:
        limits = parameter.choices if isinstance(parameter, Choices) else (parameter.low, parameter.high)
        for value in limits:
            Settings().with_values({parameter.key: value}, "test")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the search space is empty"),
        ('"outer.lr" = { low = 1, high = 2 }', "unknown setting outer.lr; outer has optimizer, learning-rate"),
        ('"nothing.x" = { low = 1, high = 2 }', "nothing.x: there is no table of settings 'nothing'"),
        ('"outer" = { choices = [1] }', "unknown setting outer."),
        ('"evaluation.k" = { choices = [5, 10] }', "evaluation.k decides what is measured and cannot be searched"),
        ('"federation.evaluate-every" = { choices = [5] }', "federation.evaluate-every decides what is measured"),
        ('"run.seed" = { low = 0, high = 9 }', "run.seed decides what is measured"),
        ('"privacy.epsilon" = { low = 1, high = 9 }', "privacy.epsilon decides what is measured"),
        ('"outer.momentum" = 3', "outer.momentum must be {low = ..., high = ...} or {choices = [...]}, got 3"),
        ('"outer.momentum" = { low = 0.1 }', "must be {low = ..., high = ...} or {choices = [...]}"),
        ('"outer.momentum" = { low = 0.1, high = 0.2, mid = 1 }', "unknown or superfluous entries: mid"),
        ('"outer.momentum" = { choices = [0.1], low = 0 }', "unknown or superfluous entries: low"),
        ('"outer.momentum" = { choices = [] }', "choices must be a list of values, got []"),
        ('"outer.momentum" = { choices = [0.5, 2.0] }', "outer.momentum must be between 0 and 0.999, got 2.0"),
        ('"outer.momentum" = { choices = [0.5, 0.5] }', "a choice appears twice in [0.5, 0.5]"),
        ('"outer.optimizer" = { choices = ["lion"] }', "outer.optimizer must be one of adamw, adam, sgd, got 'lion'"),
        ('"outer.optimizer" = { low = "adam", high = "sgd" }', "outer.optimizer is no number, so it needs choices"),
        ('"model.feedback" = { low = false, high = true }', "model.feedback is no number, so it needs choices"),
        ('"outer.momentum" = { low = 0.5, high = 0.5 }', "low must be below high, got 0.5 and 0.5"),
        ('"outer.momentum" = { low = 0.0, high = 2 }', "outer.momentum must be between 0 and 0.999, got 2.0"),
        ('"outer.momentum" = { low = 0.0, high = 0.9, log = true }', "log = true needs low above 0 and no step"),
        ('"outer.momentum" = { low = 0.1, high = 0.9, log = 1 }', "log must be true or false, got 1"),
        ('"outer.momentum" = { low = 0.1, high = 0.9, step = 1 }', "step must be a number above 0, at most 0.8, got 1"),
        ('"adaptation.steps" = { low = 1, high = 5, step = 0.5 }', "step must be a whole number above 0, at most 4"),
        ('"adaptation.steps" = { low = 1, high = 4, step = 2 }', "steps of 2 from 1 do not lead to high = 4"),
        ('"outer.momentum" = { low = 0.0, high = 0.5, step = 0.2 }', "steps of 0.2 from 0 do not lead to high = 0.5"),
        ('"adaptation.steps" = { low = 1.5, high = 5 }', "adaptation.steps must be a whole number, got 1.5"),
        ('"outer.momentum" = { choices = [0.1] }\n[outer]\nmomentum = { choices = [0.2] }', "stands there twice"),
        ("x = [", "not TOML"),
    ],
)
def test_a_bad_space_is_refused_with_its_name_and_what_was_wanted(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(SettingsError) as error:
        space_of(tmp_path, text)
    assert message in str(error.value)
    assert str(tmp_path / "space.toml") in str(error.value)


def test_a_grid_has_every_combination_once(tmp_path: Path) -> None:
    space = space_of(
        tmp_path,
        '"adaptation.steps" = { low = 1, high = 3 }\n"outer.momentum" = { low = 0.0, high = 0.3, step = 0.1 }\n'
        '"outer.optimizer" = { choices = ["adam", "sgd"] }',
    )
    combinations = [tuple(combination.values()) for combination in space.grid()]
    assert len(combinations) == len(set(combinations)) == 3 * 4 * 2
    assert {steps for steps, _, _ in combinations} == {1, 2, 3}
    assert sorted({momentum for _, momentum, _ in combinations}) == pytest.approx([0.0, 0.1, 0.2, 0.3])
    for combination in space.grid():
        assert all(parameter.holds(combination[parameter.key]) for parameter in space.parameters)
        for key, value in combination.items():
            assert space.distributions[key]._contains(space.distributions[key].to_internal_repr(value))


@pytest.mark.parametrize("entry", ["{ low = 0.1, high = 0.9 }", "{ low = 0.1, high = 0.9, log = true }"])
def test_a_range_without_steps_is_no_grid(tmp_path: Path, entry: str) -> None:
    plan = Plan(settings=Settings(), space=space_of(tmp_path, f'"outer.momentum" = {entry}'), sampler=Sampler.GRID)
    with pytest.raises(SettingsError, match=r"outer.momentum: a grid needs choices, or a range with a step"):
        planned(plan)


def test_a_grid_whose_settings_do_not_go_together_is_refused_before_anything_runs(tmp_path: Path) -> None:
    space = space_of(tmp_path, '"model.width" = { choices = [64, 30] }\n"model.heads" = { choices = [2, 4] }')
    plan = Plan(settings=Settings(), space=space, sampler=Sampler.GRID, pruner=Pruner.NONE)
    with pytest.raises(SettingsError, match=r"model.width must be a multiple of model.heads, got 30 and 4"):
        first_values(plan)


def test_settings_outside_the_space_are_not_its_first_trial(tmp_path: Path) -> None:
    space = space_of(tmp_path, '"outer.learning-rate" = { low = 0.01, high = 0.1 }')
    assert first_values(Plan(settings=Settings(), space=space)) == []
    inside = Settings().with_values({"outer.learning-rate": 0.02}, "test")
    assert first_values(Plan(settings=inside, space=space)) == [{"outer.learning-rate": 0.02}]
