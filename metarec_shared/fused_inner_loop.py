"""The query loss after the inner loop, and its derivative, in one pass over the catalogue's scores.

Autograd would store every [users, items] intermediate of a cohort and read each several times from memory. Here a few
users at a time go forward through the inner loop and straight back, in buffers that stay in the processor's cache.
What a meta-learner does on its way, and how that is differentiated by hand, is in its file in ``meta_learning``; here
are the buffers, the products with the catalogue, and the query loss. In every case dL/dE of a user is a short sum of
outer products, which is what per-user gradient norms are computed from (``ghost_norms``) without ever forming it.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from metarec_shared.inner_loop import NEVER, Items, Support, query_weights
from metarec_shared.tasks import TaskBatch

if TYPE_CHECKING:
    from metarec_shared.meta_learning import MetaLearner

CACHED_SCORES = 1 << 19
"""Scores of one buffer on a CPU, users times items (2 MiB): the buffers of a chunk stay in cache."""

CACHED_SCORES_CUDA = 1 << 24
"""The same on a GPU, where few large kernels beat many small ones (64 MiB)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FusedGradient:
    """A weighted sum of users' query losses, differentiated.

    Attributes:
        losses: Query loss of each user, unweighted, [users].
        h: Gradient of each user's weighted loss in where his loop starts, [users, width].
        rates: The same in his inner learning rates, [users, steps, width].
        vectors: Gradient of the weighted sum in the item vectors, [items, width].
        bias: The same in the score bias, [items].
    """

    losses: Tensor
    h: Tensor
    rates: Tensor
    vectors: Tensor
    bias: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Factors:
    """A chunk of users' gradients in the item vectors, as factors: dL_u/dE = sum_r left[r, u] x right[r, u] + rows.

    Attributes:
        left: [terms, users, items]; its last ``scored`` terms are derivatives of scores.
        right: [terms, users, width].
        scored: How many terms sum up to a user's gradient in the score bias.
        target: Derivative in the support items' weighted vector E' y, [users, width].
    """

    left: Tensor
    right: Tensor
    scored: int
    target: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkGradient:
    """What one chunk of users contributes; ``users`` says which of the batch they are."""

    users: slice
    losses: Tensor
    h: Tensor
    rates: Tensor
    factors: Factors


