"""Where relevant items stand in a ranking, ties and all.

A query item with ``greater`` candidates above it and ``equal`` others beside it is equally likely, over all orders of
equally scored items, to be at each of the ranks ``greater + 1 .. greater + 1 + equal``.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

COMPARED_ITEMS = 16
"""Most query items whose scores are compared with every candidate's; more are looked up in a sorted list."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranks:
    """Where each user's query items stand among his candidates (every item that is not excluded).

    Attributes:
        greater: Candidates scored higher than the query item.
        equal: Other candidates scored the same, other query items among them.
        mask: False where the row is padding.
        candidates: Candidates of each user.
    """

    greater: Int[Tensor, "users query"]
    equal: Int[Tensor, "users query"]
    mask: Bool[Tensor, "users query"]
    candidates: Int[Tensor, " users"]

    @property
    def relevant(self) -> Int[Tensor, " users"]:
        """Query items of each user, at least 1."""
        return self.mask.sum(dim=1)

    def in_top(self, k: int) -> Float[Tensor, "users query"]:
        """Return the probability of each query item to be in the top k; 0 for padding."""
        tie = self.equal + 1
        chance = (k - self.greater).clamp(min=0).minimum(tie).double() / tie
        return chance.masked_fill(~self.mask, 0)

    def discount(self, k: int) -> Float[Tensor, "users query"]:
        """Return the mean of 1 / log2(1 + rank), 0 below rank k, over each query item's ranks; 0 for padding."""
        sums = discount_sums(k, self.greater.device)
        above, last = self.greater.clamp(max=k), (self.greater + self.equal + 1).clamp(max=k)
        return ((sums[last] - sums[above]) / (self.equal + 1)).masked_fill(~self.mask, 0)


def item_mask(
    items: Int[Tensor, "users width"], mask: Bool[Tensor, "users width"], catalogue_size: int
) -> Bool[Tensor, "users items"]:
    """Mark each user's items in the catalogue; where ``mask`` is False, ``items`` may hold any number.

    Example:
        >>> item_mask(torch.tensor([[2, -1]]), torch.tensor([[True, False]]), 3)
        tensor([[False, False,  True]])
    """
    marks = torch.zeros(len(items), catalogue_size, dtype=torch.int32, device=items.device)
    return marks.scatter_add_(1, items.masked_fill(~mask, 0), mask.int()) > 0


def query_ranks(
    scores: Float[Tensor, "users items"],
    exclude: Bool[Tensor, "users items"],
    query: Int[Tensor, "users query"],
    query_mask: Bool[Tensor, "users query"],
) -> Ranks:
    """Count the candidates above and beside each query item.

    Raises:
        ValueError: A candidate's score is not finite, a query item is excluded, or a user has no query item.
    """
    ranked = scores.masked_fill(exclude, -torch.inf)
    if not (torch.where(exclude, 0.0, scores).sum().isfinite() or (scores.isfinite() | exclude).all()):
        raise ValueError("scores must be finite, got NaN or infinity")
    if not query_mask.any(dim=1).all():
        raise ValueError("every user needs at least one query item; leave users without one out")
    items = query.masked_fill(~query_mask, 0)
    if (exclude.gather(1, items) & query_mask).any():
        raise ValueError("a query item is among the excluded items, so it has no rank")
    wanted = scores.gather(1, items).contiguous()
    greater, not_less = _counts(ranked, wanted)
    return Ranks(
        greater=greater,
        equal=(not_less - greater - 1).clamp(min=0),  # -1 only at padding that points to an excluded item
        mask=query_mask,
        candidates=(~exclude).sum(dim=1),
    )


def _counts(
    ranked: Float[Tensor, "users items"], wanted: Float[Tensor, "users query"]
) -> tuple[Int[Tensor, "users query"], Int[Tensor, "users query"]]:
    """Count the scores above each wanted one, and those not below: by comparing few, by sorting for many."""
    if wanted.shape[1] <= COMPARED_ITEMS:
        marks, ones = torch.empty_like(ranked), ranked.new_ones(ranked.shape[1])
        greater, not_less = (
            torch.stack([compare(ranked, wanted[:, [place]], out=marks) @ ones for place in range(wanted.shape[1])], 1)
            for compare in (torch.gt, torch.ge)
        )
        return greater.long(), not_less.long()
    ascending, items = ranked.sort(dim=1).values, ranked.shape[1]
    return items - torch.searchsorted(ascending, wanted, right=True), items - torch.searchsorted(ascending, wanted)


def discount_sums(k: int, device: torch.device) -> Float[Tensor, " ranks"]:
    """Return the sum of 1 / log2(1 + rank) over the first 0, 1, ..., k ranks.

    Example:
        >>> discount_sums(2, torch.device("cpu"))
        tensor([0.0000, 1.0000, 1.6309], dtype=torch.float64)
    """
    ranks = torch.arange(1, k + 1, dtype=torch.float64, device=device)
    return torch.cat([ranks.new_zeros(1), (1 / torch.log2(1 + ranks)).cumsum(dim=0)])
