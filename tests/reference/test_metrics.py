"""Metrics against scikit-learn, against every order of the ties, and against numbers worked out by hand."""

import doctest
import itertools
import math

import numpy as np
import pytest
import sklearn.metrics
import torch

from metarec_shared import metrics, ranks
from metarec_shared.ranks import item_mask, query_ranks

K = 10


def users_with_ties(levels, users=40, items=60, support=5, query=8, seed=0):
    """Scores on a few levels, so that they tie; ragged query sets, padded with -1."""
    rng = np.random.default_rng(seed)
    scores = torch.tensor(rng.integers(levels, size=(users, items)) / levels)
    order = torch.tensor(np.array([rng.permutation(items) for _ in range(users)]))
    sizes = torch.tensor(rng.integers(1, query + 1, size=users))
    mask = torch.arange(query) < sizes[:, None]
    exclude = item_mask(order[:, :support], torch.ones(users, support, dtype=torch.bool), items)
    return scores, exclude, order[:, support : support + query].masked_fill(~mask, -1), mask


def per_user(scores, exclude, query, mask):
    """Labels and scores of each user's candidates, as scikit-learn takes them."""
    relevant = item_mask(query, mask, scores.shape[1])
    for user in range(len(scores)):
        kept = ~exclude[user]
        yield relevant[user][kept].numpy().astype(int), scores[user][kept].numpy()


@pytest.mark.parametrize("levels", [1, 4, 10**9])
def test_ndcg_is_scikit_learns_with_and_without_ties(levels):
    case = users_with_ties(levels)
    expected = [sklearn.metrics.ndcg_score([labels], [scores], k=K) for labels, scores in per_user(*case)]
    np.testing.assert_allclose(metrics.ndcg(query_ranks(*case), K), expected, rtol=1e-12)


@pytest.mark.parametrize("levels", [1, 4, 10**9])
def test_auc_is_scikit_learns_with_and_without_ties(levels):
    case = users_with_ties(levels)
    expected = [sklearn.metrics.roc_auc_score(labels, scores) for labels, scores in per_user(*case)]
    np.testing.assert_allclose(metrics.auc(query_ranks(*case)), expected, rtol=1e-12)


def test_precision_and_recall_are_scikit_learns_of_the_top_k():
    case = users_with_ties(10**9)
    precision, recall, hit = [], [], []
    for labels, scores in per_user(*case):
        top = (scores >= np.sort(scores)[-K]).astype(int)
        precision.append(sklearn.metrics.precision_score(labels, top, zero_division=0))
        recall.append(sklearn.metrics.recall_score(labels, top) * labels.sum() / min(K, labels.sum()))
        hit.append(float((labels & top).any()))
    found = query_ranks(*case)
    np.testing.assert_allclose(metrics.precision(found, K), precision, rtol=1e-12)
    np.testing.assert_allclose(metrics.recall(found, K), recall, rtol=1e-12)
    np.testing.assert_array_equal(metrics.hit_rate(found, K), hit)


def test_reciprocal_rank_of_one_item_is_scikit_learns_label_ranking_average_precision():
    case = users_with_ties(10**9, query=1)
    expected = [
        sklearn.metrics.label_ranking_average_precision_score([labels], [scores]) for labels, scores in per_user(*case)
    ]
    np.testing.assert_allclose(metrics.reciprocal_rank(query_ranks(*case)), expected, rtol=1e-12)


@pytest.mark.parametrize("gain", ["linear", "exponential"])
def test_graded_ndcg_is_scikit_learns(gain):
    rng = np.random.default_rng(1)
    scores, relevance = torch.tensor(rng.integers(4, size=(30, 12)) / 4), torch.tensor(rng.integers(6, size=(30, 12)))
    mask = torch.arange(12) < torch.tensor(rng.integers(2, 13, size=30))[:, None]
    found = metrics.graded_ndcg(scores, relevance.float(), mask, 3, gain)
    gains = relevance if gain == "linear" else 2**relevance - 1
    rows = zip(gains.numpy(), scores.numpy(), mask.numpy(), strict=True)
    expected = [sklearn.metrics.ndcg_score([g[m]], [s[m]], k=3) for g, s, m in rows]
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_errors_of_ratings_are_scikit_learns():
    rng = np.random.default_rng(2)
    predicted, rated = torch.tensor(rng.normal(3, 1, (20, 9))), torch.tensor(rng.integers(1, 6, (20, 9)).astype(float))
    mask = torch.arange(9) < torch.tensor(rng.integers(1, 10, size=20))[:, None]
    rows = [(r[m], p[m]) for p, r, m in zip(predicted.numpy(), rated.numpy(), mask.numpy(), strict=True)]
    absolute = [sklearn.metrics.mean_absolute_error(r, p) for r, p in rows]
    square = [sklearn.metrics.root_mean_squared_error(r, p) for r, p in rows]
    np.testing.assert_allclose(metrics.mean_absolute_error(predicted, rated, mask), absolute, rtol=1e-12)
    np.testing.assert_allclose(metrics.root_mean_square_error(predicted, rated, mask), square, rtol=1e-12)


