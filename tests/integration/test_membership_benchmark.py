"""The membership benchmark: its tests find raw updates out, are not won by popularity, and obey the bounds."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from sklearn.metrics import roc_auc_score
from typer.testing import CliRunner

from client.data_source import load_learner
from metarec_shared.settings import Settings
from simulations.benchmarks import attacked_run, membership, recorded_run
from simulations.benchmarks.attack import auc, auc_bound, for_replacement, item_statistics
from simulations.benchmarks.histories import WITHHELD, Histories, load_histories
from simulations.benchmarks.single_release import Release, Target, attack, starting_parameters, update_of
from tests.small import small_settings

SMALL: dict[str, Any] = {"generator__users": 160, "generator__items": 120, "generator__interactions": 30}
PRIVATE: dict[str, Any] = SMALL | {
    "privacy__mode": "site",
    "privacy__randomness": "simulated",
    "privacy__sampling_rate": 0.5,
    "federation__clip_norm": 1.0,
    "model__item_ids": False,
}


@pytest.fixture(scope="module")
def histories() -> Histories:
    settings = small_settings(**SMALL)
    return load_histories(settings, len(load_learner(settings).model.text))


def test_auc_is_scikit_learns() -> None:
    rng = np.random.default_rng(0)
    positive, negative = rng.integers(0, 6, 40).astype(float), rng.integers(0, 5, 70).astype(float)
    expected = roc_auc_score(np.repeat([1, 0], [40, 70]), np.concatenate([positive, negative]))
    assert auc(positive, negative) == pytest.approx(expected)
    assert math.isnan(auc(positive, np.empty(0)))


@pytest.mark.parametrize("epsilon", [0.0, 0.5, 2.0, 4.0])
def test_the_bound_of_pure_privacy_has_a_closed_form(epsilon: float) -> None:
    assert auc_bound([(epsilon, 0.0)]) == pytest.approx(1 - 1 / (1 + math.exp(epsilon)), abs=1e-6)


def test_more_guarantees_bound_more_tightly_and_replacing_costs_twice() -> None:
    assert auc_bound([(0.0, 0.1)]) == pytest.approx(0.5 + 0.1 - 0.1**2 / 2, abs=1e-6)
    assert auc_bound([(2.0, 1e-5), (0.0, 0.1)]) < min(auc_bound([(2.0, 1e-5)]), auc_bound([(0.0, 0.1)]))
    assert auc_bound([]) == auc_bound([(math.inf, 0.0)]) == 1.0
    assert for_replacement([(1.0, 0.0)]) == [(2.0, 0.0)]
    assert for_replacement([(0.0, 0.1)]) == [(0.0, 0.2)]


def test_coins_withhold_a_share_of_every_history(histories: Histories) -> None:
    kept, withheld = histories.population.interactions, histories.withheld
    assert len(withheld.items) / (len(kept.items) + len(withheld.items)) == pytest.approx(WITHHELD, abs=0.03)
    assert not np.intersect1d(kept.history(3), withheld.history(3)).size
    assert not np.intersect1d(histories.members, histories.others).size


def test_one_raw_update_tells_what_was_drawn_and_a_noised_one_does_not(histories: Histories) -> None:
    settings = small_settings(**SMALL)
    raw = attack(settings, histories, Release(name="all", released="all"), 8)
    assert raw["drawn"]["auc"] > 0.95
    assert raw["anybody"]["auc"] > 0.95
    assert 0.5 < raw["history"]["auc"] < raw["drawn"]["auc"]
    noised = attack(settings, histories, Release(name="all", released="all", noise=2.0), 8)
    for test in ("drawn", "history"):
        assert abs(noised[test]["auc"] - 0.5) < 4 * noised[test]["standard_error"] + 0.05
        assert abs(raw[test]["popularity"] - 0.5) < 0.15
    assert noised["protection"] == "clipped, noise 2"


def test_a_sum_over_users_is_the_sum_of_their_updates(histories: Histories) -> None:
    settings = small_settings(**SMALL)
    learner = load_learner(settings)
    parameters = starting_parameters(learner, histories)
    target = Target.of(histories, settings, int(histories.members[0]), 3)
    whole = update_of(learner, parameters, histories, target.group)
    parts = [update_of(learner, parameters, histories, target.group[place : place + 1]) for place in range(3)]
    for name, value in whole.items():
        assert np.allclose(value, sum(part[name] for part in parts), atol=1e-5), name
    assert set(item_statistics(learner.model, parameters, whole)) == {
        "likelihood", "rows", "bias", "head", "projection", "together"
    }  # fmt: skip


def run_of(**values: Any) -> tuple[Settings, Histories]:
    settings = small_settings(**PRIVATE | values)
    return settings, load_histories(settings, len(load_learner(settings).model.text))


def test_a_reply_is_projected_on_what_each_user_would_have_added() -> None:
    settings, histories = run_of(privacy__epsilon=math.inf, privacy__sampling_rate=1.0, federation__rounds=1)
    run = recorded_run.Run(settings, histories)
    test = attacked_run.UserTest(histories.members[:6], histories.others)
    (shown,) = list(run.rounds())
    test.see(run, shown)
    assert len(test.norms) == 6
    run.learner.load(shown.parameters)
    by_hand = []
    for user in histories.members[:6]:
        own, _ = recorded_run.clipped_sum(run, np.array([user]), 1)
        by_hand.append(sum(float((own[name] * shown.reply[name]).sum()) for name in own))
    assert test.replies[0] == pytest.approx(by_hand, rel=1e-3)


def test_without_noise_members_are_told_apart_from_others() -> None:
    settings, histories = run_of(
        privacy__epsilon=math.inf, privacy__sampling_rate=1.0, federation__rounds=12, adaptation__steps=3
    )
    found = attacked_run.attack_run(settings, histories, 60)
    assert found["noise"] == 0
    assert max(found["every_statistic"]["user"].values()) > 0.6
    assert set(found["every_statistic"]["item"]) >= {"replies", "final model", "gain, centred"}


def test_with_noise_nobody_is_told_apart_beyond_the_bound() -> None:
    noise = {"privacy__noise_multiplier": 4.0, "privacy__popularity_noise": 20.0}
    settings, histories = run_of(**noise, privacy__sampling_rate=0.1, federation__rounds=12)
    found = attacked_run.attack_run(settings, histories, 60)
    bounds = membership.bounds_of(found["terms"], 1.0, 12)
    assert 0.5 < bounds["user_profile_bound"] <= bounds["user_bound"] == pytest.approx(0.731, abs=1e-3)
    assert bounds["user_profile_bound"] < bounds["item_profile_bound"] <= bounds["item_bound"] < 1
    assert found["user"]["auc"] < bounds["user_profile_bound"] + 4 * found["user"]["standard_error"]
    assert "item counts" in found["every_statistic"]["item"]


def test_the_benchmark_prints_and_writes_what_it_found(tmp_path: Path) -> None:
    app = typer.Typer()
    app.command()(membership.main)
    arguments = ["--users", "160", "--items", "60", "--groups", "1,2", "--noises", "1", "--targets", "2"]
    arguments += ["--epsilons", "inf", "--rounds", "3", "--rate", "0.2", "--run-targets", "20"]
    finished = CliRunner().invoke(app, [*arguments, "--json", str(tmp_path / "f.json")], catch_exceptions=False)
    assert finished.exit_code == 0, finished.output
    figures = json.loads((tmp_path / "f.json").read_text())
    assert len(figures["single"]) == 3 * 2 + 1 + 2 * 2
    (run,) = figures["runs"]
    assert run["epsilon"] is None
    assert run["user_bound"] == run["item_profile_bound"] == 1
    assert 0 <= run["user"]["auc"] <= 1
