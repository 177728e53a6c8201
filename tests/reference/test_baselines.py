"""Baselines against scikit-learn, numpy and a regression solved item by item."""

import doctest

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.linear_model import Ridge
from sklearn.metrics.pairwise import cosine_similarity

from metarec_shared.interactions import Interactions
from simulations.baselines import popularity
from simulations.baselines.baseline import best, co_occurrences
from simulations.baselines.ease import fit_ease, tune_ease
from simulations.baselines.ials import fit_ials
from simulations.baselines.item_knn import fit_item_knn, tune_item_knn
from simulations.baselines.popularity import fit_popularity
from simulations.baselines.sequential_rules import fit_sequential_rules, tune_sequential_rules

USERS, ITEMS = 50, 12


@pytest.fixture
def matrix():
    """Users x items, 0 or 1; item 11 nobody has, user 0 has nothing."""
    drawn = np.random.default_rng(0).random((USERS, ITEMS)) < np.linspace(0.6, 0.1, ITEMS)
    drawn[:, -1] = drawn[0] = False
    return drawn.astype(np.float64)


def interactions(matrix, rating=1.0):
    """Histories in an order of their own, on arrays nobody may write to."""
    rng = np.random.default_rng(1)
    histories = [rng.permutation(np.flatnonzero(row)) for row in matrix]
    columns = {
        "user_ids": np.array([f"user {u}" for u in range(len(matrix))]),
        "offsets": np.concatenate([[0], np.cumsum([len(history) for history in histories])]),
        "items": np.concatenate(histories),
        "ratings": np.full(int(matrix.sum()), rating, dtype=np.float32),
    }
    for column in columns.values():
        column.setflags(write=False)
    return Interactions(**columns, has_time=False)


BASELINES = {
    "popularity": fit_popularity,
    "item-kNN": lambda train, items: fit_item_knn(train, items, neighbours=4, shrinkage=2.0),
    "EASE": lambda train, items: fit_ease(train, items, regularization=3.0),
    "sequential rules": lambda train, items: fit_sequential_rules(train, items, window=2),
    "iALS": lambda train, items: fit_ials(train, items, factors=3, regularization=2.0, confidence=5.0),
}
SUPPORT = torch.tensor([[3, 1, 7], [0, 5, -1], [-1, -1, -1]])
every_baseline = pytest.mark.parametrize("fit", BASELINES.values(), ids=BASELINES)
ORDER_FREE = {name: fit for name, fit in BASELINES.items() if name != "sequential rules"}
every_baseline_of_sets = pytest.mark.parametrize("fit", ORDER_FREE.values(), ids=ORDER_FREE)


@pytest.mark.parametrize("chunk", [1, 7, 1024])
def test_co_occurrences_are_the_gram_matrix(matrix, chunk):
    np.testing.assert_array_equal(co_occurrences(interactions(matrix), ITEMS, chunk), matrix.T @ matrix)


@pytest.mark.parametrize("window", [1, 3, 40])
def test_sequential_rules_are_shifted_columns_of_pandas(matrix, window):
    train = interactions(matrix)
    frame = pd.DataFrame({"user": np.repeat(np.arange(USERS), train.lengths), "item": train.items})
    expected = np.zeros((ITEMS, ITEMS))
    for distance in range(1, window + 1):
        later = frame.groupby("user")["item"].shift(-distance)
        for before, after in zip(frame["item"][later.notna()], later.dropna().astype(int), strict=True):
            expected[before, after] += 1 / distance
    found = fit_sequential_rules(train, ITEMS, window)
    np.testing.assert_allclose(found.rules, expected, rtol=1e-6)
    np.testing.assert_allclose(found.scores(SUPPORT, SUPPORT >= 0)[:2], expected[[7, 5]], rtol=1e-6)


def test_the_window_of_sequential_rules_is_tuned_for_each_validation(matrix):
    train = interactions(matrix)
    short, long = tune_sequential_rules(
        train, ITEMS, (1, 2, 3), [lambda found: -found.window, lambda found: found.window]
    )
    assert (short.window, long.window) == (1, 3)
    with pytest.raises(ValueError, match="at least 1, got 0"):
        fit_sequential_rules(train, ITEMS, 0)


def test_popularity_counts_users(matrix):
    train = interactions(matrix)
    scores = fit_popularity(train, ITEMS).scores(SUPPORT, SUPPORT >= 0)
    np.testing.assert_array_equal(scores, np.tile(np.bincount(train.items, minlength=ITEMS), (3, 1)))


def test_item_knn_of_all_neighbours_is_scikit_learns_cosine(matrix):
    knn = fit_item_knn(interactions(matrix), ITEMS, neighbours=ITEMS, shrinkage=0.0)
    expected = cosine_similarity(matrix.T)
    np.fill_diagonal(expected, 0)
    np.testing.assert_allclose(knn.similarity, expected, atol=1e-6)
    scores = knn.scores(SUPPORT, SUPPORT >= 0)
    np.testing.assert_allclose(scores[0], expected[[3, 1, 7]].sum(axis=0), atol=1e-6)
    np.testing.assert_allclose(scores[1], expected[[0, 5]].sum(axis=0), atol=1e-6)


