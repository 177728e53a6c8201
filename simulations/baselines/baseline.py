"""What baselines have in common: cold users are folded in by their support sets, the model stays as it was fitted."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from metarec_shared.interactions import Interactions


@runtime_checkable
class Baseline(Protocol):
    """A recommender fitted on meta-training users that scores the catalogue for users it has never seen."""

    def scores(
        self, support_items: Int[Tensor, "users support"], support_mask: Bool[Tensor, "users support"]
    ) -> Float[Tensor, "users items"]:
        """Score every item, higher is better; the caller excludes the support set from the ranking.

        Args:
            support_items: Catalogue positions; padding may hold any number.
            support_mask: False where ``support_items`` is padding.
        """
        ...


BaselineT = TypeVar("BaselineT", bound=Baseline)


Validation = Callable[[Baseline], float]
"""How good a baseline is on validation users, never on test users; higher is better."""


def best(candidates: Iterable[BaselineT], validations: Sequence[Validation]) -> list[BaselineT]:
    """Return, for each of ``validations``, the candidate it puts highest, the first of equals.

    Each candidate is fitted once for all validations, and only those that lead somewhere are held.

    Raises:
        ValueError: There is no candidate, or a validation gave NaN.
    """
    chosen: list[BaselineT | None] = [None] * len(validations)
    highest = [-math.inf] * len(validations)
    for candidate in candidates:
        for position, validate in enumerate(validations):
            value = validate(candidate)
            if math.isnan(value):
                raise ValueError("a validation gave NaN")
            if value > highest[position]:
                chosen[position], highest[position] = candidate, value
    found = [candidate for candidate in chosen if candidate is not None]
    if len(found) < len(validations):
        raise ValueError("the grid holds no candidate to validate")
    return found


def summed_rows(
    weights: Float[Tensor, "items items"],
    support_items: Int[Tensor, "users support"],
    support_mask: Bool[Tensor, "users support"],
) -> Float[Tensor, "users items"]:
    """Return the sum of the rows of ``weights`` that belong to each user's support items."""
    if not support_items.shape[1]:
        return weights.new_zeros(len(support_items), weights.shape[1])
    real = support_mask.to(weights.dtype)
    return F.embedding_bag(support_items.masked_fill(~support_mask, 0), weights, per_sample_weights=real, mode="sum")


def co_occurrences(train: Interactions, catalogue_size: int, chunk: int = 1024) -> Float[Tensor, "items items"]:
    """Return the Gram matrix ``X.T @ X`` of the binary users x items matrix X: users who have both items.

    Sums run over ``chunk`` users at a time, so X is never dense as a whole. Counts are exact in float32 up to 2**24
    users.
    """
    gram = torch.zeros(catalogue_size, catalogue_size)
    for start in range(0, len(train), chunk):
        offsets = torch.tensor(train.offsets[start : start + chunk + 1])
        items = torch.tensor(train.items[offsets[0] : offsets[-1]], dtype=torch.int64)
        users = torch.repeat_interleave(torch.arange(len(offsets) - 1), offsets.diff())
        shape = (len(offsets) - 1, catalogue_size)
        x = torch.sparse_coo_tensor(torch.stack([users, items]), torch.ones(len(items)), shape, check_invariants=True)
        gram += torch.sparse.mm(x.t(), x.to_dense())
    return gram
