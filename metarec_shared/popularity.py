"""How often items are interacted with, where the score bias starts."""

import numpy as np
from numpy.typing import NDArray


def log_popularity(counts: NDArray[np.float64], smoothing: float = 1.0) -> NDArray[np.float32]:
    """Return the logarithm of each item's smoothed share of interactions, float32 [items].

    Args:
        counts: Users who interacted with each item, [items].
        smoothing: Added to each count.
    """
    smoothed = counts + smoothing
    return np.asarray(np.log(smoothed / smoothed.sum()), dtype=np.float32)
