"""What is true of tasks and of the model whatever the histories are."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from metarec_shared.adaptation import support_loss
from metarec_shared.dataset import RatingScale
from metarec_shared.feedback import FEEDBACK_LEVELS, feedback_levels
from metarec_shared.inner_loop import NEVER, query_loss
from metarec_shared.interactions import Interactions
from metarec_shared.meta_gradient import summed_meta_gradient
from metarec_shared.randomness import user_keys
from metarec_shared.settings import AdaptationSettings, TaskSettings
from metarec_shared.tasks import TaskBatch, draw_training_tasks
from tests.small import small_model, small_tasks

CHOICES = ["user-vector", "head", "lora", "all"]


def _longer(batch: TaskBatch, support: int, query: int) -> TaskBatch:
    """Pad a batch further, with item numbers that are not 0, as padding may hold anything in range."""
    users = len(batch)
    fields = batch.tensors()
    extra = torch.full((users, support), 3)
    assert batch.dropout is not None
    factors = torch.full((users, support, batch.dropout.shape[2]), 7.0)
    fields |= {
        "support": torch.cat([batch.support, extra], 1),
        "support_mask": torch.cat([batch.support_mask, extra < 0], 1),
        "feedback": torch.cat([batch.feedback, extra], 1),
        "known": torch.cat([batch.known, -torch.ones_like(extra)], 1),
        "dropout": torch.cat([batch.dropout[:, :-1], factors, batch.dropout[:, -1:]], 1),
        "query": torch.cat([batch.query, torch.full((users, query), 5)], 1),
        "query_mask": torch.cat([batch.query_mask, torch.zeros(users, query, dtype=torch.bool)], 1),
    }
    return TaskBatch(**fields)


@pytest.mark.parametrize("choice", CHOICES)
def test_padding_changes_neither_scores_nor_meta_gradients(choice: str) -> None:
    model = small_model(AdaptationSettings(parameters=choice), dtype=torch.float32)  # type: ignore[arg-type]
    batch = small_tasks(4)
    longer, weights = _longer(batch, 6, 3), torch.ones(4)
    torch.testing.assert_close(model(longer), model(batch), atol=1e-5, rtol=1e-5)
    short, long = (summed_meta_gradient(model, tasks, weights) for tasks in (batch, longer))
    for name, gradient in short.gradients.items():
        torch.testing.assert_close(long.gradients[name], gradient, atol=2e-5, rtol=1e-4, msg=name)


@pytest.mark.parametrize("choice", CHOICES)
def test_a_user_gets_the_same_scores_in_any_batch(choice: str) -> None:
    model = small_model(AdaptationSettings(parameters=choice), dtype=torch.float32)  # type: ignore[arg-type]
    tasks = small_tasks(6)
    together = model(tasks)
    for user in range(6):
        torch.testing.assert_close(model(tasks.rows(user, user + 1))[0], together[user], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("choice", CHOICES)
def test_no_adaptation_step_is_the_identity(choice: str) -> None:
    model = small_model(AdaptationSettings(parameters=choice, steps=0))  # type: ignore[arg-type]
    tasks = small_tasks(3, settings=TaskSettings(support=5, query=4, feature_dropout=0.0))
    torch.testing.assert_close(model(tasks), model(tasks, adapt=False))


@pytest.mark.parametrize("choice", CHOICES)
def test_an_empty_support_set_keeps_the_initialization(choice: str) -> None:
    model = small_model(AdaptationSettings(parameters=choice))  # type: ignore[arg-type]
    batch = small_tasks(3, settings=TaskSettings(support=5, query=4, feature_dropout=0.0))
    empty = TaskBatch(**{**batch.tensors(), "support_mask": torch.zeros_like(batch.support_mask)})
    torch.testing.assert_close(model(empty), model(empty, adapt=False))
    assert support_loss(model(empty), empty).abs().max() == 0


def test_adaptation_lowers_the_support_loss() -> None:
    for choice in CHOICES:
        inner = AdaptationSettings(parameters=choice, learning_rate=1e-3, method="maml")  # type: ignore[arg-type]
        model, batch = small_model(inner, dtype=torch.float32), small_tasks(5)
        before, after = support_loss(model(batch, adapt=False), batch), support_loss(model(batch), batch)
        has_support = batch.support_mask.any(dim=1)
        assert (after < before)[has_support].all(), choice


def test_known_items_never_enter_the_query_loss() -> None:
    model, batch = small_model(dtype=torch.float32), small_tasks(4)
    scores = model(batch)
    moved = scores.masked_fill(batch.known_mask(scores.shape[1]), 50.0)
    torch.testing.assert_close(query_loss(moved, batch), query_loss(scores, batch))
    assert scores.min() > NEVER


def _histories(lengths: list[int], seed: int) -> Interactions:
    rng = np.random.default_rng(seed)
    return Interactions(
        user_ids=np.array([f"user {user}" for user in range(len(lengths))]),
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        items=np.concatenate([rng.permutation(100)[:length] for length in lengths]).astype(np.int32),
        ratings=rng.integers(1, 11, sum(lengths)).astype(np.float32),
        has_time=True,
    )


def _drawn(histories: Interactions, users: list[int], sizes: TaskSettings, seed: int = 0, width: int = 4) -> TaskBatch:
    positions, scale = np.array(users), RatingScale(low=1.0, high=10.0)
    keys = user_keys(seed, histories.user_ids[positions])
    return draw_training_tasks(histories, positions, keys, scale, sizes, width, (seed, 3))


@settings(deadline=None, max_examples=200)
@given(
    lengths=st.lists(st.integers(2, 60), min_size=1, max_size=6),
    support=st.integers(1, 20),
    query=st.integers(1, 50),
    vary=st.sampled_from([0.0, 0.5, 1.0]),
    time_query=st.none() | st.integers(1, 50),
    seed=st.integers(0, 2**32),
)
def test_support_and_query_never_overlap_and_both_hold_an_item(
    lengths: list[int], support: int, query: int, vary: float, time_query: int | None, seed: int
) -> None:
    histories = _histories(lengths, seed)
    sizes = TaskSettings(support=support, query=query, vary_support=vary, time_share=0.0)
    if time_query is not None:
        sizes = replace(sizes, time_share=1.0, time_query=time_query)
        query = min(query, time_query)
    batch = _drawn(histories, list(range(len(lengths))), sizes, seed)
    for user, length in enumerate(lengths):
        known = batch.known[user][batch.known[user] >= 0].tolist()
        asked = batch.query[user][batch.query_mask[user]].tolist()
        assert 1 <= len(known) <= min(support, length - 1)
        assert len(asked) == min(query, length - len(known))
        assert vary or len(known) == min(support, length - 1)
        drawn = known + asked
        if time_query is not None:
            begin = histories.history(user).tolist().index(known[0])
            assert histories.history(user)[begin : begin + len(drawn)].tolist() == drawn
        assert len(set(drawn)) == len(drawn)
        assert set(drawn) <= set(histories.history(user).tolist())
        start = histories.offsets[user]
        ratings = dict(zip(histories.history(user).tolist(), histories.ratings[start : start + length], strict=True))
        assert batch.support[user][: len(known)].tolist() == known
        assert [ratings[item] for item in known] == batch.feedback[user][: len(known)].tolist()
        assert not batch.support_mask[user][len(known) :].any()


@settings(deadline=None, max_examples=50)
@given(lengths=st.lists(st.integers(2, 40), min_size=2, max_size=6), seed=st.integers(0, 2**32), data=st.data())
def test_a_users_task_depends_on_nobody_else(lengths: list[int], seed: int, data: st.DataObject) -> None:
    histories = _histories(lengths, seed)
    sizes = TaskSettings(support=6, query=9, vary_support=0.5)
    users = data.draw(st.permutations(range(len(lengths))))
    together = _drawn(histories, list(users), sizes)
    for row, user in enumerate(users):
        alone = _drawn(histories, [user], sizes)
        support, query = alone.support.shape[1], alone.query.shape[1]
        assert torch.equal(together.support[row, :support], alone.support[0])
        assert torch.equal(together.support_mask[row, :support], alone.support_mask[0])
        assert not together.support_mask[row, support:].any()
        assert torch.equal(together.query[row, :query], alone.query[0])
        assert int(together.query_mask[row].sum()) == query
        assert together.dropout is not None
        assert alone.dropout is not None
        assert torch.equal(together.dropout[row, :support], alone.dropout[0, :support])
        assert torch.equal(together.dropout[row, -1], alone.dropout[0, -1])


def test_every_order_of_a_short_history_is_equally_likely() -> None:
    """A chi-square test of the first two of four items, over users, at a chance of one in ten thousand."""
    count = 6000
    histories = _histories([4] * count, 0)
    batch = _drawn(
        histories,
        list(range(count)),
        TaskSettings(support=2, query=1, vary_support=0.0, support_dropout=0.0, time_share=0.0),
    )
    items = histories.items.reshape(count, 4)
    places = [(items == batch.support[:, [column]].numpy()).argmax(axis=1) for column in (0, 1)]
    counts = np.bincount(places[0] * 4 + places[1], minlength=16)
    pairs = [counts[4 * i + j] for i in range(4) for j in range(4) if i != j]
    assert sum(pairs) == count
    assert stats.chisquare(pairs).pvalue > 1e-4


def test_tasks_in_time_order_begin_anywhere_and_are_as_many_as_asked() -> None:
    count = 6000
    histories = _histories([6] * count, 0)
    sizes = TaskSettings(support=2, query=3, vary_support=0.0, time_share=0.4, time_query=1, start_share=0.0)
    batch = _drawn(histories, list(range(count)), sizes)
    assert batch.in_time is not None
    assert batch.from_start is not None
    assert not batch.from_start.any()
    assert stats.binomtest(int(batch.in_time.sum()), count, 0.4).pvalue > 1e-4
    first = (histories.items.reshape(count, 6) == batch.known[:, :1].numpy()).argmax(axis=1)[batch.in_time.numpy()]
    assert stats.chisquare(np.bincount(first, minlength=4)).pvalue > 1e-4  # 0 to 3: two items and one to follow
    assert batch.query_mask[batch.in_time].sum(dim=1).tolist() == [1] * int(batch.in_time.sum())
    assert batch.query_mask[~batch.in_time].sum(dim=1).tolist() == [3] * int((~batch.in_time).sum())


def test_a_share_of_the_tasks_in_time_order_begins_where_the_history_does() -> None:
    count = 4000
    histories = _histories([9] * count, 0)
    sizes = TaskSettings(support=3, query=3, vary_support=0.0, time_share=0.8, time_query=2, start_share=0.3)
    batch = _drawn(histories, list(range(count)), sizes)
    assert batch.in_time is not None
    assert batch.from_start is not None
    assert not (batch.from_start & ~batch.in_time).any()
    assert stats.binomtest(int(batch.from_start.sum()), int(batch.in_time.sum()), 0.3).pvalue > 1e-4
    whole = torch.from_numpy(histories.items.reshape(count, 9).astype(np.int64))[batch.from_start]
    torch.testing.assert_close(batch.known[batch.from_start], whole[:, :3])
    torch.testing.assert_close(batch.query[batch.from_start][:, :2], whole[:, 3:5])


def test_without_time_all_tasks_are_in_random_order() -> None:
    histories = replace(_histories([9] * 50, 0), has_time=False)
    batch = _drawn(histories, list(range(50)), TaskSettings(support=3, query=4, time_share=1.0, time_query=1))
    assert batch.in_time is not None
    assert not batch.in_time.any()
    assert batch.query_mask.sum(dim=1).tolist() == [4] * 50


def test_dropout_falls_as_often_as_asked_and_keeps_the_mean() -> None:
    histories = _histories([12] * 400, 0)
    sizes = TaskSettings(support=5, query=5, vary_support=0.0, feature_dropout=0.2, support_dropout=0.3)
    batch = _drawn(histories, list(range(400)), sizes, width=16)
    assert batch.dropout is not None
    kept = batch.dropout > 0
    assert stats.binomtest(int((~kept).sum()), kept.numel(), 0.2).pvalue > 1e-4
    torch.testing.assert_close(batch.dropout[kept], torch.full((int(kept.sum()),), 1.25))
    hidden = int((~batch.support_mask).sum())
    assert stats.binomtest(hidden, batch.support_mask.numel(), 0.3).pvalue > 1e-4


@settings(deadline=None)
@given(st.lists(st.floats(0.5, 5.0, width=32), min_size=1, max_size=30))
def test_feedback_levels_keep_the_order_of_ratings_and_their_range(ratings: list[float]) -> None:
    levels = feedback_levels(np.array(sorted(ratings), dtype=np.float32), RatingScale(low=0.5, high=5.0))
    assert (np.diff(levels) >= 0).all()
    assert levels.min() >= 1
    assert levels.max() <= FEEDBACK_LEVELS


def test_a_missing_rating_has_feedback_level_zero() -> None:
    ratings = np.array([np.nan, 1.0, 5.0, 3.0], dtype=np.float32)
    assert feedback_levels(ratings, RatingScale(low=1.0, high=5.0)).tolist() == [0, 1, 10, 5]
    assert feedback_levels(ratings, None).tolist() == [0, 0, 0, 0]
