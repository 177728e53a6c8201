"""The query loss after the inner loop, and its derivative, in one pass over the catalogue's scores.

Autograd would store every [users, items] intermediate of a cohort and read each several times from memory. Here a few
users at a time go forward through the inner loop and straight back, in buffers that stay in the processor's cache. With
``m`` 1 for a user with support items and 0 for one without, and L a user's query loss,

    forward    p_k = softmax(E h_k + b)     e_k = E' p_k     g_k = m e_k - E' y     h_{k+1} = h_k - a_k g_k
    backward   s_K = dL / d(E h_K + b) = q - (query items' weights), q the softmax without known items
               l_K = E' s_K,       and for k = K-1 .. 0, with c_k = dL / de_k = -m a_k l_{k+1}:
               da_k = -l_{k+1} g_k       s_k = p_k (E c_k - <e_k, c_k>)       l_k = l_{k+1} + E' s_k

so that dL/dE is a sum of 2K + 1 outer products a user, p_k with c_k and s_k with h_k, besides the rows of the support
items; dL/db = sum s_k and dL/dh_0 = l_0. A first-order meta-gradient keeps s_K alone. The outer products are what
per-user gradient norms are computed from (``ghost_norms``) without ever forming a user's dL/dE.

References:
    Finn, Abbeel and Levine (2017), Model-agnostic meta-learning, equation 1, differentiated by hand.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from metarec_shared.inner_loop import NEVER, Items, Support, query_weights
from metarec_shared.tasks import TaskBatch

CACHED_SCORES = 1 << 19
"""Scores of one buffer on a CPU, users times items (2 MiB): the 2K + 1 buffers of a chunk stay in cache."""

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
    second_order: bool,
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
        second_order: Whether to differentiate through the inner gradients.
        users_at_once: Size of a chunk; None: what fits the cache.
    """
    users, terms = len(h), 2 * rates.shape[1] + 1
    cached = CACHED_SCORES_CUDA if h.is_cuda else CACHED_SCORES
    size = users_at_once or max(1, cached // len(items.vectors))
    size = -(-users // -(-users // size))  # chunks of one size, as few as fit
    catalogue = _Catalogue(items)
    h, rates = h.to(items.vectors.dtype), rates.to(items.vectors.dtype)
    buffers = h.new_empty(terms, size, len(items.vectors))
    support, known = Support.of(tasks, h.dtype), tasks.known >= 0
    asked = query_weights(tasks, h.dtype)
    for start in range(0, users, size):
        chunk = slice(start, min(start + size, users))
        count = chunk.stop - start
        left = buffers if count == size else torch.empty_like(buffers[:, :count])
        loop = _Loop(left, catalogue, Support(support.items[chunk], support.weights[chunk]))
        final = loop.forward(h[chunk], rates[chunk])
        losses = loop.query(final, tasks.known[chunk], known[chunk], tasks.query[chunk], asked[chunk], weights[chunk])
        gradient, rate_gradient, factors = loop.backward(final, rates[chunk], second_order=second_order)
        yield ChunkGradient(users=chunk, losses=losses, h=gradient, rates=rate_gradient, factors=factors)


def fused_gradient(
    h: Float[Tensor, "users width"],
    rates: Float[Tensor, "users steps width"],
    items: Items,
    tasks: TaskBatch,
    weights: Float[Tensor, " users"],
    *,
    second_order: bool,
) -> FusedGradient:
    """Differentiate the weighted sum of query losses; see ``chunk_gradients``."""
    vectors, bias = torch.zeros_like(items.vectors), torch.zeros_like(items.bias)
    losses, gradient, rate_gradient = bias.new_empty(len(h)), bias.new_empty(h.shape), bias.new_empty(rates.shape)
    support = Support.of(tasks, bias.dtype)
    for part in chunk_gradients(h, rates, items, tasks, weights, second_order=second_order):
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


class _Catalogue:
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


class _Loop:
    """The inner loop of one chunk of users, with what the way back needs of the way forth."""

    def __init__(self, buffers: Tensor, catalogue: "_Catalogue", support: Support) -> None:
        self._left, self._catalogue = buffers, catalogue
        self._rows = support.weights.sum(dim=1, keepdim=True)
        self._target = torch.einsum("us,usd->ud", support.weights, catalogue.items.vectors[support.items])
        self._starts: list[Tensor] = []
        self._expected: list[Tensor] = []
        self._gradients: list[Tensor] = []

    def forward(self, h: Tensor, rates: Tensor) -> Tensor:
        """Take the steps; leave each step's softmax in its buffer."""
        for step in range(rates.shape[1]):
            scored = self._catalogue.scores(h, out=self._left[-1])
            expected = self._catalogue.mean(torch.softmax(scored, dim=-1, out=self._left[step]))
            gradient = expected * self._rows - self._target
            self._starts.append(h)
            self._expected.append(expected)
            self._gradients.append(gradient)
            h = h - rates[:, step] * gradient
        return h

    def query(self, h: Tensor, known: Tensor, real: Tensor, query: Tensor, asked: Tensor, weights: Tensor) -> Tensor:
        """Return the query losses of user vectors; leave the weighted losses' derivative in the last buffer."""
        scratch = self._left[-2] if len(self._left) > 1 else torch.empty_like(self._left[-1])
        scored = self._catalogue.scores(h, out=scratch)
        flat = torch.arange(len(h), device=h.device)[:, None] * scored.shape[1]
        scored.view(-1).index_fill_(0, (flat + known)[real], NEVER)
        probabilities = torch.softmax(scored, dim=-1, out=self._left[-1])
        log_total = scored.amax(dim=1) - probabilities.amax(dim=1).log()
        losses = (asked * (log_total[:, None] - scored.gather(1, query))).sum(dim=1)
        shares = asked * weights[:, None]
        probabilities.mul_(shares.sum(dim=1, keepdim=True)).scatter_add_(1, query, -shares)
        return losses

    def backward(self, h: Tensor, rates: Tensor, *, second_order: bool) -> tuple[Tensor, Tensor, Factors]:
        """Return the gradients in the start and the rates, and the factors of that in the item vectors."""
        steps, rate_gradient, target = rates.shape[1], torch.empty_like(rates), torch.zeros_like(h)
        back = self._catalogue.mean(self._left[-1])
        right = h.new_empty(len(self._left), *h.shape)
        right[-1] = h
        for step in reversed(range(steps)):
            rate_gradient[:, step] = -back * self._gradients[step]
            if not second_order:
                continue
            step_back = -rates[:, step] * back
            target -= step_back
            right[step] = step_back * self._rows
            scored = self._catalogue.products(right[step], out=self._left[steps + step])
            scored.sub_((self._expected[step] * right[step]).sum(dim=1, keepdim=True)).mul_(self._left[step])
            right[steps + step] = self._starts[step]
            back = back + self._catalogue.mean(scored)
        scored_terms = steps + 1 if second_order else 1
        left = self._left if second_order else self._left[-1:]
        return back, rate_gradient, Factors(left=left, right=right[-len(left) :], scored=scored_terms, target=target)
