"""What users begin with: counts by hand, interpolation against NumPy, a prior that speaks at the start alone."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from metarec_shared.interactions import Interactions
from metarec_shared.start_prior import StartPrior, start_counts
from metarec_shared.task_regression import between_sizes
from metarec_shared.tasks import TaskBatch
from tests.small import small_tasks

ITEMS = 7
HISTORIES = ([0, 1, 2, 3, 4], [1, 0, 5], [6], [2, 3])


def histories() -> Interactions:
    lengths = [len(history) for history in HISTORIES]
    return Interactions(
        user_ids=np.array(["a", "b", "c", "d"]),
        offsets=np.concatenate([[0], np.cumsum(lengths)]),
        items=np.array([item for history in HISTORIES for item in history], dtype=np.int32),
        ratings=np.full(sum(lengths), np.nan, dtype=np.float32),
        has_time=True,
    )


@pytest.mark.parametrize("users", [[0, 1, 2, 3], [1, 3], []])
def test_counts_are_those_of_slices(users: list[int]) -> None:
    sizes, query = (1, 2, 4), 2
    found = start_counts(histories(), ITEMS, users=np.array(users, dtype=np.int64), sizes=sizes, query=query)
    for row, size in enumerate(sizes):
        following = [item for user in users for item in HISTORIES[user][size : size + query]]
        np.testing.assert_array_equal(found.toarray()[row], np.bincount(following, minlength=ITEMS))


@pytest.mark.parametrize("sizes", [(3,), (1, 4), (1, 3, 5, 10)])
def test_weights_interpolate_as_numpy_does(sizes: tuple[int, ...]) -> None:
    values, wanted = np.random.default_rng(0).normal(size=len(sizes)), np.arange(13)
    found = between_sizes(sizes, torch.from_numpy(wanted)).numpy() @ values
    np.testing.assert_allclose(found, np.interp(wanted, sizes, values), rtol=1e-5)


def prior() -> StartPrior:
    counts = start_counts(histories(), ITEMS, users=np.arange(4), sizes=(1, 2), query=2)
    return StartPrior.of(counts, (1, 2)).with_blends({1: 4.0, 2: 0.5})


def a_task(support: int, *, from_start: bool | None) -> TaskBatch:
    batch = small_tasks(1)
    items = torch.arange(support)[None]
    return replace(
        batch,
        support=items,
        support_mask=torch.ones_like(items, dtype=torch.bool),
        from_start=None if from_start is None else torch.tensor([from_start]),
    )


def test_the_prior_is_the_log_of_how_many_had_an_item_and_speaks_at_the_start_alone() -> None:
    after_one = np.array([1, 1, 1, 1, 0, 1, 0])  # 1 and 2, 0 and 5, 3
    found = prior().predictions(a_task(1, from_start=True))[0]
    np.testing.assert_allclose(found.numpy(), np.log(after_one + 0.5), rtol=1e-6)
    torch.testing.assert_close(prior().blended(a_task(1, from_start=True))[0], 4.0 * found)
    for elsewhere in (False, None):
        assert not prior().predictions(a_task(1, from_start=elsewhere)).any()
        assert not prior().blended(a_task(1, from_start=elsewhere)).any()


def test_it_is_constant_beyond_its_sizes() -> None:
    last = prior().blended(a_task(2, from_start=True))
    torch.testing.assert_close(prior().blended(a_task(6, from_start=True)), last)


def test_another_catalogue_expects_unknown_items_by_their_text() -> None:
    """Where text says all of the prior, an item that training did not know gets what its text says."""
    shared, items = 30, 40
    here, there = torch.randperm(items, generator=torch.Generator().manual_seed(1))[:shared], torch.arange(shared)
    text = torch.randn(items, 2, generator=torch.Generator().manual_seed(0))
    said = (text @ torch.tensor([[1.0, 0.5], [-2.0, 3.0]])).T
    known = replace(prior(), logs=said[:, here])
    torch.testing.assert_close(
        known.transferred(items, here, there, (text[here], text)).logs, said, atol=0.1, rtol=0.05
    )
    none = torch.zeros(0, dtype=torch.int64)
    torch.testing.assert_close(known.transferred(items, none, none, (text[here], text)).logs, said, atol=0.1, rtol=0.05)
    blind = known.transferred(items, here, there).logs
    assert torch.equal(blind[:, here], said[:, here])
    elsewhere = torch.ones(items, dtype=torch.bool).index_fill(0, here, False)
    assert (blind[:, elsewhere] == np.float32(np.log(0.5))).all()