def over_all_orders(scores, query, k):
    """Mean of each metric over every order of the items that sorts their scores: 7! orders at most."""
    values = []
    for order in itertools.permutations(range(len(scores))):
        if all(scores[a] >= scores[b] for a, b in itertools.pairwise(order)):
            places = sorted(order.index(item) + 1 for item in query)
            top = [place for place in places if place <= k]
            ideal = sum(1 / math.log2(1 + place) for place in range(1, min(k, len(query)) + 1))
            ndcg = sum(1 / math.log2(1 + place) for place in top) / ideal
            hits, first = len(top), 1 / places[0]
            values.append((ndcg, hits > 0, hits / min(k, len(query)), hits / k, first, first if hits else 0))
    return np.mean(values, axis=0)


@pytest.mark.parametrize("seed", range(8))
def test_ties_count_as_the_mean_over_all_their_orders(seed):
    rng = np.random.default_rng(seed)
    scores = rng.integers(seed % 3 + 1, size=7)
    query = rng.permutation(7)[: seed % 4 + 1]
    found = query_ranks(
        torch.tensor(scores[None]).double(),
        torch.zeros(1, 7, dtype=torch.bool),
        torch.tensor(query[None]),
        torch.ones(1, len(query), dtype=torch.bool),
    )
    got = [metric(found, 3) for metric in (metrics.ndcg, metrics.hit_rate, metrics.recall, metrics.precision)]
    got += [metrics.reciprocal_rank(found), metrics.reciprocal_rank(found, 3)]
    np.testing.assert_allclose(torch.cat(got), over_all_orders(scores, query, 3), rtol=1e-12)


def test_a_constant_scorer_gets_what_chance_gets():
    constant = metrics.ranking_metrics(
        torch.zeros(1, 101), torch.eye(1, 101) > 0, torch.tensor([[3, 50]]), torch.ones(1, 2, dtype=torch.bool), k=10
    )
    assert constant["recall@10"].item() == pytest.approx(0.1)
    assert constant["precision@10"].item() == pytest.approx(0.02)
    assert constant["hr@10"].item() == pytest.approx(1 - 90 * 89 / (100 * 99))
    assert constant["auc"].item() == pytest.approx(0.5)


def test_metrics_of_a_ranking_worked_out_by_hand():
    scores = torch.tensor(
        [[9.0, 8, 7, 6, 5, 4]]
    )  # item 1 excluded; the query items 2 and 4 come second and fourth of 5
    exclude, query = torch.arange(6)[None] == 1, torch.tensor([[2, 4]])
    found = metrics.ranking_metrics(scores, exclude, query, torch.ones(1, 2, dtype=torch.bool), k=3)
    ideal = 1 + 1 / math.log2(3)
    expected = {
        "ndcg@3": 1 / math.log2(3) / ideal,
        "hr@3": 1.0,
        "recall@3": 1 / 2,
        "precision@3": 1 / 3,
        "mrr": 1 / 2,
        "auc": 3 / 6,  # 2 before 3 and 5; 4 before 5
    }
    assert {name: value.item() for name, value in found.items()} == pytest.approx(expected)


def test_auc_is_undefined_where_every_candidate_is_a_query_item():
    both, none = torch.ones(1, 2, dtype=torch.bool), torch.zeros(1, 2, dtype=torch.bool)
    found = query_ranks(torch.tensor([[1.0, 2.0]]), none, torch.tensor([[0, 1]]), both)
    assert metrics.auc(found).isnan().all()


def test_graded_ndcg_without_any_relevance_is_0():
    mask = torch.ones(1, 2, dtype=torch.bool)
    assert metrics.graded_ndcg(torch.tensor([[1.0, 2.0]]), torch.zeros(1, 2), mask, 1, "linear").item() == 0


@pytest.mark.parametrize(
    ("scores", "excluded", "present", "message"),
    [
        ([1.0, math.nan, 2.0], 0, True, "scores must be finite"),
        ([1.0, 3.0, 2.0], 2, True, "among the excluded items"),
        ([1.0, 3.0, 2.0], 0, False, "at least one query item"),
    ],
)
def test_what_has_no_rank_is_an_error(scores, excluded, present, message):
    exclude = torch.arange(3)[None] == excluded
    with pytest.raises(ValueError, match=message):
        query_ranks(torch.tensor([scores]), exclude, torch.tensor([[2]]), torch.tensor([[present]]))


def test_negative_relevance_is_an_error():
    with pytest.raises(ValueError, match="relevance must be finite and not negative"):
        metrics.graded_ndcg(torch.zeros(1, 1), -torch.ones(1, 1), torch.ones(1, 1, dtype=torch.bool), 1, "linear")


@pytest.mark.parametrize("module", [metrics, ranks])
def test_examples_in_docstrings_hold(module):
    result = doctest.testmod(module)
    assert result.attempted > 0
    assert result.failed == 0
