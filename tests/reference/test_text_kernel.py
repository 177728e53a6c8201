"""The text kernel against scikit-learn's kernel on vectors of unit length, and who speaks."""

import numpy as np
import pytest
import torch
from sklearn.metrics.pairwise import rbf_kernel

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
    found = TextKernel.over(text(), torch.ones(ITEMS, dtype=torch.bool), 3.0, sharpness).predictions(SUPPORT, MASK)
    expected = 3.0 * np.stack([kernel[[0, 3, 5]].sum(axis=0), kernel[[7, 2]].sum(axis=0), np.zeros(ITEMS)])
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-4, atol=1e-5)


def test_known_items_do_not_speak_and_the_weight_is_by_the_share_of_the_others() -> None:
    everybody = TextKernel.over(text(), torch.ones(ITEMS, dtype=torch.bool), 4.0, 8.0)
    unknown = torch.zeros(ITEMS, dtype=torch.bool).index_fill(0, torch.tensor([3, 5, 8]), True)
    few = TextKernel.over(text(), unknown, 4.0, 8.0)
    assert few.weight == pytest.approx(4.0 * 3 / ITEMS)
    of_two = everybody.predictions(SUPPORT[:1, 1:], MASK[:1, 1:]) * (3 / ITEMS)
    torch.testing.assert_close(few.predictions(SUPPORT[:1], MASK[:1]), of_two)
    assert not few.predictions(SUPPORT[1:], MASK[1:]).any()
