"""Tasks cropped, reordered and with substitutes: what stays true of them, whoever else is drawn."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics.pairwise import cosine_similarity

from metarec_shared.augmentation import Coins, reordered, substitutes, text_neighbours, time_ranks
from metarec_shared.dataset import RatingScale
from metarec_shared.interactions import Interactions
from metarec_shared.population import Population
from metarec_shared.randomness import user_keys
from metarec_shared.settings import TaskSettings
from metarec_shared.tasks import TaskBatch, draw_training_tasks, with_substitutes

USERS, ITEMS = 60, 50
PLAIN = TaskSettings(
    vary_support=0.0,
    start_share=0.0,
    support=6,
    query=5,
    support_dropout=0.0,
    feature_dropout=0.0,
    time_share=0.0,
    time_query=5,
)


def histories(*, has_time: bool = True) -> Interactions:
    rng = np.random.default_rng(0)
    lengths = rng.integers(2, 25, USERS)
    return Interactions(
        user_ids=np.array([f"user {user}" for user in range(USERS)]),
        offsets=np.concatenate([[0], np.cumsum(lengths)]),
        items=np.concatenate([rng.permutation(ITEMS)[:length] for length in lengths]).astype(np.int32),
        ratings=np.full(int(lengths.sum()), np.nan, dtype=np.float32),
        has_time=has_time,
    )


DATA = histories()
KEYS = user_keys(0, DATA.user_ids)


def draw(
    sizes: TaskSettings, users: np.ndarray | None = None, data: Interactions = DATA, round_number: int = 1
) -> TaskBatch:
    chosen = np.arange(USERS) if users is None else users
    scale = RatingScale(low=1.0, high=5.0)
    return draw_training_tasks(data, chosen, KEYS[chosen], scale, sizes, 8, (0, round_number))


def rows_of(user: int, items: torch.Tensor) -> list[int]:
    history = DATA.history(user).tolist()
    return [history.index(item) for item in items.tolist()]


def test_a_cropped_task_is_a_stretch_in_time_and_its_query_follows_the_support() -> None:
    tasks, starts = draw(replace(PLAIN, time_share=1.0)), []
    for user in range(USERS):
        n, m = int(tasks.support_mask[user].sum()), int(tasks.query_mask[user].sum())
        length = int(DATA.lengths[user])
        assert n == min(6, length - 1)
        rows = rows_of(user, torch.cat([tasks.support[user, :n], tasks.query[user, :m]]))
        assert rows == list(range(rows[0], rows[0] + n + m))
        assert m == min(5, length - n) >= 1
        assert tasks.recency is not None
        assert tasks.recency[user].tolist() == [*range(n, 0, -1), *[0] * (6 - n)]
        starts.append(rows[0])
    assert len(set(starts)) > 8


def test_a_share_is_cropped_and_the_others_tasks_do_not_change() -> None:
    plain, whole, half = (draw(replace(PLAIN, time_share=share)) for share in (0.0, 1.0, 0.5))
    cropped = 0
    for user in range(USERS):
        same = [torch.equal(half.support[user], other.support[user]) for other in (plain, whole)]
        assert any(same)
        cropped += same[1] and not same[0]
    assert 15 < cropped < 45
    few = draw(replace(PLAIN, time_share=0.5), np.array([7, 3]))
    assert torch.equal(few.support, half.support[[7, 3], : few.support.shape[1]])


def test_data_without_time_is_never_cropped_and_has_no_ranks() -> None:
    tasks = draw(replace(PLAIN, time_share=1.0, reorder=1.0), data=histories(has_time=False))
    assert tasks.recency is None
    assert torch.equal(tasks.support, draw(PLAIN).support)


@given(st.lists(st.integers(0, 100), min_size=1, max_size=9, unique=True), st.integers(0, 3))
@settings(deadline=None, max_examples=60)
def test_ranks_in_time_count_from_the_newest(rows: list[int], padding: int) -> None:
    table = np.array([[*rows, *[rows[0]] * padding]])
    real = np.array([[True] * len(rows) + [False] * padding])
    wanted = [1 + sum(other > row for other in rows) for row in rows]
    assert time_ranks(table, real)[0].tolist() == [*wanted, *[0] * padding]


@given(st.permutations(range(1, 8)), st.integers(0, 2), st.integers(0, 1000))
@settings(deadline=None, max_examples=60)
def test_reordering_permutes_a_stretch_of_half_the_ranks(ranks: list[int], padding: int, seed: int) -> None:
    table = np.array([[*ranks, *[0] * padding]] * 2)
    draws = np.random.default_rng(seed).random((2, 1 + table.shape[1]))
    found = reordered(table, np.array([7, 7]), Coins(np.array([True, False]), draws))
    assert found[1].tolist() == table[1].tolist()
    assert sorted(found[0]) == sorted(table[0])
    moved = sorted(rank for rank, new in zip(table[0], found[0], strict=True) if rank != new)
    assert not moved or moved[-1] - moved[0] < 4
    assert (found[0][len(ranks) :] == 0).all()


def test_ranks_are_reordered_in_a_share_of_tasks_and_evaluation_has_true_ones() -> None:
    plain, some = (draw(replace(PLAIN, reorder=share)).recency for share in (0.0, 0.5))
    assert plain is not None
    assert some is not None
    changed = (plain != some).any(dim=1).float().mean()
    assert 0.2 < changed < 0.5
    population = Population.of(DATA, None, 0)
    user = int(np.argmax(DATA.lengths))
    for order in ("random", "time"):
        task = population.evaluation_task(user, order, 5, 5, None)  # type: ignore[arg-type]
        rows = rows_of(user, torch.from_numpy(task.support))
        assert task.recency is not None
        assert task.recency.tolist() == [1 + sum(other > row for other in rows) for row in rows]


def test_neighbours_are_the_items_of_highest_cosine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("metarec_shared.augmentation._ITEMS_AT_ONCE", 7)
    text = torch.randn(20, 5, generator=torch.Generator().manual_seed(0))
    similar = cosine_similarity(text.numpy())
    np.fill_diagonal(similar, -2)
    assert np.array_equal(text_neighbours(text, 4).numpy(), np.argsort(-similar, axis=1)[:, :4])
    assert text_neighbours(text[:3], 10).shape == (3, 2)


def test_substitutes_are_neighbours_that_are_new_to_the_user() -> None:
    tasks = draw(replace(PLAIN, support=10))
    neighbours = text_neighbours(torch.randn(ITEMS, 4, generator=torch.Generator().manual_seed(1)), 5)
    found = with_substitutes(tasks, neighbours, KEYS, 0.5, (0, 1))
    real = tasks.support_mask
    changed = (found.support != tasks.support) & real
    assert 0.25 < float(changed[real].float().mean()) < 0.5
    assert torch.equal(found.known, tasks.known)
    for user, place in changed.nonzero().tolist():
        item = int(found.support[user, place])
        assert item in neighbours[tasks.support[user, place]].tolist()
        assert item not in tasks.query[user][tasks.query_mask[user]].tolist()
        assert item not in tasks.support[user][real[user]].tolist()
    for user in range(USERS):
        items = found.support[user][real[user]].tolist()
        assert len(set(items)) == len(items)
    few = np.argsort(DATA.lengths)[[12, 5]]  # the width of a batch changes nothing
    alone = with_substitutes(draw(replace(PLAIN, support=10), few), neighbours, KEYS[few], 0.5, (0, 1))
    width = alone.support.shape[1]
    assert width < found.support.shape[1]
    assert torch.equal(alone.support[alone.support_mask], found.support[few, :width][alone.support_mask])
    other = with_substitutes(tasks, neighbours, KEYS, 0.5, (0, 2))
    assert not torch.equal(other.support, found.support)


def test_no_chance_no_substitute() -> None:
    support = torch.tensor([[1, 2, 3]])
    neighbours = text_neighbours(torch.randn(9, 4), 3)
    assert torch.equal(substitutes(support, support, neighbours, torch.zeros(1, 6), 0.0), support)
