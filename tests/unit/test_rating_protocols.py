"""The rating protocols split as they say, tune on warm users and items only, and refuse what they cannot judge."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from metarec_shared.catalogue import Catalogue
from metarec_shared.checkpoint import load_checkpoint
from metarec_shared.dataset import Dataset
from metarec_shared.errors import DataError
from metarec_shared.interactions import Interactions
from metarec_shared.rating_tasks import RatingTasks, middle
from metarec_shared.settings import Settings
from metarec_shared.sources import load_dataset
from simulations.evaluation.labelled_ranking import CELL, LabelledRanking
from simulations.evaluation.melu_split import SPLIT_FILE, cold_split, latest_items
from simulations.evaluation.protocol import CHANCE
from simulations.evaluation.rating import MOST, QUERY, RATING_FITS, RatingTrial, kept
from simulations.evaluation.rating_quadrants import RatingQuadrants
from tests.small import small_settings

CELLS = ["new-users", "new-items", "both-new"]


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """Settings of data with ratings, years in titles and a split file."""
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    users, items = 120, 150
    taste, kind = rng.standard_normal((users, 2)), rng.standard_normal((items, 2))
    lines = ["user_id,item_id,rating"]
    for user in range(users):
        for item in np.flatnonzero(rng.random(items) < 0.6):
            rating = np.clip(np.rint(3.4 + kind[item, 0] / 2 + taste[user] @ kind[item]), 1, 5)
            lines.append(f"u{user},i{item},{rating:.0f}")
    (folder / "interactions.csv").write_text("\n".join(lines))
    words = [" ".join(f"word{int(value > 0)}{place}" for place, value in enumerate(row)) for row in kind]
    titles = [f"i{item},{words[item]} film {item} ({1900 + item})" for item in range(items)]
    (folder / "items.csv").write_text("\n".join(["item_id,title", *titles]))
    split = {"cold_users": [f"u{u}" for u in range(30)], "cold_items": [f"i{i}" for i in range(110, items)]}
    (folder / SPLIT_FILE).write_text(json.dumps(split))
    return small_settings(data__path=str(folder), text__encoder="builtin")


@pytest.fixture(scope="module")
def quadrants(settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> RatingTrial:
    return RatingQuadrants().open(settings, tmp_path_factory.mktemp("out"), lambda line: None)


def test_quadrants_keep_cold_users_and_items_out_of_training_and_of_tuning(
    settings: Settings, quadrants: RatingTrial
) -> None:
    dataset = load_dataset(settings)
    cold_users, cold_items = cold_split(dataset, settings.data.path, 0)
    test, tuning = quadrants.problem.test, quadrants.problem.tuning
    assert list(test.tasks) == list(tuning.tasks) == CELLS
    for stage in (test, tuning):
        assert not stage.train.lengths[cold_users].any()
        assert not cold_items[stage.train.items].any()
    for cell, tasks in tuning.tasks.items():
        for task in tasks:
            items = np.concatenate([task.support, task.query])
            assert not cold_users[task.user]
            assert not cold_items[items].any()
            assert ("users" in cell or cell == "both-new") == (tuning.train.lengths[task.user] == 0)
            assert (cell != "new-users") == (not np.isin(items, tuning.train.items).any())
    for cell, tasks in test.tasks.items():
        for task in tasks:
            items = np.concatenate([task.support, task.query])
            assert cold_users[task.user] == (cell != "new-items")
            assert (cold_items[items] == (cell != "new-users")).all()
            assert len(task.query) == QUERY
            assert 3 <= len(task.support) <= MOST - QUERY
            assert len(np.unique(items)) == len(items)


def test_tasks_have_the_ratings_of_their_items_and_are_the_same_again(
    settings: Settings, quadrants: RatingTrial, tmp_path: Path
) -> None:
    interactions = load_dataset(settings).interactions
    again = RatingQuadrants().open(settings, tmp_path, lambda line: None)
    for cell, tasks in quadrants.problem.test.tasks.items():
        for task, same in zip(tasks, again.problem.test.tasks[cell], strict=True):
            rated = dict(zip(interactions.history(task.user).tolist(), _ratings(interactions, task.user), strict=True))
            assert [rated[item] for item in task.query.tolist()] == task.query_ratings.tolist()
            assert [rated[item] for item in task.support.tolist()] == task.support_ratings.tolist()
            np.testing.assert_array_equal(task.query, same.query)


def _ratings(interactions: Interactions, user: int) -> list[float]:
    found: list[float] = interactions.ratings[interactions.offsets[user] : interactions.offsets[user + 1]].tolist()
    return found


def test_factorization_beats_the_mean_of_users_which_beats_a_constant(quadrants: RatingTrial) -> None:
    errors = {name: quadrants.figures(name)["new-users"]["mae"] for name in ("mf", "user-mean", CHANCE)}
    assert errors["mf"] < 0.8 * errors["user-mean"]
    assert errors["user-mean"] < errors[CHANCE]
    chance = quadrants.figures(CHANCE)["new-users"]
    tied = quadrants.figures("user-mean")["new-users"]
    assert tied["ndcg@1_linear"] == pytest.approx(chance["ndcg@1_linear"])  # one rating for all items: a random ranking


@pytest.mark.parametrize("method", ["metarec", "fedrecon", "melu"])
def test_meta_learned_models_beat_a_constant_and_rank_better_than_chance(quadrants: RatingTrial, method: str) -> None:
    chosen = {"decay": 0.01, "kernel": 0.5, "user-kernel": 0.5, "history": 0.0, "fold-in": 1.0, "steps": 10}
    chosen |= {"steps": 5, "rate": 0.02, "epochs": 12} if method == "melu" else {}
    predictor = RATING_FITS[method][0](quadrants.problem, quadrants.problem.test, chosen)
    found = quadrants.measured(predictor, quadrants.problem.test.tasks["new-users"])
    chance = quadrants.figures(CHANCE)["new-users"]
    assert found["mae"] < 0.85 * chance["mae"]
    assert found["ndcg@1_linear"] > chance["ndcg@1_linear"] + 0.05


def test_new_users_of_ours_are_predicted_as_the_trained_model_does(quadrants: RatingTrial) -> None:
    chosen = {"kernel": 0.5, "user-kernel": 0.7, "history": 0.0, "fold-in": 1.0}
    problem, stage = quadrants.problem, quadrants.problem.test
    predictor = RATING_FITS["metarec"][0](problem, stage, chosen)
    checkpoint = load_checkpoint(problem.folder / "metarec-test")
    told = replace(checkpoint.settings, rating=replace(checkpoint.settings.rating, user_kernel=0.7, kernel=0.5))
    model, centre = replace(checkpoint, settings=told).rating_model(), middle(problem.scale)
    for task in stage.tasks["both-new"][:3]:
        items, given = np.concatenate([task.support, task.query]), torch.arange(len(task.support) + QUERY)[None]
        batch = RatingTasks(
            items=torch.from_numpy(items)[None],
            ratings=torch.from_numpy(np.concatenate([task.support_ratings, task.query_ratings])).float()[None] - centre,
            support=given < len(task.support),
            query=given >= len(task.support),
            heard=torch.tensor([True]),
        )
        with torch.no_grad():
            expected = centre + model(batch)[0, -QUERY:].double().numpy()
        found = predictor.predict(task.user, task.support, task.support_ratings, task.query)
        np.testing.assert_allclose(found, expected, atol=1e-4)


def test_hyperparameters_are_those_that_are_best_on_validation_tasks(quadrants: RatingTrial) -> None:
    fit, options = RATING_FITS["user-mean"]
    stage = quadrants.problem.tuning
    values = {
        pseudo: quadrants.measured(
            fit(quadrants.problem, stage, {"pseudo-ratings": pseudo, "history": 0.0}), stage.tasks["both-new"]
        )["mae"]
        for pseudo in options["pseudo-ratings"]
    }
    chosen = quadrants.tuned(fit, options, "both-new")
    assert chosen["pseudo-ratings"] == min(values, key=values.__getitem__)


def test_errors_are_clipped_and_rounded_to_the_ratings_there_are(quadrants: RatingTrial) -> None:
    predicted, rated = torch.full((1, QUERY), 7.3), torch.full((1, QUERY), 4.0)
    predicted[0, 0] = 3.4
    found = quadrants.judge(predicted.double(), rated.double())
    assert found["mae"].item() == pytest.approx((0.6 + 9) / 10)
    assert found["mae_rounded"].item() == pytest.approx(1.0)
    assert found["rmse"].item() == pytest.approx(((0.36 + 9) / 10) ** 0.5)


def test_labelled_ranking_trains_on_training_users_with_13_to_100_ratings(settings: Settings, tmp_path: Path) -> None:
    trial = LabelledRanking().open(settings, tmp_path, lambda line: None)
    problem = trial.problem
    trained = set(np.flatnonzero(problem.test.train.lengths).tolist())
    asked = [{task.user for task in stage.tasks[CELL]} for stage in (problem.tuning, problem.test)]
    assert all(asked)
    assert not asked[0] & asked[1]
    assert not trained & (asked[0] | asked[1])
    lengths = load_dataset(settings).interactions.lengths
    takes_part = set(np.flatnonzero((lengths >= 13) & (lengths <= MOST)).tolist())
    assert trained | asked[0] | asked[1] == takes_part
    figures = trial.figures(CHANCE)[CELL]
    assert figures["precision@5"] == pytest.approx(0.5)
    assert figures["recall@5"] == pytest.approx(0.5)
    assert trial.figures("content-ridge")[CELL]["precision@5"] > 0.55


def _dataset(titles: list[str]) -> Dataset:
    ids = tuple(f"i{place}" for place in range(len(titles)))
    interactions = Interactions(
        user_ids=np.array([f"u{user}" for user in range(400)]),
        offsets=np.arange(401),
        items=np.zeros(400, dtype=np.int32),
        ratings=np.ones(400, dtype=np.float32),
        has_time=False,
    )
    catalogue = Catalogue(item_ids=ids, titles=tuple(titles), texts=tuple(titles))
    return Dataset(name="d", layout="own", catalogue=catalogue, interactions=interactions, rating_scale=None)


def test_without_a_split_file_the_latest_fifth_of_items_is_cold(tmp_path: Path) -> None:
    dataset = _dataset([f"Film {place} ({1990 + place // 10})" for place in range(100)])
    users, items = cold_split(dataset, str(tmp_path), 0)
    assert np.flatnonzero(items).tolist() == list(range(80, 100))
    assert 0.13 < users.mean() < 0.27
    assert not np.array_equal(users, cold_split(dataset, str(tmp_path), 1)[0])
    among = ~items
    titles, ids = dataset.catalogue.titles, dataset.catalogue.item_ids
    assert np.flatnonzero(latest_items(titles, ids, among, 0)).tolist() == list(range(60, 80))


def test_without_years_in_titles_a_random_fifth_of_items_is_cold(tmp_path: Path) -> None:
    dataset = _dataset([f"Film {place}" for place in range(400)])
    _, items = cold_split(dataset, "", 0)
    assert 0.13 < items.mean() < 0.27
    assert not np.array_equal(items, cold_split(dataset, "", 1)[1])


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("[1, 2]", "wanted"),
        ('{"cold_users": ["u1"]}', "wanted"),
        ("{", "wanted"),
        ('{"cold_users": ["u1"], "cold_items": ["nothing"]}', "cold_items must name some"),
    ],
)
def test_a_split_file_that_is_not_one_is_refused(tmp_path: Path, content: str, said: str) -> None:
    (tmp_path / SPLIT_FILE).write_text(content)
    with pytest.raises(DataError, match=said):
        cold_split(_dataset(["a", "b"]), str(tmp_path), 0)


def test_data_without_ratings_or_with_too_few_is_refused(tmp_path: Path) -> None:
    few = small_settings(generator__interactions=6)
    with pytest.raises(DataError, match="13 to 100 ratings"):
        LabelledRanking().open(few, tmp_path, lambda line: None)


def test_kept_interactions_leave_users_where_they_are() -> None:
    data = replace(_dataset(["a"]).interactions, offsets=np.array([0, 2, 2, 5]), user_ids=np.array(["a", "b", "c"]))
    data = replace(data, items=np.arange(5), ratings=np.arange(5, dtype=np.float32))
    found = kept(data, np.array([False, True, True, False, True]))
    assert found.offsets.tolist() == [0, 1, 1, 3]
    assert found.items.tolist() == [1, 2, 4]
    assert found.ratings.tolist() == [1.0, 2.0, 4.0]
