"""The inner loop on user vectors, in closed form: plain autograd, readable, differentiable as often as anybody likes.

    p_k = softmax(E h_k + b)        g_k = E' (p_k - y)        h_{k+1} = h_k - a_k * g_k

``y`` spreads weight 1 over the support items; ``g_k`` is the gradient of the support loss, the cross-entropy of the
support items over the catalogue. Inner learning rates ``a_k`` may differ by user and dimension. A user without
support items keeps the initialization.

``fused_inner_loop`` computes the same with its derivative by hand; this is what it is tested against, and what
recommends.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from metarec_shared.tasks import TaskBatch

NEVER = -1e9
"""Score of an item that must not be ranked."""


class Items(NamedTuple):
    """What every score needs of the catalogue.

    Attributes:
        vectors: Item vectors E, [items, width].
        bias: Score bias b, [items].
    """

    vectors: Float[Tensor, "items width"]
    bias: Float[Tensor, " items"]


class Support(NamedTuple):
    """The support sets as weights on items.

    Attributes:
        items: Catalogue positions, [users, support]; padding is any position, with weight 0.
        weights: Of each item, 1 in total: 1 / support size, where there are no pseudo-labels; [users, support].
    """

    items: Int[Tensor, "users support"]
    weights: Float[Tensor, "users support"]

    @classmethod
    def of(cls, tasks: TaskBatch, dtype: torch.dtype) -> "Support":
        """Return the support sets of ``tasks``; an item that support dropout hides has weight 0."""
        counted = tasks.counted(dtype)
        size = counted.sum(dim=1, keepdim=True)
        return cls(tasks.support, counted / torch.where(size > 0, size, 1.0))


def scores(h: Float[Tensor, "users width"], items: Items) -> Float[Tensor, "users items"]:
    """Score every item for every user vector."""
    return torch.addmm(items.bias, h, items.vectors.T)


def adapt_user_vectors(
    h: Float[Tensor, "users width"],
    rates: Float[Tensor, "users steps width"],
    items: Items,
    support: Support,
    *,
    second_order: bool,
) -> Float[Tensor, "users width"]:
    """Take the inner loop's steps on user vectors.

    Args:
        h: Where the loop starts.
        rates: Inner learning rates; the middle dimension is the number of steps.
        items: The catalogue.
        support: What to adapt to.
        second_order: Whether to differentiate through the gradients, or take them for constants.
    """
    for step in range(rates.shape[1]):
        gradient = support_gradient(h, items, support)
        h = h - rates[:, step] * (gradient if second_order else gradient.detach())
    return h


def support_gradient(h: Float[Tensor, "users width"], items: Items, support: Support) -> Float[Tensor, "users width"]:
    """Return g(h), the gradient of the support loss in user vectors."""
    target = torch.einsum("us,usd->ud", support.weights, items.vectors[support.items])
    weight = support.weights.sum(dim=1, keepdim=True)
    return (F.softmax(scores(h, items), dim=-1) @ items.vectors) * weight - target


def query_loss(scored: Float[Tensor, "users items"], tasks: TaskBatch) -> Float[Tensor, " users"]:
    """Return each user's mean cross-entropy of the query items over the catalogue without the known items."""
    ranked = scored.masked_fill(tasks.known_mask(scored.shape[1]), NEVER)
    log_probabilities = F.log_softmax(ranked, dim=-1).gather(1, tasks.query)
    return -(log_probabilities * query_weights(tasks, scored.dtype)).sum(dim=1)


def query_weights(tasks: TaskBatch, dtype: torch.dtype) -> Float[Tensor, "users query"]:
    """Return the weight of each query item in its user's loss: 1 / query size, 0 for padding."""
    mask = tasks.query_mask.to(dtype)
    return mask / mask.sum(dim=1, keepdim=True).clamp(min=1.0)