def chunk_gradients(
    h: Float[Tensor, "users width"],
    rates: Float[Tensor, "users steps width"],
    items: Items,
    tasks: TaskBatch,
    weights: Float[Tensor, " users"],
    *,
    learner: "MetaLearner",
    support: Support | None = None,
    users_at_once: int | None = None,
) -> Iterator[ChunkGradient]:
    """Differentiate each user's weighted query loss, a chunk of users at a time.

    The factors of a chunk lie in buffers that the next chunk overwrites.

    Args:
        h: Where the inner loop starts.
        rates: Inner learning rates.
        items: The catalogue.
        tasks: Support and query sets.
        weights: Weight of each user's loss.
        learner: How users adapt, and what is differentiated.
        support: What they adapt to; None: the tasks' support sets.
        users_at_once: Size of a chunk; None: what fits the cache.
    """
    users, terms = len(h), learner.terms(rates.shape[1])
    cached = CACHED_SCORES_CUDA if h.is_cuda else CACHED_SCORES
    size = users_at_once or max(1, cached // len(items.vectors))
    size = -(-users // -(-users // size))  # chunks of one size, as few as fit
    catalogue = Catalogue(items)
    h, rates = h.to(items.vectors.dtype), rates.to(items.vectors.dtype)
    buffers = h.new_empty(terms, size, len(items.vectors))
    support, known = support or Support.of(tasks, h.dtype), tasks.known >= 0
    asked = query_weights(tasks, h.dtype)
    for start in range(0, users, size):
        chunk = slice(start, min(start + size, users))
        count = chunk.stop - start
        left = buffers if count == size else torch.empty_like(buffers[:, :count])
        part = Chunk(left, catalogue, Support(support.items[chunk], support.weights[chunk]), weights[chunk])
        final = learner.forward(part, h[chunk], rates[chunk])
        losses = part.query(final, tasks.known[chunk], known[chunk], tasks.query[chunk], asked[chunk])
        back = learner.backward(part, final, rates[chunk])
        yield ChunkGradient(users=chunk, losses=losses, h=back.h, rates=back.rates, factors=back.factors)


def fused_gradient(
    h: Float[Tensor, "users width"],
    rates: Float[Tensor, "users steps width"],
    items: Items,
    tasks: TaskBatch,
    weights: Float[Tensor, " users"],
    *,
    learner: "MetaLearner",
    support: Support | None = None,
) -> FusedGradient:
    """Differentiate the weighted sum of query losses; see ``chunk_gradients``."""
    vectors, bias = torch.zeros_like(items.vectors), torch.zeros_like(items.bias)
    losses, gradient, rate_gradient = bias.new_empty(len(h)), bias.new_empty(h.shape), bias.new_empty(rates.shape)
    support = support or Support.of(tasks, bias.dtype)
    for part in chunk_gradients(h, rates, items, tasks, weights, learner=learner, support=support):
        losses[part.users], gradient[part.users], rate_gradient[part.users] = part.losses, part.h, part.rates
        add_outer_products(vectors, bias, part.factors, Support(support.items[part.users], support.weights[part.users]))
    return FusedGradient(losses=losses, h=gradient, rates=rate_gradient, vectors=vectors, bias=bias)


def add_outer_products(vectors: Tensor, bias: Tensor, factors: Factors, support: Support) -> None:
    """Add a chunk's gradients in item vectors and score bias, summed over its users, to ``vectors`` and ``bias``."""
    add_product(vectors, factors.left.flatten(0, 1).T, factors.right.flatten(0, 1))
    scored = factors.left[-factors.scored :].flatten(0, 1)
    bias.addmv_(scored.T, scored.new_ones(len(scored)))
    rows = support.weights[:, :, None] * factors.target[:, None]
    vectors.index_add_(0, support.items.flatten(), rows.flatten(0, 1))


def add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Add a matrix product to ``total``, computed in the numbers that autocast asks for."""
    fast = _autocast_dtype(total.device)
    if fast is None:
        total.addmm_(left, right)
    else:
        total.add_(left.to(fast) @ right.to(fast))


def _autocast_dtype(device: torch.device) -> torch.dtype | None:
    return torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else None


class Catalogue:
    """The three products with the item vectors, in the numbers that autocast asks for; softmax and sums stay exact."""

    def __init__(self, items: Items) -> None:
        self.items = items
        fast = _autocast_dtype(items.vectors.device) or items.vectors.dtype
        self._vectors = items.vectors.to(fast)
        self._columns = torch.cat([items.vectors, items.bias[:, None]], dim=1).T.to(fast)

    def scores(self, h: Tensor, out: Tensor) -> Tensor:
        """Return E h + b; the bias is one more column, which is cheaper than adding it."""
        return self._multiply(torch.cat([h, h.new_ones(len(h), 1)], dim=1), self._columns, out)

    def products(self, directions: Tensor, out: Tensor) -> Tensor:
        """Return E c."""
        return self._multiply(directions, self._vectors.T, out)

    def mean(self, weights: Tensor) -> Tensor:
        """Return E' p."""
        return (weights.to(self._vectors.dtype) @ self._vectors).to(weights.dtype)

    def _multiply(self, left: Tensor, right: Tensor, out: Tensor) -> Tensor:
        if right.dtype == out.dtype:
            return torch.mm(left, right, out=out)
        return out.copy_(left.to(right.dtype) @ right)


class Visit(NamedTuple):
    """A place of user vectors at which the support loss was looked at.

    Attributes:
        h: The user vectors, [users, width].
        softmax: Chances of all items there, p, [users, items].
        expected: The mean item vector under them, E' p, [users, width].
        gradient: Of the support loss, g, [users, width].
    """

    h: Float[Tensor, "users width"]
    softmax: Float[Tensor, "users items"]
    expected: Float[Tensor, "users width"]
    gradient: Float[Tensor, "users width"]


class Chunk:
    """A chunk of users on their way through an inner loop and back.

    Attributes:
        left: Buffers, [terms, users, items]; the last two are written by every visit and by ``query``.
        catalogue: Products with the item vectors.
        support: What users adapt to.
        weights: Of the users' losses, [users].
        rows: m, 1 for users with support items, else 0, [users, 1].
        visits: In order.
    """

    def __init__(
        self,
        buffers: Float[Tensor, "terms users items"],
        catalogue: Catalogue,
        support: Support,
        weights: Float[Tensor, " users"],
    ) -> None:
        self.left, self.catalogue, self.support, self.weights = buffers, catalogue, support, weights
        self.rows = support.weights.sum(dim=1, keepdim=True)
        self.visits: list[Visit] = []
        self._target = torch.einsum("us,usd->ud", support.weights, catalogue.items.vectors[support.items])

    def visit(self, h: Float[Tensor, "users width"], out: Float[Tensor, "users items"]) -> Visit:
        """Look at the support loss at ``h``; its softmax is left in ``out``, one of the buffers but the last."""
        softmax = torch.softmax(self.catalogue.scores(h, out=self.left[-1]), dim=-1, out=out)
        expected = self.catalogue.mean(softmax)
        self.visits.append(Visit(h, softmax, expected, expected * self.rows - self._target))
        return self.visits[-1]

    def hessian_product(
        self, visit: Visit, c: Float[Tensor, "users width"], out: Float[Tensor, "users items"]
    ) -> Float[Tensor, "users width"]:
        """Return E' s for s = p (E c - <E' p, c>), which is left in ``out``: the support loss's Hessian times c."""
        scored = self.catalogue.products(c, out=out)
        scored.sub_((visit.expected * c).sum(dim=1, keepdim=True)).mul_(visit.softmax)
        return self.catalogue.mean(scored)

    def query(self, h: Tensor, known: Tensor, real: Tensor, query: Tensor, asked: Tensor) -> Tensor:
        """Return the query losses of user vectors; leave the weighted losses' derivative in the last buffer."""
        scratch = self.left[-2] if len(self.left) > 1 else torch.empty_like(self.left[-1])
        scored = self.catalogue.scores(h, out=scratch)
        flat = torch.arange(len(h), device=h.device)[:, None] * scored.shape[1]
        scored.view(-1).index_fill_(0, (flat + known)[real], NEVER)
        probabilities = torch.softmax(scored, dim=-1, out=self.left[-1])
        log_total = scored.amax(dim=1) - probabilities.amax(dim=1).log()
        losses = (asked * (log_total[:, None] - scored.gather(1, query))).sum(dim=1)
        shares = asked * self.weights[:, None]
        probabilities.mul_(shares.sum(dim=1, keepdim=True)).scatter_add_(1, query, -shares)
        return losses
