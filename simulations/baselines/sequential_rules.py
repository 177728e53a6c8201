"""Sequential rules: what comes soon after the last interaction, the simplest baseline that knows the order.

With a window of one interaction it is a first-order Markov chain. Histories without timestamps are read as they are
stored, in an order that means nothing.

References:
    Ludewig and Jannach, "Evaluation of session-based recommendation algorithms", User Modeling and User-Adapted
    Interaction 28, 2018, section 3.1 (SR: sequential rules, linear decay).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from metarec_shared.interactions import Interactions
from simulations.baselines.baseline import Validation, best


@dataclass(frozen=True, slots=True, kw_only=True)
class SequentialRules:
    """Weights of the rules from each item to each other one.

    Attributes:
        rules: Entry (i, j): how often and how soon item j came after item i in a history.
        window: How many interactions later counts.
    """

    rules: Float[Tensor, "items items"]
    window: int

    def scores(
        self, support_items: Int[Tensor, "users support"], support_mask: Bool[Tensor, "users support"]
    ) -> Float[Tensor, "users items"]:
        """Score items by the rules of the last support item; 0 for an empty support set."""
        places = torch.arange(1, support_mask.shape[1] + 1) * support_mask
        last = support_items.masked_fill(~support_mask, 0).gather(1, places.argmax(dim=1, keepdim=True))[:, 0]
        return self.rules[last] * support_mask.any(dim=1)[:, None]


def fit_sequential_rules(train: Interactions, catalogue_size: int, window: int) -> SequentialRules:
    """Fit with a given window; see :func:`tune_sequential_rules`.

    Every pair of an item and one that comes ``d`` interactions later, up to the window, counts ``1 / d``.
    """
    if window < 1:
        raise ValueError(f"the window of sequential rules must be at least 1, got {window}")
    total = sp.csr_array((catalogue_size, catalogue_size), dtype=np.float32)
    ends = np.repeat(train.offsets[1:], train.lengths)
    for distance in range(1, window + 1):
        places = np.flatnonzero(np.arange(len(ends)) + distance < ends)
        weights = np.full(len(places), 1 / distance, dtype=np.float32)
        pairs = (train.items[places], train.items[places + distance])
        total = total + sp.csr_array(sp.coo_array((weights, pairs), shape=total.shape))
    return SequentialRules(rules=torch.from_numpy(total.toarray()), window=window)


def tune_sequential_rules(
    train: Interactions, catalogue_size: int, windows: Sequence[int], validations: Sequence[Validation]
) -> list[SequentialRules]:
    """Fit each window; return the best for each of ``validations``."""
    return best((fit_sequential_rules(train, catalogue_size, window) for window in windows), validations)
