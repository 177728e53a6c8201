"""The commands that make, show and change a site's privacy ledger."""

import json
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from client.privacy.cli import privacy_app
from client.privacy.ledger import Ledger
from metarec_shared.errors import LedgerError, SettingsError
from metarec_shared.privacy.accounting import Mechanism

UPDATE = Mechanism(name="meta-update", noise_multiplier=1.0, sampling_rate=0.1)
BUDGET = ("--epsilon", "4", "--delta", "1e-5", "--noise-multiplier", "1", "--sampling-rate", "0.1")


def files(folder: Path) -> tuple[Path, Path]:
    return folder / "ledger.sqlite", folder / "witness.json"


def run(folder: Path, command: str, *options: str) -> Result:
    ledger, witness = files(folder)
    return CliRunner().invoke(privacy_app, [command, "--ledger", str(ledger), "--witness", str(witness), *options])


def printed(folder: Path, command: str, *options: str) -> str:
    result = run(folder, command, *options)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_init_makes_a_ledger_with_the_plan(tmp_path: Path) -> None:
    text = printed(tmp_path, "init", *BUDGET, "--popularity-noise", "10", "--popularity-releases", "2")
    ledger = Ledger.open(*files(tmp_path))
    counts = Mechanism(name="popularity", noise_multiplier=10.0, sampling_rate=1.0, releases=2)
    assert (ledger.budget, ledger.plan) == ((4.0, 1e-5), (UPDATE, counts))
    assert text == f"population {ledger.population_id}: epsilon 4 at delta 1e-05, nothing spent\n"


def test_init_without_item_counts_plans_none(tmp_path: Path) -> None:
    printed(tmp_path, "init", *BUDGET)
    assert Ledger.open(*files(tmp_path)).plan == (UPDATE,)


def test_init_does_not_forget_a_ledger_that_is_there(tmp_path: Path) -> None:
    printed(tmp_path, "init", *BUDGET)
    assert isinstance(run(tmp_path, "init", *BUDGET).exception, LedgerError)


def test_status_says_what_is_spent_and_left_and_for_whom(tmp_path: Path) -> None:
    printed(tmp_path, "init", *BUDGET)
    ledger = Ledger.open(*files(tmp_path))
    for number in range(3):
        ledger.charge(run="7", round_number=number, mechanism=UPDATE)
    lines = dict(line.split(":", 1) for line in printed(tmp_path, "status").splitlines())
    assert {name: value.strip() for name, value in lines.items()} == {
        "population": ledger.population_id,
        "unit": "one user's whole history",
        "budget": "epsilon 4 at delta 1e-05",
        "spent": f"epsilon {ledger.spent():.4g}",
        "accountant": "prv",
        "releases": "3",
        "left of meta-update": f"{ledger.affordable(UPDATE)} (noise 1, sampling rate 0.1)",
        "the guarantee is per site": "a person at two sites composes",
    }


def test_history_prints_every_release_or_writes_them(tmp_path: Path) -> None:
    printed(tmp_path, "init", *BUDGET)
    release = Ledger.open(*files(tmp_path)).charge(run="7", round_number=5, mechanism=UPDATE)
    assert printed(tmp_path, "history") == f"3 {release.time} 7 5 meta-update 1.0 0.1\n"
    assert printed(tmp_path, "history", "--json", str(tmp_path / "history.json")) == ""
    assert json.loads((tmp_path / "history.json").read_text()) == [
        {
            "number": 3,
            "time": release.time,
            "run": "7",
            "round": 5,
            "mechanism": "meta-update",
            "noise_multiplier": 1.0,
            "sampling_rate": 0.1,
        }
    ]


def test_set_budget_changes_epsilon_and_keeps_delta_unless_it_is_given(tmp_path: Path) -> None:
    printed(tmp_path, "init", *BUDGET)
    assert printed(tmp_path, "set-budget", "--epsilon", "5") == ("budget: epsilon 5 at delta 1e-05; spent: epsilon 0\n")
    printed(tmp_path, "set-budget", "--epsilon", "6", "--delta", "1e-6")
    assert Ledger.open(*files(tmp_path)).budget == (6.0, 1e-6)


@pytest.mark.parametrize("command", [["status"], ["history"], ["set-budget", "--epsilon", "1"]])
def test_without_a_ledger_every_command_says_so(command: list[str], tmp_path: Path) -> None:
    error = run(tmp_path, *command).exception
    assert isinstance(error, LedgerError)
    assert "ledger.sqlite: no ledger" in str(error)


def test_a_plan_out_of_range_is_an_error(tmp_path: Path) -> None:
    error = run(tmp_path, "init", *BUDGET[:-1], "1.5").exception
    assert isinstance(error, SettingsError)
    assert str(error) == "sampling rate of meta-update is out of range, got 1.5"
