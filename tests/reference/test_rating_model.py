"""The rating model: its inner loop, its meta-gradient, per user and clipped, and its tasks, each by another route."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.kernel_ridge import KernelRidge
from sklearn.linear_model import Ridge
from sklearn.metrics.pairwise import rbf_kernel

from metarec_shared.dataset import RatingScale
from metarec_shared.interactions import Interactions
from metarec_shared.meta_gradient import separately_clipped_sum
from metarec_shared.population import Population
from metarec_shared.randomness import user_keys
from metarec_shared.rating_model import (
    RatingModel,
    kernel_ridge_predictions,
    per_user_rating_gradients,
    rating_errors,
    rating_meta_gradient,
    ridge_vectors,
)
from metarec_shared.rating_tasks import RatingTasks, draw_rating_tasks, evaluation_rating_tasks, rated_histories
from metarec_shared.settings import RatingSettings

ITEMS, USERS, ROWS = 12, 3, 7
SETTINGS = RatingSettings(width=2, decay=0.05, support=5, query=4, hidden=0.3, text_decay=0.1)
SCALE = RatingScale(low=1.0, high=5.0)


def tasks() -> RatingTasks:
    rng = torch.Generator().manual_seed(0)
    place, cut = torch.arange(ROWS), torch.tensor([[2], [4], [3]])
    return RatingTasks(
        items=torch.stack([torch.randperm(ITEMS, generator=rng)[:ROWS] for _ in range(USERS)]),
        ratings=torch.randint(1, 6, (USERS, ROWS), generator=rng).double() - 3,
        support=place < cut,
        query=(place >= cut) & (place < torch.tensor([[7], [6], [7]])),
        heard=torch.tensor([True, False, True]),
    )


def model() -> RatingModel:
    rng = torch.Generator().manual_seed(1)
    found = RatingModel(torch.randn(ITEMS, 3, generator=rng), SETTINGS).double()
    with torch.no_grad():
        for parameter in found.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=rng))
    return found


def test_ridge_vectors_equal_scikit_learn() -> None:
    batch, penalty = tasks(), torch.tensor([0.5, 2.0, 1.0], dtype=torch.float64)
    base, features = (part.detach() for part in model().items(batch.items, batch.heard))
    found = ridge_vectors(features, batch.ratings - base, batch.support, penalty)
    for user in range(USERS):
        rows = (features[user] / penalty.sqrt())[batch.support[user]].numpy()
        targets = (batch.ratings - base)[user, batch.support[user]].numpy()
        expected = Ridge(alpha=1.0, fit_intercept=False, tol=1e-12).fit(rows, targets).coef_
        np.testing.assert_allclose(found[user] * penalty.sqrt(), expected, rtol=1e-7)


def test_regressions_with_a_kernel_equal_those_of_scikit_learn() -> None:
    rng = torch.Generator().manual_seed(5)
    batch, penalty = tasks(), torch.tensor([0.5, 2.0, 1.0], dtype=torch.float64)
    base, features = (part.detach() for part in model().items(batch.items, batch.heard))
    hidden = torch.randn(USERS, ROWS, ROWS, generator=rng, dtype=torch.float64)
    targets, kernel = batch.ratings - base, hidden @ hidden.mT
    found = kernel_ridge_predictions(features, targets, batch.support, penalty, kernel)
    for user in range(USERS):  # what has the kernel for its inner products is linear in the rows of ``hidden``
        rows, known = torch.column_stack([features[user] / penalty.sqrt(), hidden[user]]).numpy(), batch.support[user]
        fitted = Ridge(alpha=1.0, fit_intercept=False, solver="svd").fit(rows[known], targets[user, known].numpy())
        np.testing.assert_allclose(found[user], fitted.predict(rows), rtol=1e-7)


def test_without_a_kernel_both_regressions_are_one() -> None:
    batch, penalty = tasks(), torch.tensor([0.5, 2.0, 1.0], dtype=torch.float64)
    base, features = (part.detach() for part in model().items(batch.items, batch.heard))
    vectors = ridge_vectors(features, batch.ratings - base, batch.support, penalty)
    none = torch.zeros(USERS, ROWS, ROWS, dtype=torch.float64)
    found = kernel_ridge_predictions(features, batch.ratings - base, batch.support, penalty, none)
    torch.testing.assert_close(found, (features @ vectors[:, :, None])[:, :, 0])


def test_users_with_a_kernel_are_predicted_as_scikit_learn_does_and_meta_training_goes_without_it() -> None:
    batch, plain = tasks(), model()
    text = plain.text.numpy()
    wider = RatingModel(plain.text.float(), replace(SETTINGS, user_kernel=0.7)).double()
    wider.load_state_dict(plain.state_dict())
    base, features = (part.detach() for part in plain.items(batch.items, batch.heard))
    scaled = features / plain.log_penalty.exp().sqrt().detach()
    gamma = 1 / ((text[:, None] - text[None]) ** 2).sum(axis=2).mean()
    predicted = wider(batch).detach()
    for user in range(USERS):
        known, of = batch.support[user], text[batch.items[user]]
        kernel = (scaled[user] @ scaled[user].T).numpy() + 0.49 * rbf_kernel(of, gamma=gamma)
        process = KernelRidge(alpha=1.0, kernel="precomputed").fit(
            kernel[known][:, known], (batch.ratings - base)[user, known].numpy()
        )
        np.testing.assert_allclose(predicted[user] - base[user], process.predict(kernel[:, known]), rtol=1e-6)
    torch.testing.assert_close(wider.losses(batch), plain.losses(batch))
    assert not torch.allclose(predicted, plain(batch))


def test_a_users_loss_counts_every_rating_that_is_asked_for_alike_and_no_padding() -> None:
    network, batch = model(), tasks()
    found = network.losses(batch)
    base, features = (part.detach().numpy() for part in network.items(batch.items, batch.heard))
    own = torch.column_stack([network.item_bias, network.item_ids]).detach().numpy()
    penalty = network.log_penalty.detach().exp().numpy()
    for user in range(USERS):
        given, asked = (mask[user].numpy() for mask in (batch.support, batch.query))
        left, F = batch.ratings[user].numpy() - base[user], features[user]
        vector = np.linalg.solve(F[given].T @ F[given] + np.diag(penalty), F[given].T @ left[given])
        errors = ((left - F @ vector)[asked] ** 2).sum() / SETTINGS.query
        items = batch.items[user].numpy()[given | asked]
        decay = SETTINGS.decay * (own[items] ** 2).sum() / (SETTINGS.support + SETTINGS.query)
        text = SETTINGS.text_decay * network.text_bias.square().sum().item()
        assert found[user].item() == pytest.approx(errors + decay + text)
    assert not (batch.support | batch.query)[1, -1]  # padding of a user with fewer
    narrow = RatingTasks(**{n: v[1:2] if v.ndim == 1 else v[1:2, :-1] for n, v in batch.tensors().items()})
    torch.testing.assert_close(network.losses(narrow), found[1:2])


def test_the_meta_gradient_equals_numerical_differentiation_of_the_weighted_losses() -> None:
    network, weights = model(), torch.tensor([0.5, 2.0, 1.0], dtype=torch.float64)
    found = rating_meta_gradient(network, [(tasks(), weights)])
    step = 1e-6
    for name, parameter in network.named_parameters():
        flat, gradient = parameter.data.view(-1), found.gradients[name].reshape(-1)
        for place in range(len(flat)):
            before, losses = flat[place].item(), []
            for moved in (before + step, before - step):
                flat[place] = moved
                with torch.no_grad():
                    losses.append((network.losses(tasks()) * weights).sum().item())
            flat[place] = before
            assert gradient[place].item() == pytest.approx((losses[0] - losses[1]) / (2 * step), abs=1e-6), name


def test_per_user_gradients_are_those_of_users_alone_and_do_not_depend_on_the_batch() -> None:
    network, batch = model(), tasks()
    each = per_user_rating_gradients(network, batch)
    for user in range(USERS):
        one = RatingTasks(**{name: value[user : user + 1] for name, value in batch.tensors().items()})
        alone = rating_meta_gradient(network, [(one, torch.ones(1, dtype=torch.float64))])
        for name, gradient in alone.gradients.items():
            torch.testing.assert_close(each.gradients[name][user], gradient, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(each.losses[user : user + 1], alone.losses)


@pytest.mark.parametrize("released", [None, ("projection", "mean")])
def test_clipping_scales_each_user_to_the_norm_and_adds_up_as_users_alone(released: tuple[str, ...] | None) -> None:
    network, batch, norm = model(), tasks(), 0.2
    weights = torch.tensor([0.5, 2.0, 1.0], dtype=torch.float64)
    each = per_user_rating_gradients(network, batch)
    names = list(each.gradients) if released is None else list(released)
    lengths = [torch.cat([each.gradients[n][u].flatten() for n in names]).norm().item() for u in range(USERS)]
    assert max(lengths) > norm
    expected = {
        n: sum(
            w * min(1, norm / s) * each.gradients[n][u] for u, (w, s) in enumerate(zip(weights, lengths, strict=True))
        )
        for n in names
    }
    found = rating_meta_gradient(network, [(batch, weights)], clip_norm=norm, released=released)
    users = [
        lambda u=u: (RatingTasks(**{n: v[u : u + 1] for n, v in batch.tensors().items()}), weights[u : u + 1])
        for u in range(USERS)
    ]
    alone = separately_clipped_sum(
        network, users, clip_norm=norm, released=released,
        gradient_of=lambda task: rating_meta_gradient(
            network, [(task, torch.ones(1, dtype=torch.float64))], released=released
        ),
    )  # fmt: skip
    assert found.gradients.keys() == alone.gradients.keys() == set(names)
    assert found.norms is not None
    np.testing.assert_allclose(found.norms, lengths)
    for name in names:
        torch.testing.assert_close(found.gradients[name], expected[name])
        torch.testing.assert_close(alone.gradients[name], expected[name])


def test_a_user_whose_gradient_is_not_finite_contributes_nothing_where_users_are_clipped() -> None:
    network, batch = model(), tasks()
    ratings = batch.ratings.clone()
    ratings[1] = torch.inf
    weights = torch.ones(USERS, dtype=torch.float64)
    found = rating_meta_gradient(network, [(replace(batch, ratings=ratings), weights)], clip_norm=1.0)
    rest = torch.tensor([0, 2])
    others = RatingTasks(**{name: value[rest] for name, value in batch.tensors().items()})
    expected = rating_meta_gradient(network, [(others, weights[rest])], clip_norm=1.0)
    for name, gradient in expected.gradients.items():
        torch.testing.assert_close(found.gradients[name], gradient)


def test_without_a_vector_of_their_own_users_are_expected_to_rate_as_anybody() -> None:
    network, batch = model(), tasks()
    base, features = network.catalogue()
    heard = replace(batch, heard=torch.ones(USERS, dtype=torch.bool))
    torch.testing.assert_close(network(heard, adapt=False), base[heard.items])
    vectors = ridge_vectors(features[heard.items], heard.ratings - base[heard.items], heard.support,
                            network.log_penalty.exp())  # fmt: skip
    predicted = base[heard.items] + torch.einsum("urk,uk->ur", features[heard.items], vectors)
    torch.testing.assert_close(network(heard), predicted)
    wanted = (predicted.clamp(-2, 2) - heard.ratings).abs()
    mae = torch.stack([wanted[user][heard.query[user]].mean() for user in range(USERS)])
    torch.testing.assert_close(rating_errors(network, heard, SCALE)["mae"], mae.detach())


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_items_without_anything_of_their_own_are_told_by_items_alike_as_scikit_learn_does(share: float) -> None:
    network, silent = model(), [1, 4, 9]
    with torch.no_grad():
        network.item_bias[silent], network.item_ids[silent] = 0.0, 0.0
    before = torch.column_stack([part.reshape(ITEMS, -1) for part in network.catalogue()]).numpy()
    network.tell(share)
    after = torch.column_stack([part.reshape(ITEMS, -1) for part in network.catalogue()]).numpy()
    heard, text = np.setdiff1d(np.arange(ITEMS), silent), network.text.numpy()
    gamma = 1 / ((text[:, None] - text[None]) ** 2).sum(axis=2).mean()
    means = before[heard].mean(axis=0)
    expected = KernelRidge(alpha=1.0, kernel="rbf", gamma=gamma).fit(text[heard], before[heard] - means)
    told = means + expected.predict(text[silent])
    np.testing.assert_allclose(after[silent], (1 - share) * before[silent] + share * told)
    np.testing.assert_array_equal(after[heard], before[heard])


@pytest.mark.parametrize("silent", [[], list(range(ITEMS))])
def test_nobody_is_told_anything_where_all_items_are_rated_or_none(silent: list[int]) -> None:
    network = model()
    with torch.no_grad():
        network.item_bias[silent], network.item_ids[silent] = 0.0, 0.0
    before = [value.clone() for value in network.parameters()]
    network.tell(1.0)
    for value, old in zip(network.parameters(), before, strict=True):
        assert torch.equal(value, old)


def histories() -> Interactions:
    rng = np.random.default_rng(0)
    lengths = np.array([0, 1, 2, 5, 11, 3])
    ratings = rng.integers(1, 6, lengths.sum()).astype(np.float32)
    ratings[[1, 9]] = np.nan  # of users 2 and 4
    return Interactions(
        user_ids=np.array([f"u{user}" for user in range(6)]),
        offsets=np.concatenate([[0], np.cumsum(lengths)]),
        items=np.concatenate([rng.permutation(ITEMS)[:length] for length in lengths]).astype(np.int32),
        ratings=ratings,
        has_time=False,
    )


def test_tasks_cut_what_users_rated_and_are_the_same_whoever_else_is_drawn() -> None:
    data, users = histories(), np.array([4, 0, 1, 2, 3, 5])
    keys = user_keys(0, data.user_ids)
    batch = draw_rating_tasks(data, users, keys[users], SCALE, SETTINGS, (0, 1))
    sizes = []
    for row, user in enumerate(users):
        start, stop = data.offsets[user : user + 2]
        rated = {int(i): r for i, r in zip(data.items[start:stop], data.ratings[start:stop], strict=True) if r == r}
        support, query = (batch.items[row][mask[row]].tolist() for mask in (batch.support, batch.query))
        assert len({*support, *query}) == len(support) + len(query)
        real = batch.support[row] | batch.query[row]
        for item, rating in zip(batch.items[row][real].tolist(), batch.ratings[row][real].tolist(), strict=True):
            assert rating == rated[item] - 3
        assert len(support) <= 5
        assert len(query) <= 4
        assert bool(support) == bool(query) == (len(rated) >= 2)
        sizes.append(len(support))
        alone = draw_rating_tasks(data, users[row : row + 1], keys[user : user + 1], SCALE, SETTINGS, (0, 1))
        assert alone.items[0][alone.support[0]].tolist() == support
        assert alone.heard[0] == batch.heard[row]
    later = [draw_rating_tasks(data, users, keys[users], SCALE, SETTINGS, (0, n)).support.sum(dim=1) for n in range(40)]
    assert set(torch.stack(later)[:, 0].tolist()) == {1, 2, 3, 4, 5}
    assert not torch.isnan(batch.ratings).any()
    empty = draw_rating_tasks(data, np.array([0]), keys[:1], SCALE, SETTINGS, (0, 1))
    assert model().losses(replace(empty, ratings=empty.ratings.double())).tolist() == [0.0]


def test_evaluation_gives_the_support_size_and_asks_for_what_follows() -> None:
    data = histories()
    population = Population.of(data, SCALE, 0)
    batch = evaluation_rating_tasks(population, np.arange(6), 3, 2, SCALE, draws=2)
    assert rated_histories(data, np.arange(6)).lengths.tolist() == [0, 1, 1, 5, 10, 3]
    assert len(batch) == 4  # users 3 and 4, twice
    assert batch.support.sum(dim=1).tolist() == [3, 3, 3, 3]
    assert batch.query.sum(dim=1).tolist() == [2, 2, 2, 2]
    assert not torch.equal(batch.items[1], batch.items[3])
    assert len(evaluation_rating_tasks(population, np.arange(3), 3, 2, SCALE, draws=1)) == 0
