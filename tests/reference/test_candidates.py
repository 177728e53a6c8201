"""Sampled softmax against the softmax over the whole catalogue."""

import numpy as np
import pytest
import torch

from metarec_shared.candidates import draw_candidates, sampled_query_losses
from metarec_shared.inner_loop import Items, Support, adapt_user_vectors, query_loss, scores
from metarec_shared.meta_gradient import cohort_meta_gradient, summed_meta_gradient
from metarec_shared.settings import AdaptationSettings
from tests.small import ITEMS, small_model, small_tasks


@pytest.mark.parametrize("choice", ["user-vector", "head"])
@pytest.mark.parametrize("method", ["meta-sgd", "maml", "fomaml", "anil"])
def test_with_every_item_a_candidate_it_is_the_whole_softmax(choice: str, method: str) -> None:
    model = small_model(AdaptationSettings(parameters=choice, method=method))  # type: ignore[arg-type]
    tasks, weights = small_tasks(6, dtype=torch.float64), torch.rand(6, dtype=torch.float64)
    everything = draw_candidates(model.item_bias, 1000 * ITEMS, 0, 1)
    assert everything.items.tolist() == list(range(ITEMS))
    id_mask = torch.arange(ITEMS) % 4 > 0
    whole = summed_meta_gradient(model, tasks, weights, id_mask)
    found = cohort_meta_gradient(model, [(tasks, weights)], id_mask, candidates=everything)
    torch.testing.assert_close(found.losses, whole.losses)
    for name, gradient in whole.gradients.items():
        torch.testing.assert_close(found.gradients[name], gradient, msg=name)


def test_the_corrected_sum_over_candidates_is_the_whole_sum_on_average() -> None:
    """A z-test of the mean of 4,000 draws of sum exp(score - log chance), at six standard errors."""
    draw = torch.Generator().manual_seed(0)
    bias, scored = (torch.randn(50, dtype=torch.float64, generator=draw) for _ in range(2))
    sums = []
    for round_number in range(4000):
        found = draw_candidates(bias, 12, 0, round_number)
        sums.append(float((scored[found.items] - found.log_chances).exp().sum()))
    error = np.std(sums) / np.sqrt(len(sums))
    assert abs(np.mean(sums) - float(scored.exp().sum())) < 6 * error


def test_about_as_many_candidates_are_drawn_as_asked_and_popular_ones_more_often() -> None:
    bias = torch.linspace(0, 3, 400)
    counts = torch.zeros(400)
    sizes = []
    for round_number in range(300):
        items = draw_candidates(bias, 60, 0, round_number).items
        sizes.append(len(items))
        counts[items] += 1
    assert np.mean(sizes) == pytest.approx(60, abs=1.5)
    assert counts[-100:].mean() > 1.5 * counts[:100].mean()


def test_a_users_own_items_are_never_hidden_and_never_counted_twice() -> None:
    """Removing a user's own items from the candidates changes nothing, whichever were drawn."""
    draw = torch.Generator().manual_seed(1)
    tasks = small_tasks(4, dtype=torch.float64)
    h = torch.randn(4, 5, dtype=torch.float64, generator=draw)
    rates = torch.rand(4, 2, 5, dtype=torch.float64, generator=draw)
    items = Items(torch.randn(ITEMS, 5, dtype=torch.float64, generator=draw), torch.zeros(ITEMS, dtype=torch.float64))
    everything = draw_candidates(items.bias, 1000 * ITEMS, 0, 1)
    adapted = adapt_user_vectors(h, rates, items, Support.of(tasks, h.dtype), second_order=True)
    expected = query_loss(scores(adapted, items), tasks)
    found = sampled_query_losses(h, rates, items, tasks, everything, second_order=True)
    torch.testing.assert_close(found, expected)
