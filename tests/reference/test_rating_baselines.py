"""Rating baselines against scikit-learn, and against the gradient of what they say they minimize."""

import numpy as np
import pytest
import torch
from sklearn.kernel_ridge import KernelRidge
from sklearn.linear_model import Ridge
from sklearn.metrics import ndcg_score
from sklearn.metrics.pairwise import rbf_kernel

from metarec_shared.content_kernel import content_kernel
from metarec_shared.interactions import Interactions
from simulations.baselines.matrix_factorization import BIAS_PENALTY, factorize
from simulations.baselines.rating_fold_in import FoldIn, ridge
from simulations.evaluation.labelled_ranking import labelled_metrics

ITEMS = 15


def histories(users: int = 12, seed: int = 0) -> Interactions:
    rng = np.random.default_rng(seed)
    lengths = rng.integers(4, ITEMS - 3, users)
    return Interactions(
        user_ids=np.array([f"user {user}" for user in range(users)]),
        offsets=np.concatenate([[0], np.cumsum(lengths)]),
        items=np.concatenate([rng.permutation(ITEMS)[:length] for length in lengths]).astype(np.int32),
        ratings=rng.integers(1, 6, lengths.sum()).astype(np.float32),
        has_time=False,
    )


def test_ridge_with_weights_equals_scikit_learn() -> None:
    rng = np.random.default_rng(1)
    features, targets, weights = rng.standard_normal((9, 4)), rng.standard_normal(9), rng.uniform(0.1, 2, 9)
    penalty = np.array([0.5, 2.0, 1.0, 3.0])
    scaled = Ridge(alpha=1.0, fit_intercept=False, tol=1e-12).fit(features / np.sqrt(penalty), targets, weights)
    np.testing.assert_allclose(ridge(features, targets, penalty, weights), scaled.coef_ / np.sqrt(penalty), rtol=1e-8)


@pytest.mark.parametrize("history_weight", [0.0, 0.3])
def test_folding_in_equals_scikit_learn_on_support_and_weighted_history(history_weight: float) -> None:
    rng = np.random.default_rng(2)
    known = histories()
    base, features = rng.standard_normal(ITEMS), rng.standard_normal((ITEMS, 3))
    model = FoldIn(
        base=base, features=features, penalty=np.full(3, 2.0), histories=known, history_weight=history_weight
    )
    support, ratings, query = np.array([3, 1, 7, 2]), np.array([5.0, 2.0, 4.0, 1.0]), np.array([0, 9])
    past, given = known.history(4), known.ratings[known.offsets[4] : known.offsets[5]]
    items = np.concatenate([support, past])
    fitted = Ridge(alpha=2.0, fit_intercept=False, tol=1e-12).fit(
        features[items],
        np.concatenate([ratings, given]) - base[items],
        np.concatenate([np.ones(4), np.full(len(past), history_weight)]),
    )
    expected = base[query] + fitted.predict(features[query])
    np.testing.assert_allclose(model.predict(4, support, ratings, query), expected, rtol=1e-6)


@pytest.mark.parametrize("history_weight", [0.0, 0.3])
def test_folding_in_with_a_kernel_equals_scikit_learn(history_weight: float) -> None:
    rng = np.random.default_rng(4)
    known, penalty = histories(), np.array([0.5, 2.0, 1.0])
    base, features, text = rng.standard_normal(ITEMS), rng.standard_normal((ITEMS, 3)), rng.standard_normal((ITEMS, 2))
    kernel = 0.6 * rbf_kernel(text, gamma=0.4)
    model = FoldIn(
        base=base, features=features, penalty=penalty, histories=known, history_weight=history_weight, kernel=kernel
    )
    support, ratings, query = np.array([3, 1, 7, 2]), np.array([5.0, 2.0, 4.0, 1.0]), np.array([0, 9])
    past, given = known.history(4), known.ratings[known.offsets[4] : known.offsets[5]]
    items = np.concatenate([support, past]) if history_weight else support
    targets = np.concatenate([ratings, given]) if history_weight else ratings
    whole = (features / penalty) @ features.T + kernel
    fitted = KernelRidge(alpha=1.0, kernel="precomputed").fit(
        whole[np.ix_(items, items)],
        targets - base[items],
        sample_weight=np.where(np.arange(len(items)) < 4, 1.0, history_weight),
    )
    expected = base[query] + fitted.predict(whole[np.ix_(query, items)])
    np.testing.assert_allclose(model.predict(4, support, ratings, query), expected, rtol=1e-6)


