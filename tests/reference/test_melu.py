"""MeLU against a plain loop over users with copied networks, and on data that it must be able to learn."""

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from metarec_shared.catalogue import Catalogue
from metarec_shared.interactions import Interactions, starts
from simulations.baselines.melu import (
    MeLUPredictor,
    MeLUSettings,
    PreferenceEstimator,
    RatingTasks,
    item_content,
    query_losses,
    train_melu,
)

ITEMS, USERS, ROWS = 9, 3, 7


class Network(nn.Module):
    """The paper's network, for one user at a time."""

    def __init__(self, estimator: PreferenceEstimator) -> None:
        super().__init__()
        self.embeddings = nn.ModuleList()
        for table in [*estimator.item_tables, *estimator.user_tables]:
            self.embeddings.append(nn.Linear(len(table), table.shape[1], bias=False))
        sizes = [weight.shape for weight in estimator.weights]
        self.decision = nn.Sequential()
        for number, (before, after) in enumerate(sizes):
            self.decision.append(nn.Linear(before, after))
            if number < len(sizes) - 1:
                self.decision.append(nn.ReLU())
        self.double()
        with torch.no_grad():
            for layer, table in zip(self.embeddings, [*estimator.item_tables, *estimator.user_tables], strict=True):
                layer.weight.copy_(table.T)
            for layer, weight, bias in zip(self.decision[::2], estimator.weights, estimator.biases, strict=True):
                layer.weight.copy_(weight.T)
                layer.bias.copy_(bias[0])

    def embed(self, contents: list[Tensor]) -> Tensor:
        return torch.cat([layer(content) for layer, content in zip(self.embeddings, contents, strict=True)], dim=1)


def estimator(settings: MeLUSettings, *, with_users: bool) -> PreferenceEstimator:
    rng = torch.Generator().manual_seed(0)
    items = [torch.rand(ITEMS, width, generator=rng, dtype=torch.float64) for width in (4, 3)]
    users = [torch.rand(USERS, 2, generator=rng, dtype=torch.float64)] if with_users else []
    return PreferenceEstimator(items, users, 3.0, settings, 0)


def tasks() -> RatingTasks:
    rng = torch.Generator().manual_seed(1)
    place, cut = torch.arange(ROWS), torch.tensor([[7], [5], [6]])
    return RatingTasks(
        users=torch.tensor([2, 0, 1]),
        items=torch.stack([torch.randperm(ITEMS, generator=rng)[:ROWS] for _ in range(USERS)]),
        ratings=torch.randint(1, 6, (USERS, ROWS), generator=rng).double(),
        support=(place >= 2) & (place < cut),
        query=(place < 2).expand(USERS, -1),
    )


def plain_outer_gradient(model: PreferenceEstimator, batch: RatingTasks, settings: MeLUSettings) -> tuple[Tensor, list]:
    """Return losses and the outer gradient, user by user: a copied network takes the steps.

    The derivative of the steps is carried along by hand: d theta_{k+1} = d theta_k - a H d theta_k, transposed, which
    is a product of a vector with the Hessian at every step, from the last to the first. The embeddings' share in the
    support gradient is the mixed derivative.
    """
    network = Network(model)
    embeddings = list(network.embeddings.parameters())
    total = [torch.zeros_like(p) for p in [*embeddings, *network.decision.parameters()]]
    losses = []
    for row, user in enumerate(batch.users.tolist()):

        def contents(mask: Tensor, row: int = row, user: int = user) -> list[Tensor]:
            items = batch.items[row][mask]
            return [f[items] for f in model.items] + [f[[user] * len(items)] for f in model.users]

        def loss_on(own: nn.Sequential, mask: Tensor, row: int = row) -> Tensor:
            predicted = model.mean + own(network.embed(contents(mask)))[:, 0]
            return nn.functional.mse_loss(predicted, batch.ratings[row][mask])

        path = [copy.deepcopy(network.decision)]
        for _ in range(settings.steps):
            own = copy.deepcopy(path[-1])
            gradients = torch.autograd.grad(loss_on(own, batch.support[row]), list(own.parameters()))
            with torch.no_grad():
                for parameter, gradient in zip(own.parameters(), gradients, strict=True):
                    parameter -= settings.rate * gradient
            path.append(own)
        loss = loss_on(path[-1], batch.query[row])
        losses.append(loss.detach())
        found = torch.autograd.grad(loss, [*embeddings, *path[-1].parameters()])
        of_embeddings, adjoint = list(found[: len(embeddings)]), list(found[len(embeddings) :])
        for own in reversed(path[:-1]):
            parameters = list(own.parameters())
            inner = torch.autograd.grad(loss_on(own, batch.support[row]), parameters, create_graph=True)
            product = sum((g * a).sum() for g, a in zip(inner, adjoint, strict=True))
            back = torch.autograd.grad(product, [*embeddings, *parameters], allow_unused=True)
            back = [
                torch.zeros_like(p) if b is None else b for p, b in zip([*embeddings, *parameters], back, strict=True)
            ]
            of_embeddings = [e - settings.rate * b for e, b in zip(of_embeddings, back, strict=False)]
            adjoint = [a - settings.rate * b for a, b in zip(adjoint, back[len(embeddings) :], strict=True)]
        total = [t + g for t, g in zip(total, [*of_embeddings, *adjoint], strict=True)]
    return torch.stack(losses), total


