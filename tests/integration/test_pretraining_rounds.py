"""Rounds of pre-training through the in-process grid: the same federation, and a run that meta-learning starts from."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from client.data_source import load_learner, load_population
from client.meta_update import meta_update
from metarec_shared.checkpoint import load_checkpoint
from metarec_shared.errors import CheckpointError, SettingsError
from metarec_shared.exchange import TrainRequest
from metarec_shared.pretraining import draw_histories
from metarec_shared.randomness import uniforms
from metarec_shared.settings import Settings
from metarec_shared.sources import load_item_features
from metarec_shared.split import Role
from server.run_folder import read_metrics
from server.warm_start import warm_parameters
from simulations.engines import node_count, nodes_by_id
from simulations.pretrain_cli import pretrain_app
from tests.integration.test_in_process_federation import assert_same, make_grid, parameters_of, run
from tests.small import SMALL_RUN, small_settings

OBJECTIVES = ["masked-item", "autoregressive", "contrastive"]
SHORT = {"pretraining__length": 8, "pretraining__negatives": 8}


def pretraining(objective: str, rounds: int = 4, **values: object) -> Settings:
    encoder = "gpt2" if objective == "autoregressive" else "bert"
    given = {"pretraining__objective": objective, "pretraining__rounds": rounds, "model__encoder": encoder}
    return small_settings(**SHORT, **given, **values)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_run_is_the_same_over_any_partition(objective: str, tmp_path: Path) -> None:
    values = {"federation__cohort": 1000, "outer__optimizer": "sgd", "outer__learning_rate": 0.1}
    for name, nodes in (("devices", 0), ("sites", 3)):
        run(pretraining(objective, run__out=str(tmp_path / name), federation__nodes=nodes, **values))
    assert_same(tmp_path / "devices", tmp_path / "sites", atol=1e-5)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_rounds_lower_the_loss(objective: str, tmp_path: Path) -> None:
    run(pretraining(objective, 20, federation__rounds=20, federation__nodes=1, run__out=str(tmp_path)))
    losses = [line["train_loss"] for line in read_metrics(tmp_path / "metrics.jsonl")]
    assert np.mean(losses[-5:]) < np.mean(losses[:5])


def test_a_nodes_update_is_the_loss_of_the_users_it_drew() -> None:
    settings = pretraining("masked-item")
    learner, nodes = load_learner(settings), node_count(settings)
    group = nodes_by_id(settings, nodes, np.arange(1, nodes + 1))
    fingerprint = load_item_features(settings).fingerprint
    request = TrainRequest(round_number=1, sampling_rate=0.5, rating_scale=None, catalogue=fingerprint)
    parameters = {n: v.detach().clone() for n, v in learner.model.named_parameters() if n in learner._travelling}
    update = meta_update(learner, parameters, group, request)
    population = load_population(settings)
    users = population.users(Role.TRAINING)
    users = users[uniforms(population.keys[users], 0, "sampling", 1) < 0.5]
    histories = draw_histories(
        population.interactions, users, population.keys[users], None, settings.pretraining,
        (settings.tasks.feature_dropout, settings.model.width), (0, 1),
    )  # fmt: skip
    E = learner.model.item_vectors(learner.id_mask(1))
    losses = learner.objective.losses(learner.model, histories, E, torch.zeros(0))
    total = losses.sum()
    assert update.users == len(users)
    assert update.loss == pytest.approx(float(total.detach()), rel=1e-5)
    wanted = torch.autograd.grad(total, learner.model.head.weight)[0]
    torch.testing.assert_close(update.gradients["head.weight"], wanted, atol=1e-5, rtol=1e-4)
    later = meta_update(learner, parameters, group, replace(request, round_number=5))
    assert bool(later.gradients["adaptation.raw_rates"].any())
    assert not bool(update.gradients["adaptation.raw_rates"].any())


def test_the_first_rounds_pre_train_and_the_rest_meta_learn_also_after_a_resume(tmp_path: Path) -> None:
    class StoppedError(Exception):
        pass

    run(pretraining("masked-item", 2, run__out=str(tmp_path / "whole")))
    broken = pretraining("masked-item", 2, run__out=str(tmp_path / "broken"))

    class StoppingGrid(type(make_grid(broken))):  # type: ignore[misc]
        pushes = 0

        def push_messages(self, messages: object) -> object:
            StoppingGrid.pushes += 1
            if StoppingGrid.pushes > 4:
                raise StoppedError
            return super().push_messages(messages)

    with pytest.raises(StoppedError):
        run(broken, make_grid(broken, kind=StoppingGrid))
    run(pretraining("masked-item", 2, run__out=str(tmp_path / "broken"), run__resume=True))
    assert_same(tmp_path / "whole", tmp_path / "broken")
    run(small_settings(run__out=str(tmp_path / "only meta")))
    mixed, meta = (
        [line["train_loss"] for line in read_metrics(tmp_path / name / "metrics.jsonl")]
        for name in ("whole", "only meta")
    )
    assert mixed[0] != pytest.approx(meta[0], abs=1e-3)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_meta_learning_starts_where_pre_training_on_public_data_ended(objective: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(
        pretrain_app,
        [
            *("--objective", objective, "--rounds", "4", "--out", str(tmp_path / "public"), "--nodes", "1"),
            *(f"--set={key}={value}" for key, value in SMALL_RUN.items() if key != "federation.rounds"),
            *("--set=pretraining.length=8", "--set=pretraining.negatives=8"),
        ],
    )
    assert result.exit_code == 0, result.output
    assert f"--init {tmp_path / 'public'}" in result.output
    encoder = "gpt2" if objective == "autoregressive" else "bert"
    own = small_settings(
        run__init=str(tmp_path / "public"), run__out=str(tmp_path / "own"), model__encoder=encoder,
        generator__items=35, text__encoder="builtin",
    )  # fmt: skip
    start, public = warm_parameters(own, load_item_features(own)), parameters_of(tmp_path / "public")
    for name, value in start.items():
        if name not in ("item_ids", "item_bias"):
            assert torch.equal(value, public[name]), name
    run(own)
    assert load_checkpoint(tmp_path / "own").validation is not None
    assert not torch.equal(parameters_of(tmp_path / "own")["head.weight"], public["head.weight"])
    other = replace(own, model=replace(own.model, recency=True) if encoder == "bert" else small_settings().model)
    with pytest.raises(CheckpointError, match="this run has"):
        warm_parameters(other, load_item_features(own))


@pytest.mark.parametrize("mode", ["site", "local"])
@pytest.mark.parametrize("objective", ["masked-item", "contrastive"])
def test_under_terms_of_privacy_no_user_adds_more_than_the_clip_norm(objective: str, mode: str) -> None:
    settings = pretraining(
        objective, generator__users=200, privacy__mode=mode, privacy__epsilon=math.inf, privacy__sampling_rate=0.25,
        privacy__randomness="simulated", federation__clip_norm=0.01, model__item_ids=False,
    )  # fmt: skip
    learner = load_learner(settings)
    count = node_count(settings)
    group = nodes_by_id(settings, count, np.arange(1, count + 1))
    request = TrainRequest(
        round_number=1, sampling_rate=0.25, rating_scale=None, catalogue=load_item_features(settings).fingerprint
    )
    parameters = {n: v.detach().clone() for n, v in learner.model.named_parameters() if n in learner._travelling}
    update = meta_update(learner, parameters, group, request)
    norm = math.sqrt(sum(float(value.double().square().sum()) for value in update.gradients.values()))
    assert update.loss is None
    assert 0 < norm <= 0.01 * len(load_population(settings).users(Role.TRAINING))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"pretraining__objective": "masked-item"}, "give both pretraining.objective and pretraining.rounds"),
        ({"pretraining__rounds": 3}, "give both pretraining.objective and pretraining.rounds, got none and 3"),
        (
            {"pretraining__objective": "masked-item", "pretraining__rounds": 9, "federation__rounds": 4},
            "pretraining.rounds are the first of federation.rounds, got 9 of 4",
        ),
    ],
)
def test_rounds_and_objectives_that_do_not_go_together_are_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        small_settings(**values)
