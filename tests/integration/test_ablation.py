"""The ablation: choices are changes of the defaults, runs are made once, and what pays is said by validation users."""

import json
from pathlib import Path

import pytest
import torch
import typer
from safetensors.torch import load_file
from typer.testing import CliRunner

from metarec_shared.errors import CheckpointError, SettingsError
from metarec_shared.settings import Settings
from simulations.benchmarks import ablation
from simulations.benchmarks.ablation import BASE, CHOICES, FINE_TUNED, pays
from tests.small import SMALL_RUN


def test_every_choice_is_a_valid_change_of_the_defaults() -> None:
    defaults = Settings()
    for name, choice in (CHOICES | FINE_TUNED).items():
        started = {"run.init": "runs/seed-0"} if name in FINE_TUNED else {}
        changed = defaults.with_values({**choice.values, **started}, name)
        assert (changed == defaults) == (name == BASE), name


@pytest.mark.parametrize(
    ("random", "time", "wanted"),
    [((3.0, 1.0), (0.0, 1.0), True), ((1.9, 1.0), (1.0, 1.0), False), ((3.0, 1.0), (-2.5, 1.0), False)],
)
def test_a_choice_pays_by_two_standard_errors(
    random: tuple[float, float], time: tuple[float, float], wanted: bool
) -> None:
    figures = {
        "validation random_percent": random[0], "validation random_percent_se": random[1],
        "validation time_percent": time[0], "validation time_percent_se": time[1],
        "test random_percent": -50.0, "test random_percent_se": 1.0,
    }  # fmt: skip
    assert pays(figures) == wanted


def test_the_command_compares_and_keeps_what_it_ran(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    app = typer.Typer()
    app.command()(ablation.main)
    values = [part for key, value in SMALL_RUN.items() for part in ("--set", f"{key}={value}")]
    arguments = ["--data", "", "--seeds", "0,1", "--only", "3 steps", "--out", str(tmp_path / "runs")]
    arguments += ["--json", str(tmp_path / "figures.json"), *values]
    first = CliRunner().invoke(app, arguments)
    assert first.exit_code == 0, first.output
    figures = json.loads((tmp_path / "figures.json").read_text())
    base, changed = figures["rows"]
    assert (base["choice"], changed["choice"]) == (BASE, "3 steps")
    assert base["validation random_percent"] == 0.0
    assert set(base) == set(changed)
    runs = [tmp_path / "runs" / name / f"seed-{seed}" for name in (BASE, "3-steps") for seed in (0, 1)]
    values_of = [json.loads((run / ablation.FIGURES_FILE).read_text()) for run in runs]
    gains = [100 * (b["test time"] / a["test time"] - 1) for a, b in zip(values_of[:2], values_of[2:], strict=True)]
    assert changed["test time_percent"] == pytest.approx(sum(gains) / 2)

    def never(*_: object) -> None:
        raise AssertionError("a finished run was run again")

    monkeypatch.setattr("simulations.repeated.simulate", never)
    again = CliRunner().invoke(app, arguments)
    assert again.exit_code == 0, again.output
    assert json.loads((tmp_path / "figures.json").read_text()) == figures
    other = CliRunner().invoke(app, [*arguments, "--set", "model.feedback=true"])
    assert isinstance(other.exception, CheckpointError)


def test_a_run_starts_from_the_one_of_its_seed_and_trains_what_the_choice_says(tmp_path: Path) -> None:
    app = typer.Typer()
    app.command()(ablation.main)
    values = [part for key, value in SMALL_RUN.items() for part in ("--set", f"{key}={value}")]
    arguments = ["--data", "", "--seeds", "0,1", "--out", str(tmp_path / "runs"), *values]
    first = CliRunner().invoke(app, [*arguments, "--only", BASE])
    assert first.exit_code == 0, first.output
    starts, name = tmp_path / "runs" / BASE, "from the start, biases, inner rates"
    second = CliRunner().invoke(app, [*arguments, "--only", name, "--starts", str(starts)])
    assert second.exit_code == 0, second.output
    for seed in (0, 1):
        start = load_file(starts / f"seed-{seed}" / "model.safetensors")
        tuned = load_file(tmp_path / "runs" / CHOICES[BASE].slug(name) / f"seed-{seed}" / "model.safetensors")
        parameters = [key for key in start if key.startswith("parameters/")]
        changed = {key for key in parameters if not torch.equal(start[key], tuned[key])}
        assert changed == {
            key for key in parameters if key.startswith(("parameters/item_bias", "parameters/adaptation"))
        }
    without = CliRunner().invoke(app, [*arguments, "--only", name])
    assert isinstance(without.exception, SettingsError)
