"""What items are like, told from their public text: kernel ridge regression on text vectors.

References:
    Saunders, Gammerman and Vovk (1998), Ridge regression learning algorithm in dual variables.
    Rasmussen and Williams (2006), Gaussian processes for machine learning, equation 2.25 (the same, with noise).
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float
from scipy.linalg import cho_factor, cho_solve


@dataclass(frozen=True, slots=True, kw_only=True)
class ContentKernel:
    """A regression from text, solved once for any targets.

    Attributes:
        known: Items whose targets are known.
        kernel: Similarity of every item to every known one, exp(-gamma |x - y|^2).
        factor: Cholesky factor of the kernel of known items with the noise on its diagonal, as SciPy has it.
    """

    known: Bool[np.ndarray, " items"]
    kernel: Float[np.ndarray, "items known"]
    factor: tuple[Float[np.ndarray, "known known"], bool]

    def predict(self, targets: Float[np.ndarray, "known width"]) -> Float[np.ndarray, "items width"]:
        """Return what is expected of every item, from the known items' targets; 0 far away from all of them."""
        return np.asarray(self.kernel @ cho_solve(self.factor, targets))


def gaussian_kernel(
    x: Float[np.ndarray, "left text"], y: Float[np.ndarray, "right text"], gamma: float
) -> Float[np.ndarray, "left right"]:
    """Return exp(-gamma |x - y|^2) for every pair of rows."""
    distances = (x**2).sum(axis=1)[:, None] + (y**2).sum(axis=1) - 2 * x @ y.T
    return np.asarray(np.exp(-gamma * np.maximum(distances, 0.0)))


def content_kernel(
    text: Float[np.ndarray, "items text"],
    counts: Float[np.ndarray, " items"],
    *,
    gamma: float,
    noise: float,
    few: float,
) -> ContentKernel:
    """Prepare the regression on the items that have been rated.

    Args:
        text: Public text vectors.
        counts: Ratings of each item; those with none are not known.
        gamma: Of the kernel.
        noise: Variance of a target beside that of the function, for an item with many ratings, above 0.
        few: Ratings at which the variance is twice that.
    """
    known = counts > 0
    kernel = gaussian_kernel(text, text[known], gamma)
    inner = kernel[known]
    inner[np.diag_indices_from(inner)] += noise * (1 + few / counts[known])
    return ContentKernel(known=known, kernel=kernel, factor=cho_factor(inner, lower=True))
