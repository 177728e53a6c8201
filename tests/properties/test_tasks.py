"""What is true of tasks and of the model whatever the histories are."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from metarec_shared.adaptation import support_loss
from metarec_shared.dataset import RatingScale
from metarec_shared.meta_gradient import query_loss, summed_meta_gradient
from metarec_shared.model import NEVER
from metarec_shared.settings import AdaptationSettings, TaskSettings
from metarec_shared.tasks import FEEDBACK_LEVELS, TaskBatch, draw_training_task, feedback_levels, pad
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
    batch = pad(small_tasks(4))
    longer, weights = _longer(batch, 6, 3), torch.ones(4)
    torch.testing.assert_close(model(longer), model(batch), atol=1e-5, rtol=1e-5)
    short, long = (summed_meta_gradient(model, tasks, weights) for tasks in (batch, longer))
    for name, gradient in short.gradients.items():
        torch.testing.assert_close(long.gradients[name], gradient, atol=2e-5, rtol=1e-4, msg=name)


@pytest.mark.parametrize("choice", CHOICES)
def test_a_user_gets_the_same_scores_in_any_batch(choice: str) -> None:
    model = small_model(AdaptationSettings(parameters=choice), dtype=torch.float32)  # type: ignore[arg-type]
    tasks = small_tasks(6)
    together = model(pad(tasks))
    for user, task in enumerate(tasks):
        torch.testing.assert_close(model(pad([task]))[0], together[user], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("choice", CHOICES)
def test_no_adaptation_step_is_the_identity(choice: str) -> None:
    model = small_model(AdaptationSettings(parameters=choice, steps=0))  # type: ignore[arg-type]
    tasks = small_tasks(3, settings=TaskSettings(support=5, query=4, feature_dropout=0.0))
    torch.testing.assert_close(model(pad(tasks)), model(pad(tasks), adapt=False))


@pytest.mark.parametrize("choice", CHOICES)
def test_an_empty_support_set_keeps_the_initialization(choice: str) -> None:
    model = small_model(AdaptationSettings(parameters=choice))  # type: ignore[arg-type]
    batch = pad(small_tasks(3, settings=TaskSettings(support=5, query=4, feature_dropout=0.0)))
    empty = TaskBatch(**{**batch.tensors(), "support_mask": torch.zeros_like(batch.support_mask)})
    torch.testing.assert_close(model(empty), model(empty, adapt=False))
    assert support_loss(model(empty), empty).abs().max() == 0


def test_adaptation_lowers_the_support_loss() -> None:
    for choice in CHOICES:
        inner = AdaptationSettings(parameters=choice, learning_rate=1e-3, learned=False)  # type: ignore[arg-type]
        model, batch = small_model(inner, dtype=torch.float32), pad(small_tasks(5))
        before, after = support_loss(model(batch, adapt=False), batch), support_loss(model(batch), batch)
        has_support = batch.support_mask.any(dim=1)
        assert (after < before)[has_support].all(), choice


def test_known_items_never_enter_the_query_loss() -> None:
    model, batch = small_model(dtype=torch.float32), pad(small_tasks(4))
    scores = model(batch)
    moved = scores.masked_fill(batch.known_mask(scores.shape[1]), 50.0)
    torch.testing.assert_close(query_loss(moved, batch), query_loss(scores, batch))
    assert scores.min() > NEVER


@settings(deadline=None, max_examples=200)
@given(
    length=st.integers(2, 60),
    support=st.integers(1, 20),
    query=st.integers(1, 50),
    vary=st.sampled_from([0.0, 0.5, 1.0]),
    seed=st.integers(0, 2**32),
)
def test_support_and_query_never_overlap_and_both_hold_an_item(
    length: int, support: int, query: int, vary: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    items = rng.permutation(100)[:length]
    sizes = TaskSettings(support=support, query=query, vary_support=vary)
    task = draw_training_task(items, np.arange(length) % 11, sizes, 4, rng)
    assert 1 <= len(task.support) <= min(support, length - 1)
    assert 1 <= len(task.query) <= query
    drawn = np.concatenate([task.support, task.query])
    assert len(set(drawn.tolist())) == len(drawn)
    assert set(drawn.tolist()) <= set(items.tolist())
    feedback = dict(zip(items.tolist(), (np.arange(length) % 11).tolist(), strict=True))
    assert [feedback[item] for item in task.support.tolist()] == task.feedback.tolist()


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
