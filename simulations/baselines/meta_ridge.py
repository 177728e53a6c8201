"""Meta-learned rating models: item vectors such that whoever is new is folded in well from his few ratings.

    rating(u, i) = mean + b_i + c . t_i + f_i . w_u,    f_i = [1, W t_i + v_i]

t_i is the public text of item i; b_i and v_i are its own and are hidden in some tasks, so that items without them
are predicted from text. The loss of a user is the squared error on his query set, after w_u was found on his support
set; what is minimized is the sum over users, so every step needs sums of per-user gradients alone.

Two ways to find w_u: in closed form by ridge regression, differentiated through, with a learned penalty (Bertinetto);
or by some gradient steps from zero, not differentiated through (FedRecon, which has no text).

References:
    Bertinetto et al. (2019), Meta-learning with differentiable closed-form solvers, equations 4 to 6.
    Singhal et al. (2021), Federated reconstruction: partially local federated learning, algorithm 1.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from metarec_shared.interactions import Interactions
from metarec_shared.randomness import generator

Inner = Literal["ridge", "steps"]


@dataclass(frozen=True, slots=True, kw_only=True)
class MetaRidgeSettings:
    """How to meta-train.

    Attributes:
        inner: How a user's vector is found.
        width: Of the user's vector, beside its bias.
        text: Whether text is used.
        hidden: Share of tasks in which no item has anything of its own.
        decay: Penalty of what is an item's own, each time it appears.
        epochs: Passes over all users.
        users: Of one step.
        support: Most ratings that are given.
        query: Most ratings that are asked for.
        rate: Adam's, at the beginning; it falls to 0 as a half cosine.
        steps: Gradient steps on a user's vector.
        step_size: Of these, on the sum of squared errors over twice their number.
    """

    inner: Inner = "ridge"
    width: int = 16
    text: bool = True
    hidden: float = 0.3
    decay: float = 0.01
    epochs: int = 25
    users: int = 64
    support: int = 60
    query: int = 40
    rate: float = 0.01
    steps: int = 10
    step_size: float = 0.5


class RatingItems(nn.Module):
    """What is learned: everything about items, and the penalty of a user's vector.

    Args:
        text: Public text vectors.
        mean: Rating that the model starts from.
        width: Of the user's vector, beside its bias.
        seed: Of the parameters.
    """

    text: Tensor

    def __init__(self, text: Float[Tensor, "items text"], mean: float, width: int, seed: int) -> None:
        super().__init__()
        rng = generator(seed, "rating items")
        self.mean = mean
        self.register_buffer("text", text)
        self.own = nn.Parameter(0.1 * torch.from_numpy(rng.standard_normal((len(text), width))).to(text))
        self.bias = nn.Parameter(text.new_zeros(len(text)))
        self.projection = nn.Parameter(0.1 * torch.from_numpy(rng.standard_normal((text.shape[1], width))).to(text))
        self.text_bias = nn.Parameter(text.new_zeros(text.shape[1]))
        self.log_penalty = nn.Parameter(text.new_ones(width + 1))

    def forward(
        self, items: Int[Tensor, "users rows"], heard: Bool[Tensor, "users 1"]
    ) -> tuple[Float[Tensor, "users rows"], Float[Tensor, "users rows width"]]:
        """Return base and features of items; where not ``heard``, without what is their own."""
        text = self.text[items]
        base = self.mean + text @ self.text_bias + self.bias[items] * heard
        features = text @ self.projection + self.own[items] * heard[:, :, None]
        return base, F.pad(features, (1, 0), value=1.0)


def ridge_vectors(
    features: Float[Tensor, "users rows width"],
    targets: Float[Tensor, "users rows"],
    mask: Bool[Tensor, "users rows"],
    penalty: Float[Tensor, " width"],
) -> Float[Tensor, "users width"]:
    """Return each user's ridge regression on the rows in ``mask``, differentiable in everything."""
    masked = features * mask[:, :, None]
    gram = masked.mT @ masked + penalty.diag()
    moment = masked.mT @ (targets * mask)[:, :, None]
    return torch.cholesky_solve(moment, torch.linalg.cholesky(gram))[:, :, 0]


def step_vectors(
    features: Float[Tensor, "users rows width"],
    targets: Float[Tensor, "users rows"],
    mask: Bool[Tensor, "users rows"],
    steps: int,
    step_size: float,
) -> Float[Tensor, "users width"]:
    """Return each user's vector after gradient steps from zero on half the mean squared error of the rows in ``mask``.

    Each step is divided by the mean squared length of the user's features, so that it never diverges at 1 or less.
    """
    masked = features * mask[:, :, None]
    counts = mask.sum(dim=1, keepdim=True)
    lengths = masked.square().sum(dim=(1, 2))[:, None] / counts
    vectors = features.new_zeros(len(features), features.shape[2])
    for _ in range(steps):
        errors = (masked @ vectors[:, :, None])[:, :, 0] - targets * mask
        vectors = vectors - step_size * (masked.mT @ errors[:, :, None])[:, :, 0] / counts / lengths
    return vectors


