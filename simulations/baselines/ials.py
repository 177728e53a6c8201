"""iALS: matrix factorization of implicit feedback by alternating least squares; new users are folded in exactly.

    minimize  sum_ui c_ui (p_ui - x_u . y_i)^2 + lambda (sum_u |x_u|^2 + sum_i |y_i|^2)

``p_ui`` is 1 where user u has item i, else 0; the confidence ``c_ui`` is ``confidence`` where it is 1, else 1.

References:
    Hu, Koren and Volinsky, "Collaborative filtering for implicit feedback datasets", ICDM 2008, eq. 3-5.
    Rendle et al., "Revisiting the performance of iALS on item recommendation benchmarks", RecSys 2022.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.sparse import csr_array
from torch import Tensor

from metarec_shared.interactions import Interactions
from metarec_shared.randomness import generator
from simulations.baselines.baseline import Validation, best

_CELLS = 1 << 16
"""Items of histories, padding included, whose factors are looked up together."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ials:
    """Item factors of a factorization; a user's factors are solved for from his support set.

    Attributes:
        item_factors: The paper's Y.
        regularization: The paper's lambda.
        confidence: Weight of an interaction, where the weight of its absence is 1.
    """

    item_factors: Float[Tensor, "items factors"]
    regularization: float
    confidence: float

    def user_factors(
        self, support_items: Int[Tensor, "users support"], support_mask: Bool[Tensor, "users support"]
    ) -> Float[Tensor, "users factors"]:
        """Solve eq. 4 for users with these items."""
        gram = self.item_factors.T @ self.item_factors
        return _solve(self, gram, self.item_factors, support_items.masked_fill(~support_mask, 0), support_mask)

    def scores(
        self, support_items: Int[Tensor, "users support"], support_mask: Bool[Tensor, "users support"]
    ) -> Float[Tensor, "users items"]:
        """Return the predicted preferences ``x_u . y_i``."""
        return self.user_factors(support_items, support_mask) @ self.item_factors.T


def fit_ials(
    train: Interactions,
    catalogue_size: int,
    *,
    factors: int,
    regularization: float,
    confidence: float,
    iterations: int = 15,
    seed: int = 0,
    start: Float[Tensor, "items factors"] | None = None,
) -> Ials:
    """Alternate between users and items.

    Args:
        train: Histories of the meta-training users.
        catalogue_size: Number of items.
        factors: Width of the factors.
        regularization: The paper's lambda, above 0.
        confidence: Of an interaction, above 1.
        iterations: Of both halves.
        seed: Of the first item factors.
        start: The first item factors; None: drawn with a standard deviation of 0.1 / sqrt(factors).

    Raises:
        ValueError: A constant is out of range.
    """
    if regularization <= 0 or confidence <= 1:
        raise ValueError(
            f"iALS wants a regularization above 0 and a confidence above 1, got {regularization} and {confidence}"
        )
    if start is None:
        drawn = generator(seed, "iALS").normal(size=(catalogue_size, factors)) * 0.1 / factors**0.5
        start = torch.from_numpy(drawn).float()
    ones = np.ones(len(train.items), dtype=np.float32)
    by_user = csr_array((ones, train.items, train.offsets), shape=(len(train), catalogue_size))
    by_item = by_user.T.tocsr()
    model = Ials(item_factors=start, regularization=regularization, confidence=confidence)
    items = start
    for _ in range(iterations):
        users = _half(model, by_user, items)
        items = _half(model, by_item, users)
    return Ials(item_factors=items, regularization=regularization, confidence=confidence)


def tune_ials(
    train: Interactions,
    catalogue_size: int,
    factors: int,
    regularization: Sequence[float],
    confidence: Sequence[float],
    validations: Sequence[Validation],
    seed: int,
) -> list[Ials]:
    """Fit each combination; return the best for each of ``validations``."""
    return best(
        (
            fit_ials(train, catalogue_size, factors=factors, regularization=weight, confidence=trust, seed=seed)
            for weight, trust in product(regularization, confidence)
        ),
        validations,
    )


def _half(model: Ials, rows: csr_array, others: Float[Tensor, "others factors"]) -> Float[Tensor, "rows factors"]:
    """Solve for the factors of all rows, given those of the columns."""
    gram = others.T @ others
    found = others.new_zeros(rows.shape[0], others.shape[1])
    for chosen, columns, real in _padded(rows):
        found[chosen] = _solve(model, gram, others, columns, real)
    return found


def _solve(
    model: Ials,
    gram: Float[Tensor, "factors factors"],
    others: Float[Tensor, "others factors"],
    columns: Int[Tensor, "rows columns"],
    real: Bool[Tensor, "rows columns"],
) -> Float[Tensor, "rows factors"]:
    """Return ``(Y'Y + (c - 1) Y_u'Y_u + lambda I)^-1 c Y_u'1`` for each row u, eq. 4."""
    Y = others[columns] * real[:, :, None]
    systems = gram + (model.confidence - 1) * (Y.transpose(1, 2) @ Y)
    systems = systems + model.regularization * torch.eye(others.shape[1], dtype=others.dtype)
    right = model.confidence * Y.sum(dim=1)
    return torch.cholesky_solve(right[:, :, None], torch.linalg.cholesky(systems))[:, :, 0]


def _padded(rows: csr_array) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield rows, their columns and which of those are real, shortest first, so that little is padding."""
    lengths = np.diff(rows.indptr)
    order = np.argsort(lengths, kind="stable")
    start = 0
    while start < len(order):
        stop = start + 1
        while stop < len(order) and (stop + 1 - start) * lengths[order[stop]] <= _CELLS:
            stop += 1
        chosen = order[start:stop]
        width = max(int(lengths[chosen].max()), 1)
        places = rows.indptr[chosen][:, None] + np.arange(width)
        real = np.arange(width) < lengths[chosen][:, None]
        columns = rows.indices[np.minimum(places, max(len(rows.indices) - 1, 0))] if len(rows.indices) else 0 * places
        yield torch.from_numpy(chosen), torch.from_numpy(np.where(real, columns, 0)).long(), torch.from_numpy(real)
        start = stop
