"""Item-kNN: an item scores by how similar it is to the items of the support set.

References:
    Sarwar et al., "Item-based collaborative filtering recommendation algorithms", WWW 2001, section 3.1 (cosine).
    Ferrari Dacrema, Cremonesi and Jannach, "Are we really making much progress?", RecSys 2019, arXiv 1907.06902
    (ItemKNN: shrinkage in the denominator, each target item keeps its nearest neighbours).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from jaxtyping import Bool, Float, Int
from torch import Tensor

from metarec_shared.interactions import Interactions
from simulations.baselines.baseline import Validation, best, co_occurrences, summed_rows


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
        return summed_rows(self.similarity, support_items, support_mask)


def fit_item_knn(train: Interactions, catalogue_size: int, neighbours: int, shrinkage: float) -> ItemKnn:
    """Fit with given settings; see :func:`tune_item_knn`."""
    return next(_item_knns(co_occurrences(train, catalogue_size), [neighbours], shrinkage))


def tune_item_knn(
    gram: Float[Tensor, "items items"],
    neighbours: Sequence[int],
    shrinkage: Sequence[float],
    validations: Sequence[Validation],
) -> list[ItemKnn]:
    """Fit each combination of ``neighbours`` and ``shrinkage``; return the best for each of ``validations``.

    Args:
        gram: Co-occurrences in the full histories of the meta-training users.
        neighbours: Grid of neighbours an item, each at least 1.
        shrinkage: Grid of shrinkages, each at least 0.
        validations: What each of the returned models is the best for.
    """
    return best((knn for value in shrinkage for knn in _item_knns(gram, neighbours, value)), validations)


def _item_knns(gram: Float[Tensor, "items items"], neighbours: Sequence[int], shrinkage: float) -> Iterator[ItemKnn]:
    """Fit every number of neighbours on one table of similarities, each item's nearest sorted once."""
    similarity = _shrunk_cosine(gram, shrinkage)
    nearest = similarity.topk(min(max(neighbours), len(gram)), dim=0).values
    for number in neighbours:
        # A threshold instead of topk's indices: which of equally near neighbours it takes is up to the item order.
        least = nearest[min(number, len(gram)) - 1]
        kept = similarity.masked_fill(similarity < least, 0)
        yield ItemKnn(similarity=kept, neighbours=number, shrinkage=shrinkage)


def _shrunk_cosine(gram: Float[Tensor, "items items"], shrinkage: float) -> Float[Tensor, "items items"]:
    norms = gram.diagonal().sqrt()
    denominator = norms[:, None] * norms + shrinkage
    similarity = gram / denominator.masked_fill(denominator == 0, 1)  # 0 / 0 for items nobody has: not similar
    return similarity.fill_diagonal_(0)
