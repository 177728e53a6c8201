"""Moments of tasks against enumeration of tasks, and the regression against scikit-learn's ridge."""

from itertools import permutations

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.linear_model import Ridge

from metarec_shared.interactions import Interactions, starts
from metarec_shared.task_regression import (
    NEGLIGIBLE,
    TaskMoments,
    TaskRegression,
    discounted_moments,
    fit_task_regression,
    task_moments,
)
from metarec_shared.text_ridge import fit_text_ridge
from simulations.baselines.baseline import co_occurrences
from simulations.baselines.ease import fit_ease

ITEMS = 7


def histories(*items: list[int]) -> Interactions:
    rows = np.array([item for history in items for item in history], dtype=np.int32)
    return Interactions(
        user_ids=np.array([f"user {number}" for number in range(len(items))]),
        offsets=starts(np.array([len(history) for history in items], dtype=np.int64)),
        items=rows,
        ratings=np.ones(len(rows), dtype=np.float32),
        has_time=True,
    )


def indicator(items: list[int]) -> NDArray[np.float64]:
    found = np.zeros(ITEMS)
    found[items] = 1
    return found


def enumerated(items: list[list[int]], support: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the mean over all orders of each history, summed over histories: support with support, with query."""
    S, Q = np.zeros((ITEMS, ITEMS)), np.zeros((ITEMS, ITEMS))
    for history in items:
        size = min(support, len(history) - 1)
        tasks = [(indicator(list(o[:size])), indicator(list(o[size:]))) for o in permutations(history)]
        if size:
            S += np.mean([np.outer(x, x) for x, _ in tasks], axis=0)
            Q += np.mean([np.outer(x, y) for x, y in tasks], axis=0)
    return S, Q


@given(
    st.lists(st.lists(st.integers(0, ITEMS - 1), min_size=1, max_size=5, unique=True), min_size=1, max_size=4),
    st.integers(1, 4),
)
@settings(max_examples=40, deadline=None)
def test_moments_in_random_order_are_the_mean_over_all_orders(items: list[list[int]], support: int) -> None:
    found, (S, Q) = task_moments(histories(*items), ITEMS, support=support), enumerated(items, support)
    np.testing.assert_allclose(found.support.toarray(), S, atol=1e-6)
    np.testing.assert_allclose(found.query.toarray(), Q, atol=1e-6)


def discounted(items: list[int], decay: float) -> NDArray[np.float64]:
    """Return powers of the decay at items, the nearest first, those that count for something."""
    found = np.zeros(ITEMS)
    for power, item in zip((decay**k for k in range(len(items))), items, strict=True):
        found[item] += power if power >= NEGLIGIBLE else 0.0
    return found


@given(
    st.lists(st.lists(st.integers(0, ITEMS - 1), min_size=1, max_size=7, unique=True), min_size=1, max_size=4),
    st.sampled_from([0.2, 0.5, 0.9]),
)
@settings(max_examples=40, deadline=None)
def test_moments_in_time_order_are_of_discounted_pasts_and_futures(items: list[list[int]], decay: float) -> None:
    S, Q = np.zeros((ITEMS, ITEMS)), np.zeros((ITEMS, ITEMS))
    for history in items:
        for place in range(1, len(history)):
            x, y = discounted(history[:place][::-1], decay), discounted(history[place:], decay)
            S, Q = S + np.outer(x, x), Q + np.outer(x, y)
    found = discounted_moments(histories(*items), ITEMS, decay=decay)
    np.testing.assert_allclose(found.support.toarray(), S, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found.query.toarray(), Q, rtol=1e-5, atol=1e-6)


def test_later_support_items_say_more() -> None:
    found = TaskRegression(neighbours=torch.arange(ITEMS)[:, None], weights=torch.ones(ITEMS, 1), decay=0.5)
    support, mask = torch.tensor([[4, 2, 0, 6]]), torch.tensor([[True, True, False, True]])
    expected = torch.zeros(1, ITEMS).index_put((torch.tensor([0]), torch.tensor([4])), torch.tensor(0.25))
    expected[0, 2], expected[0, 6] = 0.5, 1.0
    torch.testing.assert_close(found.predictions(support, mask), expected)


def test_moments_are_sums_over_users(monkeypatch: pytest.MonkeyPatch) -> None:
    everyone = histories([0, 1, 2, 3], [4, 5], [6], [1, 4, 6])
    whole = task_moments(everyone, ITEMS, support=2)
    parts = TaskMoments.none(ITEMS)
    for user in range(4):
        parts += task_moments(everyone, ITEMS, users=np.array([user]), support=2)
    np.testing.assert_allclose(parts.support.toarray(), whole.support.toarray(), atol=1e-6)
    np.testing.assert_allclose(parts.query.toarray(), whole.query.toarray(), atol=1e-6)
    in_time = discounted_moments(everyone, ITEMS, decay=0.8).query.toarray()
    monkeypatch.setattr("metarec_shared.task_regression.INTERACTIONS_AT_ONCE", 1)
    np.testing.assert_allclose(discounted_moments(everyone, ITEMS, decay=0.8).query.toarray(), in_time, atol=1e-6)
    np.testing.assert_allclose(
        task_moments(everyone, ITEMS, support=2).query.toarray(), whole.query.toarray(), atol=1e-6
    )


def drawn_tasks(seed: int, users: int = 60) -> tuple[Interactions, NDArray[np.float64], NDArray[np.float64]]:
    """Return histories of four items, and their tasks in time order with two of them in the support set."""
    rng = np.random.default_rng(seed)
    rows = [rng.permutation(ITEMS)[:4].tolist() for _ in range(users)]
    x, y = (np.array([indicator(row[part]) for row in rows]) for part in (slice(2), slice(2, 4)))
    return histories(*rows), x, y


def without_itself(x: NDArray[np.float64], known: NDArray[np.float64], penalty: float) -> NDArray[np.float64]:
    """Return the ridge regression of each column of ``known`` on all columns of ``x`` but that one."""
    alpha, weights = penalty * np.diag(x.T @ x).mean(), np.zeros((x.shape[1], x.shape[1]))
    for item in range(x.shape[1]):
        others = np.arange(x.shape[1]) != item
        weights[others, item] = Ridge(alpha=alpha, fit_intercept=False).fit(x[:, others], known[:, item]).coef_
    return weights


def weights_of(regression: TaskRegression) -> NDArray[np.float32]:
    every = torch.arange(len(regression.weights))[:, None]
    return regression.predictions(every, torch.ones_like(every, dtype=torch.bool)).numpy()


def test_weights_are_those_of_ridge_regression_on_all_other_items() -> None:
    _, x, y = drawn_tasks(0)
    moments = TaskMoments(support=sp.csr_array(x.T @ x), query=sp.csr_array(x.T @ y))
    found = fit_task_regression(moments, penalty=0.3, target="both", neighbours=ITEMS)
    np.testing.assert_allclose(weights_of(found), without_itself(x, x + y, 0.3), atol=1e-5)


def test_weights_for_the_query_set_alone_are_those_of_ridge_regression() -> None:
    _, x, y = drawn_tasks(0)
    moments = TaskMoments(support=sp.csr_array(x.T @ x), query=sp.csr_array(x.T @ y))
    expected = Ridge(alpha=0.3 * np.diag(x.T @ x).mean(), fit_intercept=False).fit(x, y).coef_.T
    found = fit_task_regression(moments, target="query", penalty=0.3, neighbours=ITEMS)
    np.testing.assert_allclose(weights_of(found), expected, atol=1e-5)


def test_without_query_sets_it_is_ease() -> None:
    everyone = drawn_tasks(0)[0]
    gram = co_occurrences(everyone, ITEMS)
    moments = TaskMoments(support=sp.csr_array(gram.numpy()), query=sp.csr_array((ITEMS, ITEMS), dtype=np.float32))
    found = fit_task_regression(moments, penalty=0.3, target="both", neighbours=ITEMS)
    expected = fit_ease(everyone, ITEMS, 0.3 * float(gram.diagonal().mean()))
    np.testing.assert_allclose(weights_of(found), expected.weights.numpy(), atol=1e-5)


def test_predictions_add_up_the_rows_of_the_support_set() -> None:
    everyone, _, _ = drawn_tasks(1)
    moments = task_moments(everyone, ITEMS, support=2)
    found = fit_task_regression(moments, target="both", penalty=0.5, neighbours=3)
    dense = torch.zeros(ITEMS, ITEMS).scatter_(1, found.neighbours, found.weights)
    support, mask = torch.tensor([[0, 4, 2], [5, 1, 0]]), torch.tensor([[True, True, False], [False, False, False]])
    expected = torch.stack([dense[0] + dense[4], torch.zeros(ITEMS)])
    torch.testing.assert_close(found.predictions(support, mask), expected)


def test_the_strongest_weights_are_kept() -> None:
    everyone, _, _ = drawn_tasks(2)
    moments = task_moments(everyone, ITEMS, support=2)
    whole = fit_task_regression(moments, penalty=0.5, target="both", neighbours=ITEMS)
    kept = fit_task_regression(moments, target="both", penalty=0.5, neighbours=2)
    torch.testing.assert_close(kept.weights.abs(), whole.weights.abs().sort(dim=1, descending=True).values[:, :2])


def test_few_items_are_solved_for_as_if_there_were_no_others() -> None:
    everyone = histories([0, 2, 4], [0, 2, 4], [0, 2], [2, 4], [0, 5])
    few = fit_task_regression(
        task_moments(everyone, ITEMS, support=1), target="both", penalty=0.5, neighbours=3, most_items=3
    )
    moments = task_moments(everyone, ITEMS, support=1)
    S, Q = (matrix.toarray()[np.ix_([0, 2, 4], [0, 2, 4])] for matrix in (moments.support, moments.query))
    P = np.linalg.inv(S + 0.5 * np.diag(S).mean() * np.eye(3))
    T = P @ (S + Q)
    expected = T - P @ np.diag(np.diag(T) / np.diag(P))
    found = few.predictions(torch.tensor([[0], [2], [4], [5]]), torch.ones(4, 1, dtype=torch.bool))
    np.testing.assert_allclose(found.numpy()[:3][:, [0, 2, 4]], expected, atol=1e-5)
    assert not found[3].any()
    assert not found[:, [1, 3, 5, 6]].any()


def test_a_regression_moves_to_another_catalogue() -> None:
    moments = task_moments(drawn_tasks(3)[0], ITEMS, support=2)
    found = fit_task_regression(moments, penalty=0.5, target="both", neighbours=ITEMS)
    here, there = torch.tensor([3, 0, 1]), torch.tensor([2, 5, 6])  # item 2 is item 3 over there, and so on
    moved = found.transferred(4, here, there)
    one = torch.tensor([[2], [5], [6]])
    before = found.predictions(one, torch.ones(3, 1, dtype=torch.bool))
    after = moved.predictions(torch.tensor([[3], [0], [1], [2]]), torch.ones(4, 1, dtype=torch.bool))
    torch.testing.assert_close(after[:3][:, here], before[:, there])
    assert not after[3].any()
    assert not after[:, 2].any()


def test_an_item_of_another_catalogue_is_spoken_for_as_its_text_says() -> None:
    moments = task_moments(drawn_tasks(3)[0], ITEMS, support=2)
    random = torch.Generator().manual_seed(0)
    text, fresh = torch.randn(ITEMS, 2, generator=random), torch.randn(3, 2, generator=random)
    found = fit_task_regression(moments, penalty=0.5, target="both", neighbours=ITEMS, text=text)
    one, mask = torch.arange(ITEMS)[:, None], torch.ones(ITEMS, 1, dtype=torch.bool)
    B = found.predictions(one, mask)
    centred = (text - text.mean(dim=0)).numpy()
    alpha = fit_text_ridge(text, B.T).penalty * np.linalg.eigvalsh(centred.T @ centred).mean()
    expected = Ridge(alpha=alpha).fit(text.numpy(), B.T.numpy()).predict(fresh.numpy()).T
    here = torch.arange(2, 2 + ITEMS)
    moved = found.transferred(ITEMS + 3, here, torch.arange(ITEMS), torch.cat([fresh[:2], text, fresh[2:]]))
    after = moved.predictions(one + 2, mask)
    torch.testing.assert_close(after[:, here], B)
    np.testing.assert_allclose(after[:, [0, 1, ITEMS + 2]], expected, atol=1e-5)
    assert np.abs(expected).max() > 0.01
    silent = moved.predictions(torch.tensor([[0], [1], [ITEMS + 2]]), mask[:3])
    assert not silent.any()


def test_items_that_are_not_solved_for_stay_unspoken_for_and_do_not_speak() -> None:
    moments = task_moments(drawn_tasks(3)[0], ITEMS, support=2)
    text = torch.randn(ITEMS, 2, generator=torch.Generator().manual_seed(0))
    few = fit_task_regression(moments, penalty=0.5, target="both", neighbours=ITEMS, most_items=4, text=text)
    assert few.by_text is not None
    assert len(few.by_text.positions) == 0
    assert int(few.by_text.coefficients.any(dim=1).sum()) == 4
    assert int(few.by_text.intercept.count_nonzero()) == 4


def test_a_penalty_must_be_above_zero() -> None:
    with pytest.raises(ValueError, match="penalty"):
        fit_task_regression(TaskMoments.none(3), target="query", penalty=0.0, neighbours=1)


def test_moments_of_nobody_are_solved_to_nothing() -> None:
    found = fit_task_regression(TaskMoments.none(3), target="query", penalty=1.0, neighbours=2)
    assert isinstance(found, TaskRegression)
    assert not found.weights.any()
