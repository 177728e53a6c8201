"""Cold items for item-to-item models: their columns of weights are predicted from their text by ridge regression.

A fitted model (EASE, item-kNN) has no weights for an item that nobody had. Its column is predicted from its text by a
ridge regression, with intercept, of the warm items' columns on theirs.

References:
    Gantner et al., "Learning attribute-to-feature mappings for cold-start recommendations", ICDM 2010, section III
    (maps attributes to an item's factors; here the factors are weights of support items).
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from simulations.baselines.baseline import summed_rows

_WORD = re.compile(r"\b\w\w+\b")


@dataclass(frozen=True, slots=True, kw_only=True)
class ContentRidge:
    """An item-to-item model whose cold items have predicted columns.

    Attributes:
        weights: Entry (i, j): what support item i adds to the score of item j.
        regularization: Of the ridge regression.
    """

    weights: Float[Tensor, "items items"]
    regularization: float

    def scores(
        self, support_items: Int[Tensor, "users support"], support_mask: Bool[Tensor, "users support"]
    ) -> Float[Tensor, "users items"]:
        """Sum the rows of the support set."""
        return summed_rows(self.weights, support_items, support_mask)


def content_ridges(
    weights: Float[Tensor, "items items"],
    features: Float[Tensor, "items features"],
    cold: Bool[Tensor, " items"],
    regularization: Sequence[float],
) -> Iterator[ContentRidge]:
    """Yield the model for each regularization.

    With ``K`` the inner products of the features, centred on the warm items' mean, and ``B_w`` the warm columns minus
    their mean ``b``, a cold column is ``b + B_w (K_ww + lambda I)^-1 K_wc``: the ridge regression in its dual form,
    which does not care how wide the features are.

    Args:
        weights: Of a model fitted without the cold items.
        features: Of all items.
        cold: Which items are cold.
        regularization: Grid of lambda, each above 0.

    Raises:
        ValueError: A regularization is not above 0.
    """
    if min(regularization) <= 0:
        raise ValueError(f"the regularization of a ridge regression must be above 0, got {min(regularization)}")
    centred = features - features[~cold].mean(dim=0)
    warm, new = centred[~cold], centred[cold]
    kernel, across = warm @ warm.T, warm @ new.T
    mean = weights[:, ~cold].mean(dim=1, keepdim=True)
    for value in regularization:
        factor = torch.linalg.cholesky(kernel + value * torch.eye(len(warm)))
        predicted = mean + (weights[:, ~cold] - mean) @ torch.cholesky_solve(across, factor)
        filled = weights.clone()
        filled[:, cold] = predicted
        yield ContentRidge(weights=filled, regularization=value)


def tfidf(texts: Sequence[str]) -> Float[Tensor, "texts words"]:
    """Return TF-IDF vectors of length 1: word counts times ``ln((1 + n) / (1 + texts with the word)) + 1``.

    Words are runs of two letters, digits or underscores and more, in lower case, that at least two texts have: a word
    of one text says nothing about another.

    References:
        Salton and Buckley, "Term-weighting approaches in automatic text retrieval", 1988 (smoothed as in scikit-learn).
    """
    counts = [Counter(_WORD.findall(text.lower())) for text in texts]
    frequency = Counter(word for count in counts for word in count)
    words = {word: place for place, word in enumerate(sorted(word for word, n in frequency.items() if n > 1))}
    found = np.zeros((len(texts), len(words)), dtype=np.float32)
    for row, count in enumerate(counts):
        for word, times in count.items():
            if word in words:
                found[row, words[word]] = times * (np.log((1 + len(texts)) / (1 + frequency[word])) + 1)
    return F.normalize(torch.from_numpy(found), dim=1)
