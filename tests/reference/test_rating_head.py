"""The second task, ratings, against a loop over users with plain autograd and torch's own squared error."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from client.history import Item, Profile
from client.recommend import predicted_ratings
from metarec_shared.candidates import Candidates, draw_candidates, sampled_query_losses
from metarec_shared.dataset import RatingScale
from metarec_shared.errors import SettingsError
from metarec_shared.inner_loop import query_loss
from metarec_shared.meta_gradient import (
    clip_factors,
    cohort_meta_gradient,
    per_user_meta_gradients,
    separately_clipped_sum,
)
from metarec_shared.model import BertRecommender
from metarec_shared.settings import AdaptationSettings, Settings
from metarec_shared.tasks import TaskBatch
from tests.small import ITEMS, SMALL_MODEL, small_model, small_tasks

WEIGHT = 3.0
SIZES = replace(SMALL_MODEL, rating_weight=WEIGHT, attribute_buckets=4)
CHOICES = ["user-vector", "head", "lora", "all"]


def rated(users: int) -> TaskBatch:
    """Draw tasks of users who rated their query items, one of them none and one a single item."""
    tasks = small_tasks(users, dtype=torch.float64)
    assert tasks.query_feedback is not None
    assert (tasks.query_feedback > 0).equal(tasks.query_mask)
    tasks.query_feedback[1] = 0
    tasks.query_feedback[2, 1:] = 0
    return replace(tasks, attributes=torch.arange(1, 2 * users + 1).reshape(users, 2))


def predicted(model: BertRecommender, task: TaskBatch, E: Tensor) -> Tensor:
    """Return the ratings of one user's query items, one after the other."""
    assert model.rating_head is not None
    h, layer = model.head(model.encode(task, E))[0], model.rating_head.of_items
    R, a, w, c = layer.weight[:-1], layer.bias[:-1], layer.weight[-1], layer.bias[-1]
    return torch.stack([h @ (R @ E[item] + a) / len(h) ** 0.5 + w @ E[item] + c for item in task.query[0]])


def naive_rating_loss(model: BertRecommender, task: TaskBatch, E: Tensor) -> Tensor:
    assert task.query_feedback is not None
    given = task.query_feedback[0] > 0
    if not given.any():
        return E.sum() * 0.0
    wanted = (task.query_feedback[0][given].double() - 1) / 9
    return WEIGHT * F.mse_loss(predicted(model, task, E)[given], wanted)


def formed(model: BertRecommender, tasks: TaskBatch, id_mask: Tensor) -> tuple[list[dict[str, Tensor]], Tensor]:
    """Return each user's gradient and loss, by plain autograd."""
    gradients, losses = [], []
    for user in range(len(tasks)):
        task = tasks.rows(user, user + 1)
        loss = query_loss(model(task, id_mask), task)[0] + naive_rating_loss(model, task, model.item_vectors(id_mask))
        found = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
        gradients.append(
            {
                name: torch.zeros_like(value) if gradient is None else gradient
                for (name, value), gradient in zip(model.named_parameters(), found, strict=True)
            }
        )
        losses.append(loss.detach())
    return gradients, torch.stack(losses)


@pytest.mark.parametrize("clipped", [False, True])
@pytest.mark.parametrize("choice", CHOICES)
def test_the_meta_gradient_with_ratings_is_that_of_a_naive_loop(choice: str, clipped: bool) -> None:
    inner = AdaptationSettings(parameters=choice, steps=2)  # type: ignore[arg-type]
    model, tasks, id_mask = small_model(inner, sizes=SIZES), rated(7), torch.arange(ITEMS) % 4 > 0
    weights = torch.linspace(0.5, 2, 7, dtype=torch.float64)
    each, losses = formed(model, tasks, id_mask)
    torch.testing.assert_close(per_user_meta_gradients(model, tasks, id_mask).losses, losses)
    squares = torch.stack([sum(value.square().sum() for value in one.values()) for one in each])  # type: ignore[misc]
    clip_norm = float(squares.sqrt().median()) if clipped else 0.0
    factors = weights * (clip_factors(squares, clip_norm) if clipped else 1.0)
    batches = [(tasks.rows(0, 4), weights[:4]), (tasks.rows(4, 7), weights[4:])]
    found = cohort_meta_gradient(model, batches, id_mask, clip_norm=clip_norm)
    torch.testing.assert_close(found.losses, losses)
    if clipped:
        torch.testing.assert_close(found.norms, squares.sqrt())
        alone = [lambda user=user: (tasks.rows(user, user + 1), weights[user : user + 1]) for user in range(7)]
        separately = separately_clipped_sum(model, alone, id_mask, clip_norm=clip_norm)
    for name, gradient in found.gradients.items():
        wanted = sum(factor * one[name] for factor, one in zip(factors, each, strict=True))
        torch.testing.assert_close(gradient, wanted, atol=1e-10, rtol=1e-7, msg=name)
        if clipped:
            torch.testing.assert_close(separately.gradients[name], wanted, atol=1e-10, rtol=1e-7, msg=name)
    assert found.gradients["rating_head.of_items.weight"].abs().max() > 1e-3


