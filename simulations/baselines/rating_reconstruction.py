"""Federated reconstruction of ratings: item vectors are learned, user vectors are found anew by gradient steps.

    rating(u, i) = mean + b_i + f_i . w_u,    f_i = [1, v_i]

The paper's matrix factorization with biases. A user's w_u is reconstructed from zero on his support set and not
differentiated through; the loss is the squared error on his query set.

References:
    Singhal et al. (2021), Federated reconstruction: partially local federated learning, algorithm 1.
"""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from metarec_shared.interactions import Interactions
from metarec_shared.randomness import generator


@dataclass(frozen=True, slots=True, kw_only=True)
class ReconstructionSettings:
    """How to train.

    Attributes:
        width: Of the user's vector, beside its bias.
        decay: Penalty of item vectors and biases, each time they appear.
        epochs: Passes over all users.
        users: Of one step.
        support: Most ratings that are given.
        query: Most ratings that are asked for.
        rate: Adam's, at the beginning; it falls to 0 as a half cosine.
        steps: Gradient steps on a user's vector.
        step_size: Of these, on the sum of squared errors over twice their number.
    """

    width: int = 16
    decay: float = 0.03
    epochs: int = 25
    users: int = 64
    support: int = 60
    query: int = 40
    rate: float = 0.01
    steps: int = 10
    step_size: float = 0.5


class RatedItems(nn.Module):
    """What is learned: biases and vectors of items.

    Args:
        items: How many.
        mean: Rating that the model starts from.
        width: Of the user's vector, beside its bias.
        seed: Of the parameters.
    """

    def __init__(self, items: int, mean: float, width: int, seed: int) -> None:
        super().__init__()
        rng = generator(seed, "rating items")
        self.mean = mean
        self.own = nn.Parameter(0.1 * torch.from_numpy(rng.standard_normal((items, width))).float())
        self.bias = nn.Parameter(torch.zeros(items))

    def forward(
        self, items: Int[Tensor, "users rows"]
    ) -> tuple[Float[Tensor, "users rows"], Float[Tensor, "users rows width"]]:
        """Return base and features of items."""
        return self.mean + self.bias[items], F.pad(self.own[items], (1, 0), value=1.0)


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
    model: RatedItems,
    items: Int[Tensor, "users rows"],
    ratings: Float[Tensor, "users rows"],
    support: Bool[Tensor, "users rows"],
    query: Bool[Tensor, "users rows"],
    settings: ReconstructionSettings,
) -> Float[Tensor, " users"]:
    """Return each user's loss: the mean squared error on the query set, and the decay."""
    base, features = model(items)
    with torch.no_grad():
        vectors = step_vectors(features, ratings - base, support, settings.steps, settings.step_size)
    predicted = base + (features @ vectors[:, :, None])[:, :, 0]
    errors: Tensor = ((predicted - ratings).square() * query).sum(dim=1) / query.sum(dim=1)
    own = model.own[items].square().sum(dim=2) + model.bias[items].square()
    penalty: Tensor = settings.decay * (own * (support | query)).mean(dim=1)
    return errors + penalty


def reconstruct(train: Interactions, items: int, settings: ReconstructionSettings, seed: int) -> RatedItems:
    """Train on every user with two ratings or more; a task is a random cut of a random part of his history."""
    model = RatedItems(items, float(train.ratings.mean(dtype=np.float64)), settings.width, seed)
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
    train: Interactions, users: Int[np.ndarray, " users"], settings: ReconstructionSettings, rng: np.random.Generator
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Draw a task of each user: items, ratings, support mask and query mask."""
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
    arrays = train.items[rows].astype(np.int64), train.ratings[rows], support, query
    return tuple(torch.from_numpy(array) for array in arrays)  # type: ignore[return-value]


def described(
    model: RatedItems, known: Bool[np.ndarray, " items"]
) -> tuple[Float[np.ndarray, " items"], Float[np.ndarray, "items width"]]:
    """Return base and features of the catalogue; items that are not ``known`` have neither bias nor vector."""
    with torch.no_grad():
        base, features = model(torch.arange(len(model.own))[None])
    vectors = features[0].double().numpy() * np.where(known[:, None], 1.0, np.eye(1, features.shape[2]))
    return np.where(known, base[0].double().numpy(), model.mean), vectors


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