@pytest.mark.parametrize("with_users", [True, False])
@pytest.mark.parametrize("steps", [1, 5])
def test_the_outer_gradient_equals_that_of_copied_networks_user_by_user(steps: int, *, with_users: bool) -> None:
    settings = MeLUSettings(steps=steps, rate=0.05, embedding=3, hidden=4)
    model = estimator(settings, with_users=with_users)
    losses = query_losses(model, tasks(), settings)
    losses.sum().backward()
    expected, gradients = plain_outer_gradient(model, tasks(), settings)
    torch.testing.assert_close(losses.detach(), expected, rtol=1e-9, atol=0)
    tables = [table.grad.T for table in [*model.item_tables, *model.user_tables]]
    layers = [g for w, b in zip(model.weights, model.biases, strict=True) for g in (w.grad.T, b.grad[0])]
    for found, wanted in zip([*tables, *layers], gradients, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-8)


def test_a_local_update_changes_decision_layers_alone_and_lowers_the_support_loss() -> None:
    settings = MeLUSettings(steps=5, rate=0.01, embedding=3, hidden=4)
    model = estimator(settings, with_users=True)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    none = MeLUSettings(steps=0, embedding=3, hidden=4)
    support, ratings = np.array([1, 4, 6]), np.array([5.0, 1.0, 4.0])
    errors = [
        np.square(MeLUPredictor.of(model, chosen).predict(1, support, ratings, support) - ratings).mean()
        for chosen in (none, settings)
    ]
    assert errors[1] < errors[0]
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)


def test_predictions_are_those_of_the_training_pass() -> None:
    settings = MeLUSettings(steps=2, rate=0.02, embedding=3, hidden=4)
    model, batch = estimator(settings, with_users=True), tasks()
    losses = query_losses(model, batch, settings).detach()
    predictor = MeLUPredictor.of(model, settings)
    for row in range(USERS):
        support, query = (batch.items[row][mask[row]].numpy() for mask in (batch.support, batch.query))
        ratings = batch.ratings[row][batch.support[row]].numpy()
        found = predictor.predict(int(batch.users[row]), support, ratings, query)
        wanted = batch.ratings[row][batch.query[row]].numpy()
        assert np.square(found - wanted).mean() == pytest.approx(losses[row].item(), rel=1e-9)


def test_it_learns_what_users_like_of_content_far_better_than_chance() -> None:
    rng = np.random.default_rng(0)
    content = rng.standard_normal((80, 4))
    taste = rng.standard_normal((300, 4))
    rows = [rng.permutation(80)[: rng.integers(20, 40)] for _ in taste]
    ratings = [3.0 + content[row] @ user for row, user in zip(rows, taste, strict=True)]
    train = Interactions(
        user_ids=np.arange(250).astype(np.str_),
        offsets=starts(np.array([len(row) for row in rows[:250]])),
        items=np.concatenate(rows[:250]).astype(np.int32),
        ratings=np.concatenate(ratings[:250]).astype(np.float32),
        has_time=False,
    )
    settings = MeLUSettings(steps=5, rate=0.02, outer_rate=5e-3, epochs=15)
    predictor = MeLUPredictor.of(train_melu(train, [content], settings, 0)[15], settings)
    errors = []
    for row, rated in zip(rows[250:], ratings[250:], strict=True):
        found = predictor.predict(0, row[10:], rated[10:], row[:10])
        errors.append([np.abs(found - rated[:10]).mean(), np.abs(train.ratings.mean() - rated[:10]).mean()])
    learned, chance = np.mean(errors, axis=0)
    assert learned < 0.75 * chance


def test_content_is_the_words_after_the_title_the_year_and_the_text() -> None:
    titles = tuple(f"Film {place} ({1990 + place // 10})" for place in range(30))
    texts = tuple(f"{title}. {'Drama Comedy' if place % 2 else 'Drama'}" for place, title in enumerate(titles))
    ids = tuple(map(str, range(30)))
    text = np.random.default_rng(0).standard_normal((30, 5))
    words, years, vectors = item_content(Catalogue(item_ids=ids, titles=titles, texts=texts), text)
    np.testing.assert_allclose(words[:2], [[1.0, 0.0], [0.5, 0.5]])
    np.testing.assert_array_equal(years.argmax(axis=1), np.arange(30) // 10)
    assert (years.sum(axis=1) == 1).all()
    np.testing.assert_allclose(vectors, text - text.mean(axis=0))
    plain = tuple("odd" if place < 12 else f"even{place}" for place in range(30))
    fields = item_content(Catalogue(item_ids=ids, titles=plain, texts=plain), text)
    assert [field.shape for field in fields] == [(30, 1), (30, 5)]  # one frequent word of titles, and no year
