"""A federation that trains the rating model, with the real ServerApp and ClientApp."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from client.answer_history import answer_history
from client.data_source import load_population, load_rating_learner
from client.meta_update import meta_update
from client.node import enroll
from metarec_shared.checkpoint import load_checkpoint, load_tensors, save_tensors
from metarec_shared.dataset import RatingScale
from metarec_shared.errors import CheckpointError, DataError, SettingsError
from metarec_shared.exchange import TrainRequest
from metarec_shared.population import Population
from metarec_shared.rating_model import rating_errors
from metarec_shared.rating_tasks import evaluation_rating_tasks
from metarec_shared.settings import RATING_DEFAULTS, Settings
from metarec_shared.sources import load_dataset
from metarec_shared.split import Role
from server.run_folder import RESUME_FILE, read_metrics
from server.run_settings import run_settings
from simulations.engines import in_process_grid, node_count, nodes_by_id
from simulations.simulate import simulate
from tests.integration.test_in_process_federation import StoppingGrid, assert_same, parameters_of, run
from tests.small import small_settings

RATING = {
    "model__target": "rating",
    "rating__width": 4,
    "generator__interactions": 20,
    "outer__optimizer": "adam",
    "outer__learning_rate": 0.02,
    "outer__weight_decay": 0.0,
    "outer__averaging": 0.0,
}


def rating_settings(folder: Path, **values: object) -> Settings:
    return small_settings(**(RATING | {"run__out": str(folder)} | values))


def run_rating(settings: Settings) -> None:
    run(settings, in_process_grid(settings))


def test_a_simulation_predicts_ratings_of_unseen_users_better_than_without_adaptation(tmp_path: Path) -> None:
    settings = rating_settings(
        tmp_path / "run", generator__users=400, federation__rounds=60, federation__evaluate_every=10,
        federation__cohort=64, outer__learning_rate=0.03,
    )  # fmt: skip
    result = simulate(settings, "in-process", lambda line: None)
    lines = read_metrics(tmp_path / "run" / "metrics.jsonl")
    judged = {line["round"]: line["validation_mae"] for line in lines if "validation_mae" in line}
    checkpoint = load_checkpoint(tmp_path / "run")
    assert checkpoint.validation == pytest.approx(min(judged.values()))
    assert judged[checkpoint.round_number] == min(judged.values())
    ratings = result["ratings"]
    assert ratings["metarec"]["mae"] < ratings["unadapted"]["mae"]
    dataset = load_dataset(settings)
    population = Population.of(dataset.interactions, checkpoint.rating_scale, 0)
    tasks = evaluation_rating_tasks(population, population.users(Role.TEST), 4, 10, checkpoint.rating_scale, 1)
    again = rating_errors(checkpoint.rating_model(), tasks, checkpoint.rating_scale)["mae"].mean().item()
    assert ratings["metarec"]["mae"] == pytest.approx(again)
    constant = (tasks.ratings - tasks.ratings[tasks.support].mean()).abs()[tasks.query].mean().item()
    assert ratings["metarec"]["mae"] < constant
    assert (tmp_path / "run" / "report.html").exists()
    assert json.loads((tmp_path / "run" / "result.json").read_text())["cold_user"] == {"random": None, "time": None}


@pytest.mark.parametrize("clip_norm", [0.0, 0.3])
def test_how_users_are_spread_over_nodes_changes_nothing(tmp_path: Path, clip_norm: float) -> None:
    for nodes in (0, 4):
        run_rating(
            rating_settings(
                tmp_path / str(nodes), federation__nodes=nodes, federation__cohort=1000, federation__clip_norm=clip_norm
            )
        )
    assert_same(tmp_path / "0", tmp_path / "4", atol=2e-4)


def test_a_run_broken_off_and_resumed_ends_bit_for_bit_like_one_never_stopped(tmp_path: Path) -> None:
    run_rating(rating_settings(tmp_path / "whole", federation__rounds=7))
    broken = rating_settings(tmp_path / "broken", federation__rounds=7)
    nodes = node_count(broken)
    grid = StoppingGrid(load_rating_learner(broken), nodes, lambda ids: nodes_by_id(broken, nodes, ids))
    with pytest.raises(KeyboardInterrupt):
        run(broken, grid)
    assert len(read_metrics(tmp_path / "broken" / "metrics.jsonl")) < 7
    run_rating(replace(broken, run=replace(broken.run, resume=True)))
    assert_same(tmp_path / "whole", tmp_path / "broken")
    whole, resumed = (load_tensors(tmp_path / name / RESUME_FILE)[0] for name in ("whole", "broken"))
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())


def test_one_user_more_moves_a_clipped_update_by_the_norm_at_most() -> None:
    settings = rating_settings(Path("unused"), federation__clip_norm=0.05)
    learner, nodes = load_rating_learner(settings), node_count(settings)
    parameters = {name: value.detach().clone() for name, value in learner.model.named_parameters()}
    request = TrainRequest(
        round_number=1, sampling_rate=1.0, rating_scale=RatingScale(low=1, high=5), catalogue=learner.catalogue
    )
    training = 1 + load_population(settings).users(Role.TRAINING)
    updates = [
        meta_update(learner, parameters, nodes_by_id(settings, nodes, users), request).gradients
        for users in (training, training[:-1])
    ]
    moved = torch.cat([(updates[0][name] - updates[1][name]).flatten() for name in updates[0]]).norm().item()
    assert moved == pytest.approx(0.05, rel=1e-4)


@pytest.mark.parametrize("nodes", [0, 3])
def test_the_mean_is_that_of_all_training_ratings_and_stays(tmp_path: Path, nodes: int) -> None:
    settings = rating_settings(tmp_path, federation__rounds=3, federation__nodes=nodes)
    run_rating(settings)
    population = load_population(settings)
    ratings = population.interactions.take(population.users(Role.TRAINING)).ratings
    checkpoint = load_checkpoint(tmp_path)
    assert checkpoint.parameters["mean"].item() == pytest.approx(np.nanmean(ratings, dtype=np.float64) - 3, rel=1e-6)
    everybody = nodes_by_id(settings, node_count(settings), np.arange(1, node_count(settings) + 1))
    assert enroll(everybody, len(checkpoint.items.catalogue)).rating_count == 0  # nobody asked for it
    sums = enroll(everybody, len(checkpoint.items.catalogue), ratings=True)
    assert sums.rating_count == np.count_nonzero(~np.isnan(ratings))


def test_a_checkpoint_from_before_the_texts_decay_and_with_another_mean_is_read_as_it_was(tmp_path: Path) -> None:
    run_rating(rating_settings(tmp_path, federation__rounds=1))
    tensors, description = load_tensors(tmp_path / "model.safetensors")
    del description["settings"]["rating"]["text-decay"]
    tensors["parameters/mean"] = torch.tensor([0.25])
    save_tensors(tmp_path / "model.safetensors", tensors, description)
    model = load_checkpoint(tmp_path).rating_model()
    assert model.mean.item() == 0.25
    base, _ = model.catalogue()
    torch.testing.assert_close(base, 0.25 + model.text @ model.text_bias.detach() + model.item_bias.detach())


@pytest.mark.parametrize("mode", ["site", "central", "local"])
def test_a_private_run_releases_no_row_of_an_item_and_charges_no_popularity(tmp_path: Path, mode: str) -> None:
    settings = rating_settings(
        tmp_path, generator__users=200, privacy__mode=mode, privacy__noise_multiplier=1.0, federation__clip_norm=0.5,
        privacy__popularity_noise=5.0, privacy__sampling_rate=0.25, privacy__randomness="simulated",
    )  # fmt: skip
    run_rating(settings)
    parameters = parameters_of(tmp_path)
    assert not parameters["item_ids"].any()
    assert parameters["projection"].isfinite().all()
    assert parameters["mean"].abs().item() > 0
    population = load_population(settings)
    nodes = node_count(settings)
    enrolled = enroll(nodes_by_id(settings, nodes, np.arange(1, nodes + 1)), 10, popularity=False, ratings=True)
    assert population.rating_sum(population.users(Role.TRAINING))[1] > 0
    assert (enrolled.rating_sum, enrolled.rating_count, enrolled.terms is None) == (0.0, 0, False)
    privacy = json.loads((tmp_path / "training.json").read_text())["privacy"]
    assert [one["name"] for one in privacy["mechanisms"]] == ["meta-update"]
    assert privacy["epsilon"] > 0


def test_items_that_training_did_not_know_come_by_their_text_alone(tmp_path: Path) -> None:
    run_rating(rating_settings(tmp_path, data__hold_out_items=0.2))
    checkpoint = load_checkpoint(tmp_path)
    held_out = np.setdiff1d(np.arange(len(checkpoint.items.catalogue)), checkpoint.items.positions)
    whole, known = checkpoint.rating_model(full=True), checkpoint.rating_model()
    base, features = whole.catalogue()
    text = whole.text[held_out]
    torch.testing.assert_close(base[held_out], whole.mean + text @ whole.text_bias)
    torch.testing.assert_close(features[held_out, 1:], text @ whole.projection)
    for full, part in zip((base, features), known.catalogue(), strict=True):
        torch.testing.assert_close(full[checkpoint.items.positions], part)


def test_a_rating_model_is_not_taken_for_a_ranking_one_nor_the_other_way_round(tmp_path: Path) -> None:
    run_rating(rating_settings(tmp_path / "rating", federation__rounds=1))
    run(small_settings(run__out=str(tmp_path / "ranking"), federation__rounds=1))
    with pytest.raises(CheckpointError, match=r"made with model\.target = rating; wanted one with ranking"):
        load_checkpoint(tmp_path / "rating").model()
    with pytest.raises(CheckpointError, match=r"made with model\.target = ranking; wanted one with rating"):
        load_checkpoint(tmp_path / "ranking").rating_model()
    (tmp_path / "history").write_text("b0001\n")
    with pytest.raises(CheckpointError, match="wanted one with ranking"):
        answer_history(tmp_path / "rating", str(tmp_path / "history"), 3)


def test_data_without_ratings_is_refused(tmp_path: Path) -> None:
    lines = [f"u{user},i{(user + place) % 9}" for user in range(40) for place in range(5)]
    (tmp_path / "interactions.csv").write_text("\n".join(["user_id,item_id", *lines]))
    (tmp_path / "items.csv").write_text("\n".join(["item_id,title", *(f"i{item},film {item}" for item in range(9))]))
    with pytest.raises(DataError, match="needs data with ratings, got none"):
        run_rating(rating_settings(tmp_path / "run", data__path=str(tmp_path)))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"run__init": "somewhere"}, "run.init needs model.target = ranking, got rating"),
        (
            {"pretraining__objective": "masked-item", "pretraining__rounds": 1},
            "pretraining.objective needs model.target = ranking",
        ),
        ({"run__precision": "bfloat16"}, "model.target = rating needs run.precision = float32"),
    ],
)
def test_settings_that_only_the_ranking_model_has_are_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        small_settings(model__target="rating", **values)


def test_the_command_line_takes_the_rating_models_own_defaults() -> None:
    settings = run_settings(None, ["model.target=rating", "federation.cohort=7"], {})
    flat = settings.flat()
    assert flat["federation.cohort"] == 7
    assert all(flat[key] == value for key, value in RATING_DEFAULTS.items() if key != "federation.cohort")
    assert run_settings(None, [], {}).outer == Settings().outer


def test_the_model_card_says_what_a_rating_model_is_for(tmp_path: Path) -> None:
    simulate(rating_settings(tmp_path, federation__rounds=2), "in-process", lambda line: None)
    card = (tmp_path / "README.md").read_text()
    result = json.loads((tmp_path / "result.json").read_text())
    assert "rating_model()" in card
    assert "--history FILE" not in card
    assert "ridge regression in closed form" in card
    assert f"| MetaRec | {result['ratings']['metarec']['mae']:.4f} |" in card
