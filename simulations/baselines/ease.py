"""EASE: an item-to-item regression in closed form, the strongest simple baseline for implicit feedback.

References:
    Steck, "Embarrassingly shallow autoencoders for sparse data", WWW 2019, arXiv 1905.03375.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from metarec_shared.interactions import Interactions
from simulations.baselines.baseline import Validation, best, co_occurrences, summed_rows


@dataclass(frozen=True, slots=True, kw_only=True)
class Ease:
    """Weights of the regression of each item on all others.

    Attributes:
        weights: The paper's B; entry (i, j): what support item i adds to the score of item j; the diagonal is 0.
        regularization: The paper's lambda.
    """

    weights: Float[Tensor, "items items"]
    regularization: float

    def scores(
        self, support_items: Int[Tensor, "users support"], support_mask: Bool[Tensor, "users support"]
    ) -> Float[Tensor, "users items"]:
        """Apply the regression to the support set, eq. 1."""
        return summed_rows(self.weights, support_items, support_mask)


def fit_ease(train: Interactions, catalogue_size: int, regularization: float) -> Ease:
    """Fit with a given regularization; see :func:`tune_ease`."""
    return _ease(co_occurrences(train, catalogue_size), regularization)


def tune_ease(
    gram: Float[Tensor, "items items"], regularization: Sequence[float], validations: Sequence[Validation]
) -> list[Ease]:
    """Fit each ``regularization``; return the best for each of ``validations``.

    Args:
        gram: Co-occurrences in the full histories of the meta-training users.
        regularization: Grid of the paper's lambda, each above 0.
        validations: What each of the returned models is the best for.
    """
    return best((_ease(gram, value) for value in regularization), validations)


def _ease(gram: Float[Tensor, "items items"], regularization: float) -> Ease:
    """Solve eq. 8: ``P = (G + lambda I)^-1``; B is ``-P_ij / P_jj``, and 0 on the diagonal."""
    if regularization <= 0:
        raise ValueError(f"the regularization of EASE must be above 0, got {regularization}")
    regularized = gram + regularization * torch.eye(len(gram))
    precision = torch.cholesky_inverse(torch.linalg.cholesky(regularized))
    weights = (precision / -precision.diagonal()).fill_diagonal_(0).contiguous()  # LAPACK's columns: rows are summed
    return Ease(weights=weights, regularization=regularization)
