"""The text kernel against scikit-learn's kernel on vectors of unit length, and who speaks."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.metrics.pairwise import rbf_kernel

from metarec_shared.tasks import Order, TaskBatch
from metarec_shared.text_kernel import TextKernel

ITEMS, TEXT = 12, 5
SUPPORT = torch.tensor([[0, 3, 5], [7, 2, 2], [4, 1, 0]])
MASK = torch.tensor([[True, True, True], [True, True, False], [False, False, False]])


def text() -> torch.Tensor:
    return torch.randn(ITEMS, TEXT, generator=torch.Generator().manual_seed(0)) + 2.0


@pytest.mark.parametrize("sharpness", [0.5, 8.0])
def test_it_is_a_gaussian_kernel_on_the_unit_sphere(sharpness: float) -> None:
    """On the sphere |a - b|^2 = 2 - 2 cos, so exp(s (cos - 1)) = exp(-s/2 |a - b|^2)."""
    vectors = text().double().numpy()
    vectors -= vectors.mean(axis=0)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    kernel = rbf_kernel(vectors, gamma=sharpness / 2)
    found = TextKernel.over(text(), sharpness).predictions(SUPPORT, MASK)
    expected = np.stack([kernel[[0, 3, 5]].sum(axis=0), kernel[[7, 2]].sum(axis=0), np.zeros(ITEMS)])
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-4, atol=1e-5)


def test_a_table_of_its_values_changes_nothing_but_the_time_it_takes() -> None:
    kernel = TextKernel.over(text(), 8.0, blends={"random": {1: 0.5, 3: 2.0}})
    tabulated = kernel.tabulated()
    torch.testing.assert_close(tabulated.predictions(SUPPORT, MASK), kernel.predictions(SUPPORT, MASK))
    weights = torch.full(SUPPORT.shape, 0.7, requires_grad=True)
    found = [
        torch.autograd.grad(one.blended(replace(tasks(), weights=weights))[:, 3].sum(), weights)[0]
        for one in (kernel, tabulated)
    ]
    torch.testing.assert_close(*found)


def tasks(*, in_time: torch.Tensor | None = None) -> TaskBatch:
    return TaskBatch(
        support=SUPPORT,
        support_mask=MASK,
        feedback=torch.zeros_like(SUPPORT),
        query=SUPPORT,
        query_mask=MASK,
        known=SUPPORT,
        in_time=in_time,
    )


def test_without_blends_known_items_do_not_speak_and_others_by_their_share() -> None:
    unknown = torch.zeros(ITEMS, dtype=torch.bool).index_fill(0, torch.tensor([3, 5, 8]), True)
    found = TextKernel.over(text(), 8.0, unknown=unknown, weight=4.0).blended(tasks())
    of_two = TextKernel.over(text(), 8.0).predictions(SUPPORT[:1, 1:], MASK[:1, 1:])
    torch.testing.assert_close(found[:1], of_two * 4.0 * (3 / ITEMS) ** 2)
    assert not found[1:].any()


def test_blends_are_by_order_and_size_and_an_unknown_item_counts_at_least_as_much() -> None:
    unknown = torch.zeros(ITEMS, dtype=torch.bool).index_fill(0, torch.tensor([3, 7]), True)
    blends: dict[Order, dict[int, float]] = {"random": {1: 1.0, 3: 5.0}, "time": {2: 0.25}}
    kernel = TextKernel.over(text(), 8.0, blends=blends, unknown=unknown, weight=72.0)  # 2 for an unknown item
    found = kernel.blended(tasks(in_time=torch.tensor([False, True, False])))
    first = 5.0 * kernel.predictions(SUPPORT[:1], MASK[:1])
    second = 2.0 * kernel.predictions(SUPPORT[1:2, :1], MASK[1:2, :1])
    second += 0.25 * kernel.predictions(SUPPORT[1:2, 1:2], MASK[1:2, 1:2])
    torch.testing.assert_close(found, torch.cat([first, second, torch.zeros(1, ITEMS)]))
