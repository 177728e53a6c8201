"""What baselines have in common: cold users are folded in by their support sets, the model stays as it was fitted."""

import math
from collections.abc import Callable, Iterable
from typing import Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

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


def best(candidates: Iterable[BaselineT], validate: Callable[[Baseline], float]) -> BaselineT:
    """Return the candidate with the highest ``validate``, the first of equals.

    Raises:
        ValueError: There is no candidate, or ``validate`` returns NaN.
    """
    chosen, highest = None, -math.inf
    for candidate in candidates:
        value = validate(candidate)
        if math.isnan(value):
            raise ValueError("validation of a baseline gave NaN")
        if chosen is None or value > highest:
            chosen, highest = candidate, value
    if chosen is None:
        raise ValueError("the grid holds no candidate to validate")
    return chosen


def co_occurrences(train: Interactions, catalogue_size: int, chunk: int = 1024) -> Float[Tensor, "items items"]:
    """Return the Gram matrix ``X.T @ X`` of the binary users x items matrix X: users who have both items.

    Sums run over ``chunk`` users at a time, so X is never dense as a whole. Counts are exact in float32 up to 2**24
    users.
    """
    gram = torch.zeros(catalogue_size, catalogue_size)
    for start in range(0, len(train), chunk):
        offsets = torch.tensor(train.offsets[start : start + chunk + 1])
        items = torch.tensor(train.items[offsets[0] : offsets[-1]])
        users = torch.repeat_interleave(torch.arange(len(offsets) - 1), offsets.diff())
        shape = (len(offsets) - 1, catalogue_size)
        x = torch.sparse_coo_tensor(torch.stack([users, items]), torch.ones(len(items)), shape, check_invariants=True)
        gram += torch.sparse.mm(x.t(), x.to_dense())
    return gram
