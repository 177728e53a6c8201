"""MeLU: a rating network over embedded content whose decision layers are adapted to each user by gradient steps.

    x_ui = [item content embedded; user content embedded]        r(u, i) = mean + out(relu(W2 relu(W1 x_ui + b1) + b2))
    theta_u = theta - a grad_theta L_support(x; theta)           (once or more; theta are the decision layers)
    min over embeddings and theta of  sum_u L_query(x; theta_u)  (differentiated through the local update)

The local update leaves the embeddings as they are, so that learning stays stable where few ratings are known; the outer
update trains both. What differs from the paper:

- Content is what a data set gives: the words of an item's further text (on MovieLens its genres), the year that ends
  its title, and its public text vector, which stands in for director, actors and age rating. A field is a matrix, and
  its embedding the product with a table, for words the mean of theirs. Users have content only if given; else that
  part of x is empty.
- The mean of all ratings is added to the output, and Adam's rate is larger than in the paper, for fewer epochs. Query
  sets are drawn anew in every epoch. A user with more ratings than the paper allows gives a random part of them.

References:
    Lee, Im, Jang, Cho and Chung (2019), MeLU: Meta-learned user preference estimator for cold-start recommendation,
    algorithm 1, equations 1 to 4, figure 2; https://github.com/hoyeoplee/MeLU.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Tensor, nn

from metarec_shared.catalogue import Catalogue
from metarec_shared.interactions import Interactions
from metarec_shared.item_content import item_words, item_years
from metarec_shared.randomness import generator

Layers = list[tuple[Tensor, Tensor]]
"""Weights [users, in, out] and biases [users, 1, out] of the decision layers; 1 user where they are everybody's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MeLUSettings:
    """How to train.

    Attributes:
        steps: Local updates, 1 or 5 in the paper.
        rate: Of a local update.
        embedding: Width of each content field's embedding.
        hidden: Width of the two decision layers below the output.
        users: Of one outer update.
        query: Ratings that are asked for in a task.
        longest: Most ratings in a task.
        outer_rate: Adam's.
        epochs: Passes over all users.
    """

    steps: int = 5
    rate: float = 0.005
    embedding: int = 32
    hidden: int = 64
    users: int = 32
    query: int = 10
    longest: int = 100
    outer_rate: float = 1e-3
    epochs: int = 6


def item_content(
    catalogue: Catalogue, text: Float[np.ndarray, "items text"]
) -> list[Float[np.ndarray, "items values"]]:
    """Return the content fields of items: words as shares of an item's, the year as one of those there are, the text.

    Args:
        catalogue: The items.
        text: Their public text vectors.
    """
    described, years = item_words(catalogue).astype(np.float64), item_years(catalogue)
    dated = (years[:, None] == np.unique(years[years > 0])).astype(np.float64)
    fields = (described / described.sum(axis=1, keepdims=True).clip(min=1), dated, text - text.mean(axis=0))
    return [field for field in fields if field.any()]


