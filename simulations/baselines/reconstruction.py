"""Federated reconstruction: item factors are learned by a federation, user factors never leave a device.

In a round every device of the cohort reconstructs its user's factors from zero by gradient steps on its support set,
with item factors fixed, then differentiates the loss of its query set in the item factors with the user's factors
fixed; the server steps along the mean. This is the paper's matrix factorization with its loss changed from squared
error of ratings to ranking: the softmax over the catalogue for reconstruction, and over a query item and sampled
negatives for what is sent.

References:
    Singhal et al., "Federated reconstruction: partially local federated learning", NeurIPS 2021, arXiv 2102.03448,
    algorithm 1 (one local step on the query set, server optimizer Adam).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from metarec_shared.inner_loop import Items, Support, adapt_user_vectors, query_weights, scores
from metarec_shared.interactions import Interactions
from metarec_shared.population import SHORTEST_HISTORY
from metarec_shared.randomness import generator, user_keys
from metarec_shared.settings import TaskSettings
from metarec_shared.tasks import TaskBatch, draw_training_tasks


class Negatives(Protocol):
    """Draws negatives of users from all items but their training items."""

    def __call__(
        self,
        train: Interactions,
        users: NDArray[np.int64],
        keys: NDArray[np.uint64],
        items: int,
        count: int,
        address: tuple[int, int],
    ) -> NDArray[np.int64]:
        """Return catalogue positions, int64 [users, count]."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Reconstruction:
    """Item factors, and how a user's are reconstructed.

    Attributes:
        items: Item factors and biases.
        rate: Learning rate of the reconstruction.
        steps: Its gradient steps.
    """

    items: Items
    rate: float
    steps: int

    def scores(
        self, support_items: Int[Tensor, "users support"], support_mask: Bool[Tensor, "users support"]
    ) -> Float[Tensor, "users items"]:
        """Reconstruct users from their support sets; score the catalogue."""
        weights = support_mask.to(self.items.vectors.dtype)
        weights = weights / weights.sum(dim=1, keepdim=True).clamp(min=1.0)
        support = Support(support_items.masked_fill(~support_mask, 0), weights)
        return scores(self.user_factors(support), self.items)

    def user_factors(self, support: Support) -> Float[Tensor, "users factors"]:
        """Take the gradient steps from zero, algorithm 1's ``g^l``."""
        width = self.items.vectors.shape[1]
        start = self.items.vectors.new_zeros(len(support.items), width)
        rates = start.new_full((len(start), self.steps, width), self.rate)
        return adapt_user_vectors(start, rates, self.items, support, second_order=False)


_TASKS = TaskSettings(support=50, query=50, vary_support=0.5, support_dropout=0.0, feature_dropout=0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReconstructionSettings:
    """Constants of the training.

    Attributes:
        factors: Width of the factors.
        rate: Learning rate of the reconstruction.
        steps: Gradient steps of the reconstruction.
        rounds: Rounds of the federation.
        cohort: Users a round.
        negatives: Negatives a user and round.
        learning_rate: Of the server's Adam.
        weight_decay: Of the server, decoupled.
        tasks: Sizes of support and query sets.
    """

    factors: int = 64
    rate: float = 4.0
    steps: int = 5
    rounds: int = 600
    cohort: int = 128
    negatives: int = 400
    learning_rate: float = 0.01
    weight_decay: float = 0.0
    tasks: TaskSettings = _TASKS


def fit_reconstruction(
    train: Interactions,
    catalogue_size: int,
    settings: ReconstructionSettings,
    negatives: Negatives,
    *,
    every: int,
    seed: int,
) -> Iterator[Reconstruction]:
    """Train, and yield the model after every ``every`` rounds, so that validation users choose when to stop.

    Args:
        train: Histories of the meta-training users.
        catalogue_size: Number of items.
        settings: Constants.
        negatives: Draws each user's negatives from all items but his training items.
        every: Rounds between models.
        seed: Of every draw.
    """
    users = np.flatnonzero((train.lengths >= SHORTEST_HISTORY) & (train.lengths < catalogue_size))
    keys = user_keys(seed, train.user_ids)
    first = generator(seed, "item factors").normal(size=(catalogue_size, settings.factors)) / settings.factors**0.5
    vectors = torch.from_numpy(first).float().requires_grad_()
    popularity = torch.bincount(torch.from_numpy(np.asarray(train.items, dtype=np.int64)), minlength=catalogue_size)
    bias = (1.0 + popularity).log().float().requires_grad_()
    optimizer = torch.optim.AdamW([vectors, bias], lr=settings.learning_rate, weight_decay=settings.weight_decay)
    for number in range(1, settings.rounds + 1):
        size = min(settings.cohort, len(users))
        cohort = np.sort(generator(seed, "reconstruction", number).choice(users, size, replace=False))
        tasks = draw_training_tasks(train, cohort, keys[cohort], None, settings.tasks, 1, (seed, number))
        drawn = negatives(train, cohort, keys[cohort], catalogue_size, settings.negatives, (seed, number))
        items = Items(vectors.detach(), bias.detach())
        model = Reconstruction(items=items, rate=settings.rate, steps=settings.steps)
        h = model.user_factors(Support.of(tasks, vectors.dtype))
        loss = sampled_loss(h, Items(vectors, bias), tasks, torch.from_numpy(drawn)).mean()
        vectors.grad, bias.grad = torch.autograd.grad(loss, [vectors, bias])
        optimizer.step()
        if number % every == 0 or number == settings.rounds:
            kept = Items(vectors.detach().clone(), bias.detach().clone())
            yield Reconstruction(items=kept, rate=settings.rate, steps=settings.steps)


def sampled_loss(
    h: Float[Tensor, "users factors"], items: Items, tasks: TaskBatch, negatives: Int[Tensor, "users negatives"]
) -> Float[Tensor, " users"]:
    """Return each user's mean cross-entropy of a query item among itself and the user's negatives."""
    wanted, rivals = (_scores_of(h, items, places) for places in (tasks.query, negatives))
    above = torch.logsumexp(rivals, dim=1, keepdim=True) - wanted
    return (F.softplus(above) * query_weights(tasks, h.dtype)).sum(dim=1)


def _scores_of(
    h: Float[Tensor, "users factors"], items: Items, places: Int[Tensor, "users places"]
) -> Float[Tensor, "users places"]:
    return torch.einsum("uf,upf->up", h, items.vectors[places]) + items.bias[places]