def test_ratings_are_learned_beside_a_softmax_over_few_candidates_too() -> None:
    model, tasks, ones = small_model(sizes=SIZES), rated(5), torch.ones(5, dtype=torch.float64)
    candidates: Candidates = draw_candidates(model.item_bias, 12, 0, 1)
    found = cohort_meta_gradient(model, [(tasks, ones)], candidates=candidates)
    E = model.item_vectors()
    encoded = model.encode(tasks, E)
    own = model.adaptation.user_rates(encoded, tasks)
    losses = sampled_query_losses(
        model.head(encoded), own, model.items(E), tasks, candidates, second_order=True
    ) + torch.stack([naive_rating_loss(model, tasks.rows(user, user + 1), E) for user in range(5)])
    expected = torch.autograd.grad(losses.sum(), list(model.parameters()))
    torch.testing.assert_close(found.losses, losses.detach())
    for (name, _), gradient in zip(model.named_parameters(), expected, strict=True):
        torch.testing.assert_close(found.gradients[name], gradient, atol=1e-10, rtol=1e-7, msg=name)


def test_a_model_s_ratings_are_those_of_its_formula() -> None:
    model, tasks = small_model(sizes=SIZES), rated(3)
    E = model.item_vectors()
    found = model.ratings(tasks, E[tasks.query], E)
    assert found is not None
    for user in range(3):
        torch.testing.assert_close(found[user], predicted(model, tasks.rows(user, user + 1), E))
    plain = small_model()
    assert plain.ratings(tasks, E[tasks.query], E) is None
    assert not any(name.startswith("rating_head") for name, _ in plain.named_parameters())


def test_ratings_of_the_query_are_drawn_with_its_items() -> None:
    tasks = small_tasks(6)
    rng = np.random.default_rng(0)
    lengths = rng.integers(3, 14, 6)
    items = [rng.permutation(ITEMS)[:length] for length in lengths]
    ratings = np.split(rng.integers(1, 6, lengths.sum()), np.cumsum(lengths)[:-1])
    assert tasks.query_feedback is not None
    for user in range(6):
        rating_of = dict(zip(items[user].tolist(), ratings[user].tolist(), strict=True))
        asked = tasks.query[user][tasks.query_mask[user]].tolist()
        levels = tasks.query_feedback[user][tasks.query_mask[user]].tolist()
        assert levels == [1 + round((rating_of[item] - 1) / 4 * 9) for item in asked]
    assert int(tasks.query_feedback[~tasks.query_mask].sum()) == 0


def test_recommendations_come_with_the_rating_that_the_user_would_give() -> None:
    model, scale = small_model(sizes=SIZES).float(), RatingScale(low=1.0, high=5.0)
    with torch.no_grad():
        assert model.rating_head is not None
        model.rating_head.of_items.bias[-1] = 0.5
    profile = Profile(items=[Item(position=3, feedback=10), Item(position=8, feedback=1)])
    E = model.item_vectors()
    found, other = predicted_ratings(
        model, E, [profile, Profile(items=[])], [torch.tensor([5, 0, 8]), torch.tensor([4])], scale
    )
    assert len(other) == 1
    batch = TaskBatch(
        support=torch.tensor([[3, 8]]),
        support_mask=torch.ones(1, 2, dtype=torch.bool),
        feedback=torch.tensor([[10, 1]]),
        query=torch.tensor([[5, 0, 8]]),
        query_mask=torch.ones(1, 3, dtype=torch.bool),
        known=torch.tensor([[3, 8]]),
    )
    expected = 1 + 4 * predicted(model, batch, model.item_vectors()).clamp(0, 1)
    assert found == pytest.approx(expected.tolist(), abs=1e-5)
    assert len(set(found)) > 1
    places = torch.tensor([5, 0])
    assert predicted_ratings(model, E, [profile], [places], None) == [[None, None]]
    assert predicted_ratings(small_model().float(), E, [profile], [places], scale) == [[None, None]]


def test_pseudo_labels_that_may_be_rated_items_are_refused_under_clipping() -> None:
    values = {"model.rating-weight": 1.0, "adaptation.pseudo-labels": 3}
    Settings().with_values(values, "test")
    with pytest.raises(SettingsError, match=r"with federation\.clip-norm give either model\.rating-weight or"):
        Settings().with_values({**values, "federation.clip-norm": 1.0}, "test")


@pytest.mark.parametrize("method", ["fomaml", "anil", "reptile", "proximal", "hypernetwork"])
def test_every_meta_learner_s_gradient_with_ratings_and_attributes_is_clipped_as_if_it_were_formed(method: str) -> None:
    inner = AdaptationSettings(method=method, steps=2, perturbation=0.1)  # type: ignore[arg-type]
    model, tasks, weights = small_model(inner, sizes=SIZES), rated(6), torch.linspace(0.5, 2, 6, dtype=torch.float64)
    still = replace(tasks, perturbation=torch.zeros(*tasks.support.shape, SIZES.width, dtype=torch.float64))
    each = per_user_meta_gradients(model, still)
    squares = torch.stack([value.flatten(1).square().sum(dim=1) for value in each.gradients.values()]).sum(dim=0)
    clip_norm = float(squares.sqrt().median())
    found = cohort_meta_gradient(model, [(still, weights)], clip_norm=clip_norm)
    torch.testing.assert_close(found.losses, each.losses)
    torch.testing.assert_close(found.norms, squares.sqrt())
    factors = clip_factors(squares, clip_norm) * weights
    for name, gradient in found.gradients.items():
        wanted = torch.tensordot(factors, each.gradients[name], dims=1)
        torch.testing.assert_close(gradient, wanted, atol=1e-10, rtol=1e-7, msg=name)
    assert cohort_meta_gradient(model, [(tasks, weights)], clip_norm=clip_norm).losses.isfinite().all()  # perturbed