class PreferenceEstimator(nn.Module):
    """The network: content embeddings, two ReLU layers and an output.

    Args:
        items: Content fields of all items.
        users: Content fields of all users; empty: users have none.
        mean: Rating that is added to the output.
        settings: Widths.
        seed: Of the parameters.
    """

    def __init__(
        self,
        items: Sequence[Float[Tensor, "items values"]],
        users: Sequence[Float[Tensor, "users values"]],
        mean: float,
        settings: MeLUSettings,
        seed: int,
    ) -> None:
        super().__init__()
        self.items, self.users, self.mean = list(items), list(users), mean
        rng = generator(seed, "melu")

        def drawn(*shape: int, deviation: float) -> nn.Parameter:
            return nn.Parameter(deviation * torch.from_numpy(rng.standard_normal(shape)).to(items[0]))

        def tables(fields: Sequence[Tensor]) -> nn.ParameterList:
            scales = [float(field.square().sum(dim=1).mean().sqrt().clamp(min=1e-6)) for field in fields]
            pairs = zip(fields, scales, strict=True)
            return nn.ParameterList(drawn(field.shape[1], settings.embedding, deviation=1 / s) for field, s in pairs)

        self.item_tables, self.user_tables = tables(self.items), tables(self.users)
        sizes = [settings.embedding * (len(items) + len(users)), settings.hidden, settings.hidden, 1]
        self.weights = nn.ParameterList(drawn(a, b, deviation=(2 / a) ** 0.5) for a, b in pairwise(sizes))
        self.biases = nn.ParameterList(nn.Parameter(items[0].new_zeros(1, size)) for size in sizes[1:])

    def embedded_items(self) -> Float[Tensor, "items content"]:
        """Return the embedded content of all items."""
        return torch.cat([field @ table for field, table in zip(self.items, self.item_tables, strict=True)], dim=1)

    def inputs(
        self,
        embedded: Float[Tensor, "items content"],
        users: Int[Tensor, " users"],
        items: Int[Tensor, "users rows"],
    ) -> Float[Tensor, "users rows both"]:
        """Return the embedded content of users' items, as ``embedded_items`` returns it, and of the users."""
        parts = [embedded[items]]
        for field, table in zip(self.users, self.user_tables, strict=True):
            parts.append((field[users] @ table)[:, None].expand(-1, items.shape[1], -1))
        return torch.cat(parts, dim=2)

    def decision_layers(self, users: int = 1) -> Layers:
        """Return the decision layers, a copy for each of ``users``."""
        return [
            (weight.expand(users, -1, -1), bias.expand(users, -1, -1))
            for weight, bias in zip(self.weights, self.biases, strict=True)
        ]

    def decide(self, inputs: Float[Tensor, "users rows both"], layers: Layers) -> Float[Tensor, "users rows"]:
        """Return the ratings that decision layers expect."""
        activity = inputs
        for weight, bias in layers[:-1]:
            activity = torch.baddbmm(bias, activity, weight).relu()
        weight, bias = layers[-1]
        return self.mean + torch.baddbmm(bias, activity, weight)[:, :, 0]

    def locally_updated(
        self,
        inputs: Float[Tensor, "users rows both"],
        ratings: Float[Tensor, "users rows"],
        support: Bool[Tensor, "users rows"],
        settings: MeLUSettings,
    ) -> Layers:
        """Return each user's own decision layers after the local updates, differentiable where gradients are on.

        Users share nothing, so the gradient of the summed loss is the stack of every user's own.
        """
        through = torch.is_grad_enabled()
        with torch.enable_grad():
            layers = self.decision_layers(len(inputs))
            flat = [part for layer in layers for part in layer]
            if not through:
                flat = [part.detach().requires_grad_() for part in flat]
            for _ in range(settings.steps):
                layers = list(zip(flat[::2], flat[1::2], strict=True))
                loss = masked_squared_errors(self.decide(inputs, layers), ratings, support).sum()
                gradients = torch.autograd.grad(loss, flat, create_graph=through)
                flat = [part - settings.rate * gradient for part, gradient in zip(flat, gradients, strict=True)]
        return list(zip(flat[::2], flat[1::2], strict=True))