def user_losses(
    model: RatingItems,
    items: Int[Tensor, "users rows"],
    ratings: Float[Tensor, "users rows"],
    support: Bool[Tensor, "users rows"],
    query: Bool[Tensor, "users rows"],
    heard: Bool[Tensor, "users 1"],
    settings: MetaRidgeSettings,
) -> Float[Tensor, " users"]:
    """Return each user's meta-loss: the mean squared error on the query set, and the decay."""
    base, features = model(items, heard)
    if settings.inner == "ridge":
        vectors = ridge_vectors(features, ratings - base, support, model.log_penalty.exp())
    else:
        with torch.no_grad():
            vectors = step_vectors(features, ratings - base, support, settings.steps, settings.step_size)
    predicted = base + (features @ vectors[:, :, None])[:, :, 0]
    errors: Tensor = ((predicted - ratings).square() * query).sum(dim=1) / query.sum(dim=1)
    own = model.own[items].square().sum(dim=2) + model.bias[items].square()
    penalty: Tensor = settings.decay * (own * (support | query)).mean(dim=1)
    return errors + penalty


def meta_train(
    train: Interactions, text: Float[np.ndarray, "items text"], settings: MetaRidgeSettings, seed: int
) -> RatingItems:
    """Meta-train on every user with two ratings or more; a task is a random cut of a random part of his history."""
    mean = float(train.ratings.mean(dtype=np.float64))
    shown = torch.from_numpy(text).float() * settings.text
    model = RatingItems(shown, mean, settings.width, seed)
    users = np.flatnonzero(train.lengths >= 2)
    optimizer = torch.optim.Adam(model.parameters(), lr=settings.rate)
    cuts = [*range(0, len(users), settings.users), len(users)]
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, settings.epochs * (len(cuts) - 1))
    for epoch in range(settings.epochs):
        rng = generator(seed, "meta ridge", epoch)
        order = rng.permutation(users)
        for start, stop in pairwise(cuts):
            losses = user_losses(model, *_drawn(train, order[start:stop], settings, rng), settings)
            optimizer.zero_grad()
            losses.mean().backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
    return model


def _drawn(
    train: Interactions, users: Int[np.ndarray, " users"], settings: MetaRidgeSettings, rng: np.random.Generator
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Draw a task of each user: items, ratings, support mask, query mask, and whether items' own is heard."""
    width = settings.support + settings.query
    rows = np.zeros((len(users), width), dtype=np.int64)
    sizes = np.zeros((2, len(users), 1), dtype=np.int64)
    for place, user in enumerate(users):
        start, stop = train.offsets[user : user + 2]
        drawn = start + rng.permutation(stop - start)[:width]
        given = int(rng.integers(1, min(settings.support, len(drawn) - 1) + 1))
        sizes[0, place], sizes[1, place] = given, min(given + settings.query, len(drawn))
        rows[place] = np.resize(drawn, width)
    support = np.arange(width) < sizes[0]
    query = ~support & (np.arange(width) < sizes[1])
    heard = rng.random((len(users), 1)) >= settings.hidden
    arrays = train.items[rows].astype(np.int64), train.ratings[rows], support, query, heard
    return tuple(torch.from_numpy(array) for array in arrays)  # type: ignore[return-value]


def described(
    model: RatingItems, known: Bool[np.ndarray, " items"]
) -> tuple[Float[np.ndarray, " items"], Float[np.ndarray, "items width"]]:
    """Return base and features of the catalogue; items that are not ``known`` have text alone."""
    everything = torch.arange(len(model.text))[:, None]
    with torch.no_grad():
        base, features = model(everything, torch.from_numpy(known)[:, None])
    return base[:, 0].double().numpy(), features[:, 0].double().numpy()


@dataclass(frozen=True, slots=True, kw_only=True)
class Reconstruction:
    """FedRecon's prediction: the user's vector comes from gradient steps on the support set.

    Attributes:
        base: Rating expected of every item by a user nobody knows.
        features: What multiplies the user's vector.
        steps: Gradient steps.
        step_size: Of these.
    """

    base: Float[np.ndarray, " items"]
    features: Float[np.ndarray, "items width"]
    steps: int
    step_size: float

    def predict(
        self,
        user: int,
        support: Int[np.ndarray, " support"],
        ratings: Float[np.ndarray, " support"],
        query: Int[np.ndarray, " query"],
    ) -> Float[np.ndarray, " query"]:
        """Return the ratings expected of the query items, not clipped to any scale."""
        features = torch.from_numpy(self.features[support])[None]
        targets = torch.from_numpy(ratings - self.base[support])[None]
        everything = torch.ones_like(targets, dtype=torch.bool)
        vector = step_vectors(features, targets, everything, self.steps, self.step_size)[0].numpy()
        return np.asarray(self.base[query] + self.features[query] @ vector)