def test_item_knn_keeps_each_items_nearest_neighbours(matrix):
    knn = fit_item_knn(interactions(matrix), ITEMS, neighbours=4, shrinkage=2.0)
    for item in range(ITEMS):
        norms = np.linalg.norm(matrix, axis=0)
        similarity = matrix.T @ matrix[:, item] / (norms * norms[item] + 2.0)
        similarity[item] = 0
        similarity[similarity < np.sort(similarity)[-4] - 1e-9] = 0
        np.testing.assert_allclose(knn.similarity[:, item], similarity, atol=1e-6)


def test_item_knn_keeps_all_of_equally_near_neighbours():
    knn = fit_item_knn(interactions(np.ones((5, 4))), 4, neighbours=1, shrinkage=0.0)
    np.testing.assert_allclose(knn.similarity, 1 - np.eye(4), atol=1e-6)


@pytest.mark.parametrize("regularization", [0.5, 20.0])
def test_each_column_of_ease_is_the_ridge_regression_of_an_item_on_all_others(matrix, regularization):
    weights = fit_ease(interactions(matrix), ITEMS, regularization).weights
    for item in range(ITEMS):
        others = np.arange(ITEMS) != item
        ridge = Ridge(alpha=regularization, fit_intercept=False).fit(matrix[:, others], matrix[:, item])
        np.testing.assert_allclose(weights[others, item], ridge.coef_, atol=1e-5)
        assert weights[item, item] == 0


def test_ease_scores_are_the_support_set_times_the_weights(matrix):
    ease = fit_ease(interactions(matrix), ITEMS, 3.0)
    scores = ease.scores(SUPPORT, SUPPORT >= 0)
    np.testing.assert_allclose(scores[0], ease.weights[[3, 1, 7]].sum(dim=0), atol=1e-6)
    np.testing.assert_allclose(scores[1], ease.weights[[0, 5]].sum(dim=0), atol=1e-6)


def test_ease_refuses_a_regularization_of_0(matrix):
    with pytest.raises(ValueError, match=r"must be above 0, got 0\.0"):
        fit_ease(interactions(matrix), ITEMS, 0.0)


@every_baseline_of_sets
def test_identities_ratings_and_order_of_histories_do_not_matter(matrix, fit):
    shuffled = np.random.default_rng(2).permutation(USERS)
    one, other = fit(interactions(matrix), ITEMS), fit(interactions(matrix[shuffled], rating=5.0), ITEMS)
    torch.testing.assert_close(one.scores(SUPPORT, SUPPORT >= 0), other.scores(SUPPORT, SUPPORT >= 0))


@every_baseline
def test_a_baseline_sees_no_user_that_was_not_passed(matrix, fit):
    everyone = interactions(matrix)
    taken = everyone.take(np.arange(30))
    alone = fit(interactions(matrix[:30]), ITEMS)
    torch.testing.assert_close(fit(taken, ITEMS).scores(SUPPORT, SUPPORT >= 0), alone.scores(SUPPORT, SUPPORT >= 0))


@every_baseline_of_sets
def test_a_cold_user_is_scored_by_his_own_support_set_alone(matrix, fit):
    baseline = fit(interactions(matrix), ITEMS)
    together = baseline.scores(SUPPORT, SUPPORT >= 0)
    for user in range(len(SUPPORT)):
        own = SUPPORT[user : user + 1]
        reordered = own.flip(1).masked_fill(own.flip(1) < 0, 9)  # padding first, and with a number that is an item's
        torch.testing.assert_close(baseline.scores(reordered, own.flip(1) >= 0)[0], together[user])


@every_baseline
def test_an_empty_support_set_gets_finite_scores(matrix, fit):
    scores = fit(interactions(matrix), ITEMS).scores(SUPPORT, SUPPORT >= 0)
    assert scores.shape == (3, ITEMS)
    assert scores.isfinite().all()


def test_tuning_returns_what_validates_best(matrix):
    train = interactions(matrix)
    (ease,) = tune_ease(co_occurrences(train, ITEMS), [1.0, 10.0, 100.0], [lambda b: -abs(b.regularization - 10.0)])
    torch.testing.assert_close(ease.weights, fit_ease(train, ITEMS, 10.0).weights)
    gram = co_occurrences(train, ITEMS)
    knn, other = tune_item_knn(
        gram, [1, 3], [0.0, 5.0], [lambda b: b.neighbours + b.shrinkage, lambda b: b.neighbours - b.shrinkage]
    )
    assert (other.neighbours, other.shrinkage) == (3, 0.0)
    assert (knn.neighbours, knn.shrinkage) == (3, 5.0)
    torch.testing.assert_close(knn.similarity, fit_item_knn(train, ITEMS, 3, 5.0).similarity)


def test_tuning_refuses_an_empty_grid_and_a_validation_without_a_number(matrix):
    with pytest.raises(ValueError, match="no candidate"):
        tune_ease(co_occurrences(interactions(matrix), ITEMS), [], [lambda _: 0.0])
    with pytest.raises(ValueError, match="gave NaN"):
        best([fit_popularity(interactions(matrix), ITEMS)], [lambda _: float("nan")])


def test_example_in_the_docstring_holds():
    result = doctest.testmod(popularity)
    assert result.attempted > 0
    assert result.failed == 0