def test_content_kernel_equals_scikit_learn() -> None:
    rng = np.random.default_rng(3)
    text, targets = rng.standard_normal((ITEMS, 5)), rng.standard_normal((ITEMS - 4, 2))
    counts = np.concatenate([rng.integers(1, 9, ITEMS - 4), np.zeros(4)]).astype(np.float64)
    found = content_kernel(text, counts, gamma=0.2, noise=0.5, few=3.0).predict(targets)
    reference = KernelRidge(kernel="rbf", gamma=0.2, alpha=0.5)
    reference.fit(text[:-4], targets, sample_weight=1 / (1 + 3.0 / counts[:-4]))
    np.testing.assert_allclose(found, reference.predict(text), rtol=1e-6, atol=1e-9)


def test_factorization_ends_where_the_gradient_of_its_objective_vanishes() -> None:
    known = histories()
    found = factorize(known, ITEMS + 1, rank=2, penalty=1.5, sweeps=2000, seed=0)
    users, items = (torch.tensor(side, requires_grad=True) for side in (found.users, found.items))
    owners = torch.from_numpy(np.repeat(np.arange(len(known)), known.lengths))
    rated = torch.from_numpy(known.items.astype(np.int64))
    left, right = users[owners], items[rated]
    predicted = found.mean + left[:, 0] + right[:, 0] + (left[:, 1:] * right[:, 1:]).sum(dim=1)
    penalties = sum(
        BIAS_PENALTY * side[:, 0].square().sum() + 1.5 * side[:, 1:].square().sum() for side in (users, items)
    )
    ((torch.from_numpy(known.ratings) - predicted).square().sum() + penalties).backward()
    assert users.grad is not None
    assert items.grad is not None
    assert found.items[:ITEMS, 1:].any()  # not the trivial stationary point
    assert users.grad.abs().max() < 1e-6
    assert items.grad.abs().max() < 1e-6
    assert not found.items[ITEMS].any()  # an item nobody rated


def test_labelled_metrics_equal_the_mean_over_many_random_choices_and_orders() -> None:
    rng = np.random.default_rng(4)
    rated = np.array([5, 5, 4, 4, 4, 4, 4, 3, 3, 1.0])
    scores = np.array([2, 3, 3, 1, 2, 1, 4, 5, 0, 2.0])
    sums = dict.fromkeys(("precision@5", "recall@5", "hr@5", "ndcg@5", "mrr@5"), 0.0)
    draws = 20_000
    for _ in range(draws):
        best = set(np.lexsort((rng.random(10), -rated))[:5].tolist())
        order = np.lexsort((rng.random(10), -scores))[:5].tolist()
        hits = [item in best for item in order]
        sums["precision@5"] += sum(hits) / 5
        sums["recall@5"] += sum(hits) / 5
        sums["hr@5"] += any(hits)
        sums["ndcg@5"] += sum(hit / np.log2(2 + place) for place, hit in enumerate(hits)) / sum(
            1 / np.log2(2 + place) for place in range(5)
        )
        sums["mrr@5"] += 1 / (1 + hits.index(True)) if any(hits) else 0
    found = labelled_metrics(torch.from_numpy(scores)[None], torch.from_numpy(rated)[None], 5)
    assert {name: value.item() for name, value in found.items()} == pytest.approx(
        {name: value / draws for name, value in sums.items()}, abs=0.01
    )


def test_labelled_ndcg_without_ties_equals_scikit_learn() -> None:
    rng = np.random.default_rng(5)
    rated, scores = rng.permuted(np.tile(np.arange(10.0), (6, 1)), axis=1), rng.standard_normal((6, 10))
    found = labelled_metrics(torch.from_numpy(scores), torch.from_numpy(rated), 5)["ndcg@5"]
    assert found.mean().item() == pytest.approx(ndcg_score(rated >= 5, scores, k=5))
