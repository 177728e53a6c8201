"""Item-kNN: an item scores by how similar it is to the items of the support set.

References:
    Sarwar et al., "Item-based collaborative filtering recommendation algorithms", WWW 2001, section 3.1 (cosine).
    Ferrari Dacrema, Cremonesi and Jannach, "Are we really making much progress?", RecSys 2019, arXiv 1907.06902
    (ItemKNN: shrinkage in the denominator, each target item keeps its nearest neighbours).
"""

from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Bool, Float, Int
from torch import Tensor

from metarec_shared.interactions import Interactions
from metarec_shared.ranks import item_mask
from simulations.baselines.baseline import Validation, best, co_occurrences


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemKnn:
    """Similarities of items.

    Attributes:
        similarity: Entry (i, j): what support item i adds to the score of item j; 0 unless i is among the nearest
            neighbours of j.
        neighbours: Neighbours kept an item; more where several are equally near.
        shrinkage: Added to the denominator of the cosine, against similarities that rest on few users.
    """

    similarity: Float[Tensor, "items items"]
    neighbours: int
    shrinkage: float

    def scores(
        self, support_items: Int[Tensor, "users support"], support_mask: Bool[Tensor, "users support"]
    ) -> Float[Tensor, "users items"]:
        """Sum the similarities to the items of the support set."""
        return item_mask(support_items, support_mask, len(self.similarity)).to(self.similarity) @ self.similarity


def fit_item_knn(train: Interactions, catalogue_size: int, neighbours: int, shrinkage: float) -> ItemKnn:
    """Fit with given settings; see :func:`tune_item_knn`."""
    return _item_knn(co_occurrences(train, catalogue_size), neighbours, shrinkage)


def tune_item_knn(
    train: Interactions,
    catalogue_size: int,
    neighbours: Sequence[int],
    shrinkage: Sequence[float],
    validations: Sequence[Validation],
) -> list[ItemKnn]:
    """Fit each combination of ``neighbours`` and ``shrinkage``; return the best for each of ``validations``.

    Args:
        train: Full histories of the meta-training users.
        catalogue_size: Items in the catalogue.
        neighbours: Grid of neighbours an item, each at least 1.
        shrinkage: Grid of shrinkages, each at least 0.
        validations: What each of the returned models is the best for.
    """
    gram = co_occurrences(train, catalogue_size)
    return best((_item_knn(gram, n, s) for s in shrinkage for n in neighbours), validations)


def _item_knn(gram: Float[Tensor, "items items"], neighbours: int, shrinkage: float) -> ItemKnn:
    similarity = _shrunk_cosine(gram, shrinkage)
    nearest = similarity.topk(min(neighbours, len(gram)), dim=0).values
    # A threshold instead of topk's indices: which of equally near neighbours it takes is up to the item order.
    similarity[similarity < nearest[-1]] = 0
    return ItemKnn(similarity=similarity, neighbours=neighbours, shrinkage=shrinkage)


def _shrunk_cosine(gram: Float[Tensor, "items items"], shrinkage: float) -> Float[Tensor, "items items"]:
    norms = gram.diagonal().sqrt()
    denominator = norms[:, None] * norms + shrinkage
    similarity = gram / denominator.masked_fill(denominator == 0, 1)  # 0 / 0 for items nobody has: not similar
    return similarity.fill_diagonal_(0)
