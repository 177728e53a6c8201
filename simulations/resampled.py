"""More users than the data has: meta-training users resampled from a generative model that is fitted to them.

The model is a softmax factorization, P(item | user) ~ exp(u . v + b), fitted to the meta-training users by maximum
likelihood with an L2 penalty. A new user takes a fitted user's factors with Gaussian jitter (a kernel density estimate
of the users), his history length, and draws that many items without replacement. Validation and test users stay the
real ones: figures on them say how a model that was trained on many such users does for people. Real users differ in
more ways than a fitted model has, so the figures say what the number of users buys against noise; they are no forecast.

References:
    Silverman (1986), Density estimation for statistics and data analysis, section 6.4 (smoothed bootstrap).
    Efraimidis and Spirakis (2006), Weighted random sampling with a reservoir (the largest Gumbel keys).
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from metarec_shared.dataset import Dataset
from metarec_shared.errors import DataError
from metarec_shared.interactions import Interactions, starts
from metarec_shared.population import Population
from metarec_shared.randomness import generator, user_keys
from metarec_shared.split import Role, roles

FACTORS = 32
_STEPS = 200
_LEARNING_RATE = 0.05
_PENALTY = 2.0
"""Of squared factors."""

JITTER = 0.3
"""Deviation of the jitter over that of the factors."""

_CHUNK = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class UserModel:
    """The fitted model.

    Attributes:
        users: Factors of the users it was fitted to, [users, factors].
        items: Factors of the items, [items, factors].
        popularity: Bias of the items, [items].
        lengths: History lengths of these users, int64 [users].
    """

    users: Float[Tensor, "users factors"]
    items: Float[Tensor, "items factors"]
    popularity: Float[Tensor, " items"]
    lengths: NDArray[np.int64]


def fit_users(train: Interactions, items: int, seed: int, steps: int = _STEPS) -> UserModel:
    """Fit the model to users' histories.

    Args:
        train: Their histories.
        items: Size of the catalogue.
        seed: Of the first factors.
        steps: Steps of Adam, over all users at once.
    """
    owners = np.repeat(np.arange(len(train)), train.lengths)
    counts = torch.zeros(len(train), items)
    counts[torch.from_numpy(owners), torch.from_numpy(np.asarray(train.items, dtype=np.int64))] = 1.0
    lengths = counts.sum(dim=1, keepdim=True)
    rng = generator(seed, "resampled", "factors")
    u, v = (
        torch.from_numpy(0.1 * rng.standard_normal((rows, FACTORS), dtype=np.float32)).requires_grad_()
        for rows in (len(train), items)
    )
    b = torch.log(counts.sum(dim=0) + 1.0).requires_grad_()
    optimizer = torch.optim.Adam([u, v, b], lr=_LEARNING_RATE)
    for _ in range(steps):
        optimizer.zero_grad()
        likelihood = (counts * F.log_softmax(u @ v.T + b, dim=1)).sum()
        penalty = _PENALTY * (u.square().sum() + v.square().sum())
        ((penalty - likelihood) / lengths.sum()).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return UserModel(users=u.detach(), items=v.detach(), popularity=b.detach(), lengths=train.lengths)


def resampled(dataset: Dataset, users: int, seed: int, model: UserModel | None = None) -> Dataset:
    """Return the data set with ``users`` resampled meta-training users in place of its own.

    Args:
        dataset: The real data; validation and test users of ``seed`` stay.
        users: How many.
        seed: The seed of the runs that this is for: it decides who meta-trains.
        model: Fitted already; None: it is fitted here.

    Raises:
        DataError: There is no meta-training user to fit a model to.
    """
    population = Population.of(dataset.interactions, dataset.rating_scale, seed)
    training = population.users(Role.TRAINING)
    if not len(training):
        raise DataError(f"{dataset.name}: no meta-training user to resample")
    train = dataset.interactions.take(training)
    model = model or fit_users(train, len(dataset.catalogue), seed)
    drawn = _draw(model, train, _training_ids(users, seed), seed)
    kept = dataset.interactions.take(np.flatnonzero(population.roles != Role.TRAINING))
    both = Interactions(
        user_ids=np.concatenate([kept.user_ids, drawn.user_ids]),
        offsets=starts(np.concatenate([kept.lengths, drawn.lengths])),
        items=np.concatenate([kept.items, drawn.items]).astype(np.int32),
        ratings=np.concatenate([kept.ratings, drawn.ratings]),
        has_time=kept.has_time,
    )
    return replace(dataset, name=f"{dataset.name} resampled to {users:,}", interactions=both)


def _training_ids(users: int, seed: int) -> NDArray[np.str_]:
    """Return ids of users whose role under ``seed`` is to meta-train."""
    ids: list[NDArray[np.str_]] = []
    found = start = 0
    while found < users:
        some = np.array([f"resampled-{number}" for number in range(start, start + users - found + _CHUNK)])
        some = some[roles(user_keys(seed, some)) == Role.TRAINING]
        ids.append(some)
        found, start = found + len(some), start + users - found + _CHUNK
    return np.concatenate(ids)[:users]


def _draw(model: UserModel, train: Interactions, user_ids: NDArray[np.str_], seed: int) -> Interactions:
    likes = generator(seed, "resampled", "users").integers(len(model.users), size=len(user_ids))
    lengths = np.minimum(model.lengths[likes], len(model.items) - 1)
    offsets = starts(lengths)
    items = np.empty(offsets[-1], dtype=np.int32)
    deviation = JITTER * model.users.std(dim=0).numpy()
    for start in range(0, len(user_ids), _CHUNK):
        rows = slice(start, start + _CHUNK)
        rng = generator(seed, "resampled", "histories", start)
        jitter = deviation * rng.standard_normal((len(likes[rows]), len(deviation)), dtype=np.float32)
        factors = model.users[torch.from_numpy(likes[rows])] + torch.from_numpy(jitter)
        keys = (factors @ model.items.T + model.popularity).numpy()
        exponential = rng.standard_exponential(keys.shape, dtype=np.float32)
        keys -= np.log(np.maximum(exponential, np.finfo(np.float32).tiny))  # Gumbel noise
        longest = int(lengths[rows].max())
        order = np.argpartition(-keys, longest - 1, axis=1)[:, :longest]
        order = np.take_along_axis(order, np.argsort(-np.take_along_axis(keys, order, axis=1), axis=1), axis=1)
        items[offsets[start] : offsets[start + len(order)]] = order[np.arange(longest) < lengths[rows][:, None]]
    return Interactions(
        user_ids=user_ids, offsets=offsets, items=items, ratings=_ratings(train, items, seed), has_time=train.has_time
    )


def _ratings(train: Interactions, items: NDArray[np.int32], seed: int) -> NDArray[np.float32]:
    """Draw a rating for each item from those that it got; an item that got none draws from all."""
    order = np.argsort(train.items, kind="stable")
    sorted_items, ratings = np.asarray(train.items)[order], train.ratings[order]
    first, last = (np.searchsorted(sorted_items, items, side=side) for side in ("left", "right"))
    none = first == last
    first, last = np.where(none, 0, first), np.where(none, len(ratings), last)
    places = first + (generator(seed, "resampled", "ratings").random(len(items)) * (last - first)).astype(np.int64)
    drawn: NDArray[np.float32] = ratings[places]
    return drawn
