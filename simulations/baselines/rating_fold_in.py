"""Rating models that are linear in a user's vector: whoever is new is folded in by ridge regression on his ratings.

    rating(u, i) = base_i + f_i . w_u,    w_u = argmin_w  sum over rated i of c_i (r_i - base_i - f_i . w)^2 + w' P w

User mean, bias with content, and matrix factorization differ in base and f only. With a kernel the user's ratings have
a second part, a function of its reproducing space, whose squared norm is penalized too (kernel ridge regression).
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from scipy.linalg import solve

from metarec_shared.interactions import Interactions


def ridge(
    features: Float[np.ndarray, "rows width"],
    targets: Float[np.ndarray, " rows"],
    penalty: Float[np.ndarray, " width"],
    weights: Float[np.ndarray, " rows"] | None = None,
) -> Float[np.ndarray, " width"]:
    """Return the ridge regression without intercept of ``targets`` on ``features``.

    Args:
        features: A row an observation.
        targets: What is regressed.
        penalty: Of each squared coefficient, above 0.
        weights: Of each squared error; None: 1.
    """
    weighted = features if weights is None else features * weights[:, None]
    gram = weighted.T @ features
    gram[np.diag_indices_from(gram)] += penalty
    return np.asarray(np.linalg.solve(gram, weighted.T @ targets))


@dataclass(frozen=True, slots=True, kw_only=True)
class FoldIn:
    """A rating model that is linear in the user's vector.

    Attributes:
        base: Rating expected of every item by a user nobody knows.
        features: What multiplies the user's vector.
        penalty: Of the user's squared vector.
        histories: Ratings known from training, by user position; users never seen have none.
        history_weight: Weight of a squared error on those, beside 1 on the support set's.
        kernel: Of the second part; None: there is none.
    """

    base: Float[np.ndarray, " items"]
    features: Float[np.ndarray, "items width"]
    penalty: Float[np.ndarray, " width"]
    histories: Interactions
    history_weight: float = 0.0
    kernel: Float[np.ndarray, "items items"] | None = None

    def predict(
        self,
        user: int,
        support: Int[np.ndarray, " support"],
        ratings: Float[np.ndarray, " support"],
        query: Int[np.ndarray, " query"],
    ) -> Float[np.ndarray, " query"]:
        """Return the ratings expected of the query items, not clipped to any scale."""
        items, targets, weights = support, ratings, None
        start, stop = self.histories.offsets[user : user + 2]
        if self.history_weight and stop > start:
            items = np.concatenate([support, self.histories.items[start:stop]])
            targets = np.concatenate([ratings, self.histories.ratings[start:stop]])
            weights = np.where(np.arange(len(items)) < len(support), 1.0, self.history_weight)
        if self.kernel is not None:
            known, asked = (self.features[rows] / np.sqrt(self.penalty) for rows in (items, query))
            inner = known @ known.T + self.kernel[np.ix_(items, items)]
            inner[np.diag_indices_from(inner)] += 1.0 if weights is None else 1.0 / weights
            dual = solve(inner, targets - self.base[items], assume_a="pos", overwrite_a=True, check_finite=False)
            across = asked @ known.T + self.kernel[np.ix_(query, items)]
            return np.asarray(self.base[query] + across @ dual)
        vector = ridge(self.features[items], targets - self.base[items], self.penalty, weights)
        return np.asarray(self.base[query] + self.features[query] @ vector)
