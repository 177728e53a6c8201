"""Sampled softmax: a round's losses over some of a large catalogue's items, corrected so that nothing is biased.

Each round draws candidates, item j by a coin of its own with chance pi_j, more often if it is popular; the draw is
public and one for all nodes. Candidates' scores have log pi_j subtracted, so that the expected sum of exp(score) is
that over the whole catalogue. A user's own items (support items in the inner loop, query items in the query loss) are
always among the terms, with chance 1. What is not drawn costs nothing.

References:
    Bengio and Senécal (2008), Adaptive importance sampling to accelerate training of a neural probabilistic language
    model, section III. Yi et al. (2019), Sampling-bias-corrected neural modeling for large corpus item recommendations,
    section 4 (the log-q correction). Mikolov et al. (2013), Distributed representations of words and phrases,
    section 2.2 (popularity to the power of 3/4).
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from metarec_shared.inner_loop import NEVER, Items, Support, query_weights
from metarec_shared.randomness import generator
from metarec_shared.tasks import TaskBatch

POPULARITY_POWER = 0.75
UNIFORM_SHARE = 0.5
"""Share of the candidates drawn without regard to popularity, which bounds the correction of rare items."""


class Candidates(NamedTuple):
    """The items of a round's softmax.

    Attributes:
        items: Catalogue positions, ascending, [candidates].
        log_chances: Logarithm of each one's chance to be drawn, [candidates].
        places: Where each item stands among the candidates, [items]; items that were not drawn stand past the end.
    """

    items: Int[Tensor, " candidates"]
    log_chances: Float[Tensor, " candidates"]
    places: Int[Tensor, " items"]


def draw_candidates(bias: Float[Tensor, " items"], count: int, seed: int, round_number: int) -> Candidates:
    """Draw about ``count`` candidates.

    Args:
        bias: Score bias, the logarithm of popularity up to what was learned since.
        count: Expected number; with as many as the catalogue has, or more, every item whose chance that makes 1.
        seed: The run's seed.
        round_number: The round.
    """
    popular = torch.softmax(POPULARITY_POWER * bias.detach().double().cpu(), dim=0)
    shares = UNIFORM_SHARE / len(bias) + (1 - UNIFORM_SHARE) * popular
    chances = (count * shares).clamp(max=1.0)
    coins = torch.from_numpy(generator(seed, "candidates", round_number).random(len(bias)))
    items = (coins < chances).nonzero()[:, 0]
    places = torch.full((len(bias),), len(items))
    places[items] = torch.arange(len(items))
    return Candidates(items.to(bias.device), chances[items].log().to(bias), places.to(bias.device))


def sampled_query_losses(
    h: Float[Tensor, "users width"],
    rates: Float[Tensor, "users steps width"],
    items: Items,
    tasks: TaskBatch,
    candidates: Candidates,
    *,
    second_order: bool,
) -> Float[Tensor, " users"]:
    """Return each user's query loss after the inner loop, both over candidates; differentiable by autograd.

    Args:
        h: Where the inner loop starts.
        rates: Inner learning rates.
        items: The catalogue.
        tasks: Support and query sets.
        candidates: The round's.
        second_order: Whether to differentiate through the inner gradients.
    """
    support = Support.of(tasks, h.dtype)
    drawn = Items(items.vectors[candidates.items], items.bias[candidates.items] - candidates.log_chances)
    inner = _Columns(items, drawn, candidates, support.items, support.weights > 0, support.weights > 0)
    weight, target = support.weights.sum(dim=1, keepdim=True), inner.target(support.weights)
    for step in range(rates.shape[1]):
        gradient = inner.expected(F.softmax(inner.scores(h), dim=-1)) * weight - target
        h = h - rates[:, step] * (gradient if second_order else gradient.detach())
    shown = torch.cat([tasks.query_mask, tasks.known >= 0], dim=1)
    absent = torch.cat([tasks.query, tasks.known.clamp(min=0)], dim=1)
    outer = _Columns(items, drawn, candidates, tasks.query, tasks.query_mask, shown, absent)
    own = F.log_softmax(outer.scores(h), dim=-1)[:, len(candidates.items) :]
    return -(own * query_weights(tasks, h.dtype)).sum(dim=1)


class _Columns:
    """The terms of one softmax: the round's candidates, without a user's own items, and these."""

    def __init__(
        self,
        items: Items,
        drawn: Items,
        candidates: Candidates,
        own: Tensor,
        real: Tensor,
        leave_out: Tensor,
        absent: Tensor | None = None,
    ) -> None:
        self._drawn, self._count = drawn, len(candidates.items)
        self._own = Items(items.vectors[own], items.bias[own].masked_fill(~real, NEVER))
        absent = own if absent is None else absent
        places = torch.where(leave_out, candidates.places[absent], self._count)
        marks = torch.zeros(len(own), self._count + 1, dtype=torch.bool, device=own.device)
        self._hidden = marks.scatter(1, places, True)[:, :-1]

    def scores(self, h: Tensor) -> Tensor:
        shared = torch.addmm(self._drawn.bias, h, self._drawn.vectors.T).masked_fill(self._hidden, NEVER)
        own = torch.einsum("ud,uod->uo", h, self._own.vectors) + self._own.bias
        return torch.cat([shared, own], dim=1)

    def expected(self, probabilities: Tensor) -> Tensor:
        """Return the mean item vector under a distribution over the terms."""
        shared, own = probabilities[:, : self._count], probabilities[:, self._count :]
        return shared @ self._drawn.vectors + self.target(own)

    def target(self, weights: Tensor) -> Tensor:
        """Return the weighted sum of a user's own items' vectors."""
        return torch.einsum("uo,uod->ud", weights, self._own.vectors)
