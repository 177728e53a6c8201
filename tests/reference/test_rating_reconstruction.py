"""Federated reconstruction of ratings: its steps against autograd, its gradient, and what it learns."""

import numpy as np
import torch
from torch import Tensor

from metarec_shared.interactions import Interactions
from simulations.baselines.rating_reconstruction import (
    RatedItems,
    Reconstruction,
    ReconstructionSettings,
    described,
    reconstruct,
    step_vectors,
    user_losses,
)

ITEMS, USERS, ROWS = 12, 3, 7
SETTINGS = ReconstructionSettings(width=2, decay=0.0)


def tasks() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    rng = torch.Generator().manual_seed(0)
    items = torch.stack([torch.randperm(ITEMS, generator=rng)[:ROWS] for _ in range(USERS)])
    ratings = torch.randint(1, 6, (USERS, ROWS), generator=rng).double()
    place, cut = torch.arange(ROWS), torch.tensor([[2], [4], [3]])
    query = (place >= cut) & (place < torch.tensor([[7], [6], [7]]))
    return items, ratings, place < cut, query


def model() -> RatedItems:
    found = RatedItems(ITEMS, 3.0, 2, 0).double()
    with torch.no_grad():
        for parameter in found.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2)))
    return found


def test_step_vectors_equal_autograd_descent_and_end_at_least_squares() -> None:
    items, ratings, support, _ = tasks()
    base, features = (part.detach() for part in model()(items))
    found = step_vectors(features, ratings - base, support, 3, 0.5)
    for user in range(USERS):
        rows, targets = features[user][support[user]], (ratings - base)[user][support[user]]
        vector = torch.zeros(3, dtype=torch.float64, requires_grad=True)
        for _ in range(3):
            loss = (rows @ vector - targets).square().mean() / 2
            (gradient,) = torch.autograd.grad(loss, vector)
            vector = (vector - 0.5 / rows.square().sum(dim=1).mean() * gradient).detach().requires_grad_()
        torch.testing.assert_close(found[user], vector.detach())
    long = step_vectors(features, ratings - base, support, 4_000, 1.0)
    rows, targets = features[1][support[1]], (ratings - base)[1][support[1]]
    torch.testing.assert_close(long[1], torch.linalg.lstsq(rows, targets[:, None]).solution[:, 0], atol=1e-6, rtol=0)


def test_reconstruction_does_not_differentiate_through_its_steps() -> None:
    network = model()
    items, ratings, support, query = tasks()
    user_losses(network, items, ratings, support, query, SETTINGS).sum().backward()
    base, features = network(items)
    vectors = step_vectors(features, ratings - base, support, SETTINGS.steps, SETTINGS.step_size).detach()
    predicted = base + (features * vectors[:, None]).sum(dim=2)
    fixed = (((predicted - ratings).square() * query).sum(dim=1) / query.sum(dim=1)).sum()
    (expected,) = torch.autograd.grad(fixed, network.own)
    assert network.own.grad is not None
    torch.testing.assert_close(network.own.grad, expected)


def histories() -> Interactions:
    rng = np.random.default_rng(0)
    users, length = 80, 10
    taste, kind = rng.standard_normal(users), rng.standard_normal(ITEMS)
    items = np.concatenate([rng.permutation(ITEMS)[:length] for _ in range(users)]).astype(np.int32)
    ratings = 3 + np.repeat(taste, length) * kind[items]
    offsets = np.arange(users + 1) * length
    ids = np.array([f"u{user}" for user in range(users)])
    return Interactions(user_ids=ids, offsets=offsets, items=items, ratings=ratings.astype(np.float32), has_time=False)


def test_training_learns_item_vectors_that_new_users_are_folded_in_by() -> None:
    data = histories()
    settings = ReconstructionSettings(width=2, epochs=80, users=30, decay=0.0)
    learned = reconstruct(data.take(np.arange(60)), ITEMS, settings, 0)
    base, features = described(learned, np.ones(ITEMS, dtype=np.bool_))
    predictor = Reconstruction(base=base, features=features, steps=200, step_size=1.0)
    errors, spread = [], []
    for user in range(60, 80):
        rated, given = data.history(user), data.ratings[data.offsets[user] : data.offsets[user + 1]].astype(np.float64)
        errors.append(np.abs(predictor.predict(user, rated[:6], given[:6], rated[6:]) - given[6:]).mean())
        spread.append(np.abs(given[6:] - given[:6].mean()).mean())
    assert np.mean(errors) < 0.5 * np.mean(spread)


def test_items_nobody_rated_are_expected_to_get_the_mean_and_the_users_bias() -> None:
    base, features = described(model(), np.arange(ITEMS) < ITEMS - 1)
    assert base[-1] == 3.0
    np.testing.assert_array_equal(features[-1], [1.0, 0.0, 0.0])
    assert base[0] != 3.0
    assert (features[0] != 0).all()
