"""Ratings as levels of feedback, which is how a model reads them, whatever the scale."""

import numpy as np
from numpy.typing import NDArray

from metarec_shared.dataset import RatingScale

FEEDBACK_LEVELS = 10
"""Ratings are told apart on this many levels of their scale; level 0 means that there is no rating."""


def feedback_levels(ratings: NDArray[np.float32], scale: RatingScale | None) -> NDArray[np.int64]:
    """Return the feedback level of each rating, int64: 0 for NaN, else 1..FEEDBACK_LEVELS evenly over ``scale``."""
    if scale is None or scale.high <= scale.low:
        return np.zeros(ratings.shape, dtype=np.int64)
    position = np.clip((ratings.astype(np.float64) - scale.low) / (scale.high - scale.low), 0.0, 1.0)
    levels = 1.0 + np.rint(position * (FEEDBACK_LEVELS - 1))
    return np.where(np.isnan(ratings) | np.isnan(levels), 0.0, levels).astype(np.int64)
