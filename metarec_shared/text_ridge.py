"""What an item's text says of what is known of other items: ridge regression on text vectors.

    y_j = c + t_j C,     C = (T'T + penalty I)^-1 T'Y,     T and Y centred on their means, with c to match

The penalty is the one of least leave-one-out error, which needs no refitting: without item j its residual r_j becomes
r_j / (1 - h_j), where h_j is its leverage, 1/n more than t_j (T'T + penalty I)^-1 t_j'. Where the text says nothing a
large penalty wins, and predictions are near the mean.

References:
    Allen (1974), The relationship between variable selection and data augmentation and a method for prediction (PRESS).
    Golub, Heath, Wahba (1979), Generalized cross-validation as a method for choosing a good ridge parameter, section 1.
    Gantner et al. (2010), Learning attribute-to-feature mappings for cold-start recommendations, section III.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

PENALTIES = tuple(2.0**power for power in range(-8, 13))
"""Over the mean eigenvalue of T'T."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TextRidge:
    """A fitted regression.

    Attributes:
        coefficients: C, float32.
        intercept: c, float32.
        penalty: Chosen, over the mean eigenvalue of T'T.
    """

    coefficients: Float[Tensor, "text targets"]
    intercept: Float[Tensor, " targets"]
    penalty: float

    def predictions(self, text: Float[Tensor, "items text"]) -> Float[Tensor, "items targets"]:
        """Return what is expected of items with such text."""
        return self.intercept + text @ self.coefficients


def fit_text_ridge(
    text: Float[Tensor, "items text"],
    targets: Float[Tensor, "items targets"],
    penalties: Sequence[float] = PENALTIES,
) -> TextRidge:
    """Fit the regression; the penalty is chosen for all targets together.

    Time grows with items times text times targets, and with items times text squared for every penalty.

    Args:
        text: Of items whose targets are known, at least one.
        targets: What is known of them.
        penalties: To choose from, each above 0, over the mean eigenvalue of T'T.

    Raises:
        ValueError: A penalty is not above 0.
    """
    if min(penalties) <= 0:
        raise ValueError(f"penalties of a ridge regression on text must be above 0, got {min(penalties)}")
    T, means = text.double() - text.double().mean(dim=0), targets.mean(dim=0)
    Y = targets - means
    eigenvalues, basis = torch.linalg.eigh(T.T @ T)
    eigenvalues = eigenvalues.clamp(min=0)
    unit = eigenvalues.mean().clamp(min=torch.finfo(torch.float32).tiny)
    Z = T @ basis
    projected = Z.to(Y.dtype).T @ Y
    # of residuals r = y - z P only their squared lengths are needed: |y|^2 - 2 y P' z' + z P P' z'
    squares, products = Y.double().square().sum(dim=1), (Y @ projected.T).double()
    inner = (projected @ projected.T).double()

    def error(penalty: float) -> float:
        shrunk = Z / (eigenvalues + penalty * unit)
        leverage = 1 / len(Z) + (shrunk * Z).sum(dim=1)
        residuals = squares - 2 * (shrunk * products).sum(dim=1) + ((shrunk @ inner) * shrunk).sum(dim=1)
        return float((residuals / (1 - leverage).clamp(min=torch.finfo(torch.float32).eps).square()).sum())

    penalty = min(penalties, key=error)
    C = basis.to(Y.dtype) @ (projected / (eigenvalues + penalty * unit)[:, None].to(Y.dtype))
    return TextRidge(coefficients=C, intercept=means - text.mean(dim=0) @ C, penalty=penalty)