def masked_squared_errors(
    predicted: Float[Tensor, "users rows"], rated: Float[Tensor, "users rows"], mask: Bool[Tensor, "users rows"]
) -> Float[Tensor, " users"]:
    """Return each user's mean squared error over the rows in ``mask``."""
    return ((predicted - rated).square() * mask).sum(dim=1) / mask.sum(dim=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class RatingTasks:
    """Tasks of many users, padded.

    Attributes:
        users: Their positions.
        items: Catalogue positions; padding is any item.
        ratings: Of these items.
        support: Rows that a user is adapted to.
        query: Rows that he is judged by.
    """

    users: Int[Tensor, " users"]
    items: Int[Tensor, "users rows"]
    ratings: Float[Tensor, "users rows"]
    support: Bool[Tensor, "users rows"]
    query: Bool[Tensor, "users rows"]


def query_losses(model: PreferenceEstimator, tasks: RatingTasks, settings: MeLUSettings) -> Float[Tensor, " users"]:
    """Return each user's squared error on the query set after the local updates, differentiable through them."""
    inputs = model.inputs(model.embedded_items(), tasks.users, tasks.items)
    layers = model.locally_updated(inputs, tasks.ratings, tasks.support, settings)
    return masked_squared_errors(model.decide(inputs, layers), tasks.ratings, tasks.query)


def train_melu(
    train: Interactions,
    items: Sequence[Float[np.ndarray, "items values"]],
    settings: MeLUSettings,
    seed: int,
    *,
    users: Sequence[Float[np.ndarray, "users values"]] = (),
    kept: Sequence[int] = (),
) -> dict[int, PreferenceEstimator]:
    """Train on every user with more ratings than a query set has.

    Args:
        train: Ratings.
        items: Content fields of all items.
        settings: How.
        seed: Of the parameters, the tasks and their order.
        users: Content fields of all users.
        kept: Epochs after which the network is kept, from 1; empty: the last.

    Returns:
        The network after each of ``kept``.
    """
    of_items, of_users = ([torch.from_numpy(field).float() for field in fields] for fields in (items, users))
    mean = float(train.ratings.mean(dtype=np.float64))
    model = PreferenceEstimator(of_items, of_users, mean, settings, seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=settings.outer_rate)
    wanted = set(kept) or {settings.epochs}
    found = {}
    for epoch in range(1, max(wanted) + 1):
        for tasks in _epoch(train, settings, generator(seed, "melu", epoch)):
            optimizer.zero_grad()
            query_losses(model, tasks, settings).mean().backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        if epoch in wanted:
            copy = PreferenceEstimator(of_items, of_users, mean, settings, seed)
            copy.load_state_dict(model.state_dict())
            found[epoch] = copy
    return found


def _epoch(train: Interactions, settings: MeLUSettings, rng: np.random.Generator) -> list[RatingTasks]:
    """Draw a task of each user; users of one batch have about as many ratings, the batches are in random order."""
    lengths = np.minimum(train.lengths, settings.longest)
    users = rng.permutation(np.flatnonzero(lengths > settings.query))
    users = users[np.argsort(lengths[users], kind="stable")]
    cuts = [*range(0, len(users), settings.users), len(users)]
    batches = [_tasks(train, users[start:stop], lengths, settings.query, rng) for start, stop in pairwise(cuts)]
    return [batches[place] for place in rng.permutation(len(batches))]


def _tasks(
    train: Interactions,
    users: NDArray[np.int64],
    lengths: NDArray[np.int64],
    query: int,
    rng: np.random.Generator,
) -> RatingTasks:
    longest = int(lengths[users].max())
    rows = np.stack(
        [
            np.resize(start + rng.permutation(stop - start)[:longest], longest)
            for start, stop in zip(train.offsets[users], train.offsets[users + 1], strict=True)
        ]
    )
    place = np.arange(longest)
    return RatingTasks(
        users=torch.from_numpy(users),
        items=torch.from_numpy(train.items[rows].astype(np.int64)),
        ratings=torch.from_numpy(train.ratings[rows]),
        support=torch.from_numpy((place >= query) & (place < lengths[users][:, None])),
        query=torch.from_numpy(np.broadcast_to(place < query, rows.shape).copy()),
    )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MeLUPredictor:
    """A trained network that is updated locally on each support set.

    Attributes:
        model: The network.
        embedded: What its ``embedded_items`` returns.
        settings: Steps and rate of the local update.
    """

    model: PreferenceEstimator
    embedded: Float[Tensor, "items content"]
    settings: MeLUSettings

    @classmethod
    def of(cls, model: PreferenceEstimator, settings: MeLUSettings) -> "MeLUPredictor":
        """Return the predictor of a trained network."""
        return cls(model=model, embedded=model.embedded_items().detach(), settings=settings)

    def predict(
        self,
        user: int,
        support: Int[np.ndarray, " support"],
        ratings: Float[np.ndarray, " support"],
        query: Int[np.ndarray, " query"],
    ) -> Float[np.ndarray, " query"]:
        """Return the ratings expected of the query items, not clipped to any scale."""
        users = torch.tensor([user])
        items = torch.from_numpy(np.concatenate([support, query]).astype(np.int64))[None]
        rated = torch.from_numpy(ratings).to(self.model.biases[0])[None]
        with torch.no_grad():
            inputs = self.model.inputs(self.embedded, users, items)
            known, asked = inputs[:, : len(support)], inputs[:, len(support) :]
            everything = torch.ones_like(rated, dtype=torch.bool)
            layers = self.model.locally_updated(known, rated, everything, self.settings)
            return self.model.decide(asked, layers)[0].double().numpy()
