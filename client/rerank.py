"""Lists that are more than the best scores one after the other: diverse, and fresh, by choice.

    relevance_j = (1 - f) s_j + f fresh_j          s: scores, from 0 to 1 over the pool; fresh: as the app says
    next item   = argmax (1 - d) relevance_j - d max over items i before it of cos(e_i, e_j)

the first of them that of the greatest relevance. Only the best by score are in the pool, so neither choice brings up
what does not fit the user at all.

References:
    Carbonell and Goldstein (1998), The use of MMR, diversity-based reranking for reordering documents and producing
    summaries, equation 1, with lambda = 1 - d.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

POOL = 10
"""Items in the pool for each one that is recommended."""


def reranked(
    scores: Float[Tensor, " pool"],
    vectors: Float[Tensor, "pool width"],
    k: int,
    *,
    diversity: float = 0.0,
    fresh: Float[Tensor, " pool"] | None = None,
    freshness: float = 0.0,
) -> Int[Tensor, " k"]:
    """Return the places of the chosen items, in the order in which they are shown.

    Args:
        scores: Of the items in the pool.
        vectors: Their vectors, by which they are alike.
        k: Items to choose, at most as many as there are.
        diversity: d, from 0 (by relevance alone) to 1 (unlike what stands above it).
        fresh: How fresh each item is, from 0 to 1; None: none is.
        freshness: f, from 0 to 1.
    """
    lowest, highest = scores.min(), scores.max()
    relevance = (scores - lowest) / (highest - lowest).clamp(min=1e-12)
    if fresh is not None:
        relevance = (1 - freshness) * relevance + freshness * fresh
    if not diversity:
        return relevance.argsort(descending=True, stable=True)[:k]
    unit = F.normalize(vectors, dim=1)
    chosen = [int(relevance.argmax())]
    nearest = unit @ unit[chosen[0]]
    while len(chosen) < min(k, len(scores)):
        value = (1 - diversity) * relevance - diversity * nearest
        value[chosen] = -torch.inf
        chosen.append(int(value.argmax()))
        nearest = torch.maximum(nearest, unit @ unit[chosen[-1]])
    return torch.tensor(chosen)
