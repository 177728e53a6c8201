"""The curve of utility against epsilon, and users resampled from a model of users."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from metarec_shared.cli import run as command
from metarec_shared.errors import CheckpointError, SettingsError
from metarec_shared.population import Population
from metarec_shared.sources import load_training_dataset
from metarec_shared.split import Role
from simulations import repeated
from simulations.privacy_sweep import summary, sweep
from simulations.resampled import fit_users, resampled
from tests.integration.test_private_federation import SITE
from tests.small import small_settings

SMALL = {**SITE, "privacy__noise_multiplier": 0.0, "privacy__popularity_noise": 0.0, "federation__rounds": 2}


def test_a_sweep_tabulates_every_epsilon_over_seeds_and_keeps_finished_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = small_settings(**SMALL)
    found = sweep(settings, [math.inf, 4.0], [0, 1], tmp_path, lambda line: None)
    assert [point.epsilon for point in found.points] == [math.inf, 4.0]
    assert found.points[0].spent is None
    assert found.points[1].spent is not None
    assert 3.0 < found.points[1].spent <= 4.0
    assert found.points[0].noise_multiplier == 0.0 < found.points[1].noise_multiplier
    written = json.loads((tmp_path / "sweep.json").read_text())
    assert written["points"][0]["epsilon"] == "inf"
    values = written["points"][1]["values"]["random"]
    assert written["points"][1]["ndcg_random"]["mean"] == pytest.approx(np.mean(values))
    assert written["points"][1]["ndcg_random"]["se"] == pytest.approx(np.std(values, ddof=1) / np.sqrt(2))
    table = (tmp_path / "sweep.md").read_text()
    assert "| inf | 0 |" in table
    assert "| popularity, not private |" in table
    page = (tmp_path / "report.html").read_text()
    assert "<svg role=" in page
    assert f"{found.users:,} users" in page

    def again(*arguments: Any, **_: Any) -> None:
        raise AssertionError("a finished run was run again")

    monkeypatch.setattr(repeated, "simulate", again)
    assert sweep(settings, [math.inf, 4.0], [0, 1], tmp_path, lambda line: None) == found
    with pytest.raises(CheckpointError, match="made with other settings"):
        sweep(small_settings(**SMALL, outer__learning_rate=1.0), [4.0], [0], tmp_path, lambda line: None)


def test_a_sweep_without_privacy_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"needs privacy.mode = site, central or local"):
        sweep(small_settings(), [1.0], [0], tmp_path, lambda line: None)


def test_one_seed_has_no_standard_error() -> None:
    assert summary([0.25]) == {"mean": 0.25, "se": None}


@pytest.mark.parametrize("epsilon", ["0,1", "x", "-1"])
def test_epsilons_must_be_positive_numbers(epsilon: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(["privacy", "sweep", "--epsilon", epsilon]) == 2
    assert "--epsilon" in capsys.readouterr().err


def test_resampled_users_meta_train_and_the_others_stay(tmp_path: Path) -> None:
    settings = small_settings(generator__users=150)
    dataset = load_training_dataset(settings)
    many = resampled(dataset, 500, seed=0)
    before, after = (Population.of(one.interactions, one.rating_scale, 0) for one in (dataset, many))
    assert (after.roles == Role.TRAINING).sum() == 500
    for role in (Role.VALIDATION, Role.TEST):
        assert (after.roles == role).sum() == (before.roles == role).sum()
        for user in np.flatnonzero(before.roles == role)[:5]:
            same = int(np.flatnonzero(after.interactions.user_ids == before.interactions.user_ids[user])[0])
            assert after.interactions.history(same).tolist() == before.interactions.history(int(user)).tolist()
    for user in np.flatnonzero(after.roles == Role.TRAINING)[:50]:
        history = after.interactions.history(int(user))
        assert len(set(history.tolist())) == len(history) >= 2
    assert resampled(dataset, 500, seed=0).interactions.items.tolist() == many.interactions.items.tolist()


def test_the_user_model_tells_a_users_items_from_others_better_than_popularity() -> None:
    settings = small_settings(generator__users=150)
    dataset = load_training_dataset(settings)
    model = fit_users(dataset.interactions, len(dataset.catalogue), seed=0)
    scores = (model.users @ model.items.T + model.popularity).numpy()
    counts = np.bincount(dataset.interactions.items, minlength=len(dataset.catalogue))

    def share_above(values: np.ndarray) -> float:
        shares = []
        for user in range(len(dataset.interactions)):
            own = np.zeros(len(counts), dtype=bool)
            own[dataset.interactions.history(user)] = True
            row = values[user] if values.ndim == 2 else values
            shares.append((row[own][:, None] > row[~own][None]).mean())
        return float(np.mean(shares))

    assert share_above(scores) > share_above(counts) + 0.02
