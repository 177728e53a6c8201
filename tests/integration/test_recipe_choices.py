"""The benchmark of what buys utility under privacy: its noise is the large site's, and its differences are paired."""

import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import typer
from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent
from dp_accounting.pld import PLDAccountant
from scipy import stats
from typer.testing import CliRunner

from metarec_shared.errors import PrivacyError
from metarec_shared.settings import PRIVATE_DEFAULTS
from simulations.benchmarks import recipe_choices
from simulations.benchmarks.choices import compared
from simulations.benchmarks.recipe_choices import BASE, CHOICES, scaled
from tests.small import small_settings

LARGE = {
    "privacy__mode": "site",
    "privacy__epsilon": 2.0,
    "privacy__sampling_rate": 0.1,
    "federation__clip_norm": 1.0,
    "federation__rounds": 5,
}


@pytest.mark.parametrize(("here", "rate"), [(800, 0.5), (200, 1.0)])
def test_noise_over_the_expected_users_is_the_large_sites(here: int, rate: float) -> None:
    wanted, terms = scaled(small_settings(**LARGE), 4000, here)
    accountant = PLDAccountant()
    accountant.compose(PoissonSampledDpEvent(0.1, GaussianDpEvent(terms.noise_multiplier)), 5)
    accountant.compose(GaussianDpEvent(terms.popularity_noise))
    assert 1.95 < accountant.get_epsilon(terms.delta) <= 2.0
    assert wanted.privacy.sampling_rate == rate
    assert wanted.privacy.noise_multiplier / (rate * here) == pytest.approx(terms.noise_multiplier / 400)
    assert wanted.privacy.popularity_noise / here == pytest.approx(terms.popularity_noise / 4000)


@pytest.mark.parametrize("changed", [{"privacy__mode": "none"}, {"privacy__epsilon": math.inf}])
def test_noise_without_an_epsilon_is_refused(changed: dict[str, object]) -> None:
    with pytest.raises(PrivacyError, match="noise is scaled from"):
        scaled(small_settings(**(LARGE | changed)), 4000, 800)


def test_differences_are_paired_over_seeds() -> None:
    base, found = [0.10, 0.20, 0.40], [0.12, 0.22, 0.42]
    figures = compared({"random": found, "time": base}, {"random": base, "time": base})
    ratios = np.divide(found, base) - 1
    assert figures["random"] == pytest.approx(np.mean(found))
    assert figures["random_percent"] == pytest.approx(100 * ratios.mean())
    assert figures["random_percent_se"] == pytest.approx(100 * stats.sem(ratios))
    assert figures["time_percent"] == figures["time_percent_se"] == 0.0


def test_every_choice_is_a_change_of_the_private_defaults() -> None:
    assert not CHOICES[BASE].values
    for choice in list(CHOICES.values())[1:]:
        start = {"run.init": "run"} if "federation.lora-rank" in choice.values else {}
        plain = small_settings(**LARGE).with_values(start, "test")
        assert plain != plain.with_values(choice.values, "test")


def write_data(folder: Path, seed: int) -> str:
    """Write histories of 150 users over 24 items, half of which a user's group prefers."""
    rng = np.random.default_rng(seed)
    rows = [
        (user, item, 4, place)
        for user in range(150)
        for place, item in enumerate(rng.permutation(np.arange(12) + 12 * (user % 2))[:11])
    ]
    folder.mkdir()
    pd.DataFrame(rows, columns=["user_id", "item_id", "rating", "timestamp"]).to_csv(
        folder / "interactions.csv", index=False
    )
    titles = [f"Story {item} of {'love' if item < 12 else 'war'}" for item in range(24)]
    pd.DataFrame({"item_id": range(24), "title": titles}).to_csv(folder / "items.csv", index=False)
    return str(folder)


def test_the_benchmark_compares_choices_from_a_public_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipe_choices, "PRIVATE_DEFAULTS", {**PRIVATE_DEFAULTS, "federation.rounds": 2})
    app = typer.Typer()
    app.command()(recipe_choices.main)
    arguments = ["--data", write_data(tmp_path / "data", 0), "--public", write_data(tmp_path / "public", 1)]
    arguments += ["--users", "500", "--seeds", "0,1", "--warm-rounds", "2", "--out", str(tmp_path / "runs")]
    arguments += ["--only", "adapts the head; learning rate 1e-2", "--json", str(tmp_path / "f.json")]
    finished = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert finished.exit_code == 0
    rows = {row["choice"]: row for row in json.loads((tmp_path / "f.json").read_text())["rows"]}
    assert list(rows) == [BASE, "adapts the head", "learning rate 1e-2"]
    assert rows[BASE]["random_percent"] == rows[BASE]["time_percent_se"] == 0.0
    assert rows["learning rate 1e-2"]["expected_users"] == pytest.approx(50)
    run = json.loads((tmp_path / "runs" / "adapts-the-head" / "seed-1" / "settings.json").read_text())
    assert run["run"]["seed"] == 1
    assert run["run"]["init"] == str(tmp_path / "runs" / "public-head")
    assert run["adaptation"]["parameters"] == "head"
    assert "adapts the head" in finished.output
