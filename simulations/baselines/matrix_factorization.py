"""Matrix factorization of ratings with biases, by alternating ridge regressions.

    rating(u, i) = mean + b_u + b_i + p_u . q_i
    minimize  sum of squared errors + penalty (sum |p_u|^2 + sum |q_i|^2) + bias_penalty (sum b_u^2 + sum b_i^2)

References:
    Koren, Bell and Volinsky (2009), Matrix factorization techniques for recommender systems, equations 4 and 5.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from metarec_shared.interactions import Interactions, starts
from metarec_shared.randomness import generator
from simulations.baselines.rating_fold_in import ridge

BIAS_PENALTY = 3.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Factorization:
    """A fitted factorization; who or what has no rating has zeros.

    Attributes:
        mean: Of all ratings.
        users: Bias, then factors, of each user.
        items: Bias, then factors, of each item.
        penalty: Of the squared bias, then of each squared factor.
    """

    mean: float
    users: Float[np.ndarray, "users width"]
    items: Float[np.ndarray, "items width"]
    penalty: Float[np.ndarray, " width"]


def factorize(
    ratings: Interactions, catalogue_size: int, *, rank: int, penalty: float, sweeps: int, seed: int
) -> Factorization:
    """Fit by ``sweeps`` over all users, then all items.

    Args:
        ratings: Histories with a rating each.
        catalogue_size: Items.
        rank: Factors beside the bias.
        penalty: Of squared factors, above 0.
        sweeps: At least 1.
        seed: Of the factors that the first sweep starts from.
    """
    penalties = np.concatenate([[BIAS_PENALTY], np.full(rank, penalty)])
    by_user = (ratings.offsets, ratings.items.astype(np.int64), ratings.ratings.astype(np.float64))
    owners = np.repeat(np.arange(len(ratings)), ratings.lengths)
    order = np.argsort(by_user[1], kind="stable")
    by_item = (starts(np.bincount(by_user[1], minlength=catalogue_size)), owners[order], by_user[2][order])
    mean = float(by_user[2].mean())
    users = np.zeros((len(ratings), rank + 1))
    items = 0.1 * generator(seed, "factors").standard_normal((catalogue_size, rank + 1))
    items[:, 0] = 0.0
    for _ in range(sweeps):
        users = solved(by_user, items, mean, penalties)
        items = solved(by_item, users, mean, penalties)
    return Factorization(mean=mean, users=users, items=items, penalty=penalties)


Rows = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Ratings by one side, back to back: where each row starts, positions on the other side, ratings."""


def solved(
    rows: Rows, others: Float[np.ndarray, "others width"], mean: float, penalty: Float[np.ndarray, " width"]
) -> Float[np.ndarray, "rows width"]:
    """Return the best bias and factors of one side, the other's being given; zeros for a row without ratings."""
    offsets, positions, ratings = rows
    features = others.copy()
    features[:, 0] = 1.0
    residuals = ratings - mean - others[positions, 0]
    found = np.zeros((len(offsets) - 1, others.shape[1]))
    for row in np.flatnonzero(np.diff(offsets)):
        part = slice(offsets[row], offsets[row + 1])
        found[row] = ridge(features[positions[part]], residuals[part], penalty)
    return found
