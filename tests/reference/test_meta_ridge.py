"""The meta-learned rating model: its two inner solvers and its meta-gradient, each by another route."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from torch import Tensor

from metarec_shared.interactions import Interactions
from simulations.baselines.meta_ridge import (
    MetaRidgeSettings,
    RatingItems,
    Reconstruction,
    described,
    meta_train,
    ridge_vectors,
    step_vectors,
    user_losses,
)

ITEMS, USERS, ROWS = 12, 3, 7
SETTINGS = MetaRidgeSettings(width=2, decay=0.05)


def tasks() -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    rng = torch.Generator().manual_seed(0)
    items = torch.stack([torch.randperm(ITEMS, generator=rng)[:ROWS] for _ in range(USERS)])
    ratings = torch.randint(1, 6, (USERS, ROWS), generator=rng).double()
    place, cut = torch.arange(ROWS), torch.tensor([[2], [4], [3]])
    query = (place >= cut) & (place < torch.tensor([[7], [6], [7]]))
    return items, ratings, place < cut, query, torch.tensor([[True], [False], [True]])


def model() -> RatingItems:
    text = torch.randn(ITEMS, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = RatingItems(text, 3.0, 2, 0).double()
    with torch.no_grad():
        for parameter in found.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2)))
    return found


def test_ridge_vectors_equal_scikit_learn() -> None:
    items, ratings, support, _, heard = tasks()
    base, features = (part.detach() for part in model()(items, heard))
    penalty = torch.tensor([0.5, 2.0, 1.0], dtype=torch.float64)
    found = ridge_vectors(features, ratings - base, support, penalty)
    for user in range(USERS):
        rows = (features[user] / penalty.sqrt())[support[user]].numpy()
        targets = (ratings - base)[user, support[user]].numpy()
        expected = Ridge(alpha=1.0, fit_intercept=False, tol=1e-12).fit(rows, targets).coef_
        np.testing.assert_allclose(found[user] * penalty.sqrt(), expected, rtol=1e-7)


def test_step_vectors_equal_autograd_descent_and_end_at_least_squares() -> None:
    items, ratings, support, _, heard = tasks()
    base, features = (part.detach() for part in model()(items, heard))
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


def test_meta_gradient_through_the_closed_form_equals_numerical_differentiation() -> None:
    network = model()
    user_losses(network, *tasks(), SETTINGS).sum().backward()
    step = 1e-6
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None
        flat, gradient = parameter.data.view(-1), parameter.grad.reshape(-1)
        for place in range(len(flat)):
            before = flat[place].item()
            losses = []
            for moved in (before + step, before - step):
                flat[place] = moved
                with torch.no_grad():
                    losses.append(user_losses(network, *tasks(), SETTINGS).sum().item())
            flat[place] = before
            assert gradient[place].item() == pytest.approx((losses[0] - losses[1]) / (2 * step), abs=1e-6), name


def test_reconstruction_does_not_differentiate_through_its_steps() -> None:
    network, settings = model(), replace(SETTINGS, inner="steps", decay=0.0)
    items, ratings, support, query, heard = tasks()
    user_losses(network, items, ratings, support, query, heard, settings).sum().backward()
    base, features = network(items, heard)
    vectors = step_vectors(features, ratings - base, support, settings.steps, settings.step_size).detach()
    predicted = base + (features * vectors[:, None]).sum(dim=2)
    fixed = (((predicted - ratings).square() * query).sum(dim=1) / query.sum(dim=1)).sum()
    (expected,) = torch.autograd.grad(fixed, network.own)
    assert network.own.grad is not None
    torch.testing.assert_close(network.own.grad, expected)
    assert network.log_penalty.grad is None


def histories() -> Interactions:
    rng = np.random.default_rng(0)
    users, length = 80, 10
    taste, kind = rng.standard_normal(users), rng.standard_normal(ITEMS)
    items = np.concatenate([rng.permutation(ITEMS)[:length] for _ in range(users)]).astype(np.int32)
    ratings = 3 + np.repeat(taste, length) * kind[items]
    offsets = np.arange(users + 1) * length
    ids = np.array([f"u{user}" for user in range(users)])
    return Interactions(user_ids=ids, offsets=offsets, items=items, ratings=ratings.astype(np.float32), has_time=False)


@pytest.mark.parametrize("inner", ["ridge", "steps"])
def test_meta_training_learns_item_vectors_that_new_users_are_folded_in_by(inner: str) -> None:
    data = histories()
    settings = MetaRidgeSettings(inner=inner, width=2, text=False, hidden=0.0, epochs=80, users=30, decay=0.0)  # type: ignore[arg-type]
    train = data.take(np.arange(60))
    learned = meta_train(train, np.zeros((ITEMS, 3)), settings, 0)
    base, features = described(learned, np.ones(ITEMS, dtype=np.bool_))
    predictor = Reconstruction(base=base, features=features, steps=200, step_size=1.0)
    errors, spread = [], []
    for user in range(60, 80):
        rated, given = data.history(user), data.ratings[data.offsets[user] : data.offsets[user + 1]].astype(np.float64)
        errors.append(np.abs(predictor.predict(user, rated[:6], given[:6], rated[6:]) - given[6:]).mean())
        spread.append(np.abs(given[6:] - given[:6].mean()).mean())
    assert np.mean(errors) < 0.5 * np.mean(spread)


def test_items_nobody_rated_have_text_alone() -> None:
    network = model()
    known = np.arange(ITEMS) < ITEMS - 1
    base, features = described(network, known)
    text = network.text[-1]
    assert base[-1] == pytest.approx(3.0 + (text @ network.text_bias).item())
    np.testing.assert_allclose(features[-1, 1:], (text @ network.projection).detach())
    assert base[0] == pytest.approx(3.0 + (network.text[0] @ network.text_bias + network.bias[0]).item())
