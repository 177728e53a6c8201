"""Ranking and rating metrics, one value a user; the caller averages over users.

Ties: every ranking metric is its expected value over all orders of equally scored items, exactly, in closed form.
Nothing depends on the order of items in the catalogue, nothing is drawn, and a constant scorer gets what a random
ranking gets on average, so ``ranking_metrics(torch.zeros_like(scores), ...)`` is the chance row of a table. For nDCG
this is what scikit-learn's ``ndcg_score`` does (McSherry and Najork, "Computing information retrieval performance
measures efficiently in the presence of tied scores", ECIR 2008).

What is linear in items (recall, precision, DCG, AUC) needs each query item's own ranks and no more; hit rate and
reciprocal rank also count how many query items share a tie.
"""

from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from metarec_shared.ranks import Ranks, discount_sums, query_ranks


def ranking_metrics(
    scores: Float[Tensor, "users items"],
    exclude: Bool[Tensor, "users items"],
    query: Int[Tensor, "users query"],
    query_mask: Bool[Tensor, "users query"],
    k: int = 10,
) -> dict[str, Float[Tensor, " users"]]:
    """Rank every item that is not excluded and measure where the query items come.

    Args:
        scores: Higher is better; finite.
        exclude: True for items that are never ranked, such as the support set.
        query: Distinct relevant items; padding may hold any number.
        query_mask: False where ``query`` is padding.
        k: Cut-off, at least 1.

    Returns:
        ``ndcg@k`` (binary gain), ``hr@k``, ``recall@k``, ``precision@k``, ``mrr`` and ``auc``, float64.

    Raises:
        ValueError: See :func:`~metarec_shared.ranks.query_ranks`.

    Example:
        >>> from metarec_shared.ranks import item_mask
        >>> scores = torch.tensor([[0.9, 0.8, 0.7, 0.6]])
        >>> metrics = ranking_metrics(scores, item_mask(torch.tensor([[0]]), torch.tensor([[True]]), 4),
        ...     torch.tensor([[2]]), torch.tensor([[True]]), k=2)  # item 0 excluded: item 2 has rank 2 of 3
        >>> {name: round(value.item(), 4) for name, value in metrics.items()}
        {'ndcg@2': 0.6309, 'hr@2': 1.0, 'recall@2': 1.0, 'precision@2': 0.5, 'mrr': 0.5, 'auc': 0.5}
    """
    ranks = query_ranks(scores, exclude, query, query_mask)
    return {
        f"ndcg@{k}": ndcg(ranks, k),
        f"hr@{k}": hit_rate(ranks, k),
        f"recall@{k}": recall(ranks, k),
        f"precision@{k}": precision(ranks, k),
        "mrr": reciprocal_rank(ranks),
        "auc": auc(ranks),
    }


def recall(ranks: Ranks, k: int) -> Float[Tensor, " users"]:
    """Return hits in the top k / min(k, query items): 1 is always within reach."""
    return ranks.in_top(k).sum(dim=1) / ranks.relevant.clamp(max=k)


def precision(ranks: Ranks, k: int) -> Float[Tensor, " users"]:
    """Return hits in the top k / k."""
    return ranks.in_top(k).sum(dim=1) / k


def ndcg(ranks: Ranks, k: int) -> Float[Tensor, " users"]:
    """Return DCG@k with binary gain / the DCG@k of min(k, query items) query items on top.

    Discount 1 / log2(1 + rank), as in Järvelin and Kekäläinen, TOIS 2002, with base 2 discounted from rank 1.
    """
    gained = ranks.discount(k).sum(dim=1)
    return gained / discount_sums(k, gained.device)[ranks.relevant.clamp(max=k)]


def hit_rate(ranks: Ranks, k: int) -> Float[Tensor, " users"]:
    """Return the probability, over the order of ties, that at least one query item is in the top k: 0 or 1 without.

    Only one tie can straddle the cut. Of its ``t`` items ``m`` make the top k; placing its query items one after
    another, the ``j``-th (from 0) misses with probability ``(t - m - j) / (t - j)``.
    """
    tie, slots = ranks.equal + 1, k - ranks.greater
    inside = ranks.mask & (slots >= tie)
    straddling = ranks.mask & (slots > 0) & (slots < tie)
    placed = straddling.cumsum(dim=1) - 1
    missed = (tie - slots - placed).clamp(min=0).double() / (tie - placed).clamp(min=1)
    return 1 - missed.masked_fill(~straddling, 1).masked_fill(inside, 0).prod(dim=1)


def reciprocal_rank(ranks: Ranks, k: int | None = None) -> Float[Tensor, " users"]:
    """Return 1 / the rank of the first query item in the full ranking, or 0 below rank ``k`` if that is given."""
    greater = ranks.greater.masked_fill(~ranks.mask, torch.iinfo(ranks.greater.dtype).max)
    first, column = greater.min(dim=1, keepdim=True)  # the best tie that holds a query item
    tie = ranks.equal.gather(1, column) + 1
    relevant = (greater == first).sum(dim=1, keepdim=True)
    position = torch.arange(int(tie.max()), device=tie.device)  # from 0, within the tie
    left = (tie - position).clamp(min=1)
    none_here = (left - relevant).clamp(min=0).double() / left
    none_before = torch.cat([torch.ones_like(none_here[:, :1]), none_here.cumprod(dim=1)[:, :-1]], dim=1)
    rank = first + position + 1
    value = none_before * (1 - none_here) / rank
    return value.masked_fill(rank > (rank if k is None else k), 0).sum(dim=1)


def auc(ranks: Ranks) -> Float[Tensor, " users"]:
    """Return the share of pairs (query item, other candidate) in the right order, a tied pair counting half.

    NaN for a user all of whose candidates are query items: there is no pair.
    """
    relevant = ranks.relevant.double()
    average = (1 + ranks.greater + ranks.equal / 2).double().masked_fill(~ranks.mask, 0).sum(dim=1)
    wrong = average - relevant * (relevant + 1) / 2
    return 1 - wrong / (relevant * (ranks.candidates - relevant))


def graded_ndcg(
    scores: Float[Tensor, "users items"],
    relevance: Float[Tensor, "users items"],
    mask: Bool[Tensor, "users items"],
    k: int,
    gain: Literal["linear", "exponential"],
) -> Float[Tensor, " users"]:
    """Return nDCG@k of the items in ``mask`` by graded relevance, such as ratings.

    Args:
        scores: Higher is better; finite where ``mask`` is True.
        relevance: At least 0 where ``mask`` is True.
        mask: Items to rank, at least one a user.
        k: Cut-off, at least 1.
        gain: ``"linear"``: the relevance itself; ``"exponential"``: 2 ** relevance - 1.

    Returns:
        nDCG@k in [0, 1]; 0, as in scikit-learn, for a user none of whose items has any relevance.

    Raises:
        ValueError: A relevance is negative or not finite; else see :func:`~metarec_shared.ranks.query_ranks`.

    Example:
        >>> scores, ratings = torch.tensor([[3.0, 2.0, 1.0]]), torch.tensor([[1.0, 0.0, 2.0]])
        >>> mask = torch.ones(1, 3, dtype=torch.bool)
        >>> graded_ndcg(scores, ratings, mask, 3, "linear")  # (1 + 2 / 2) / (2 + 1 / log2(3))
        tensor([0.7602], dtype=torch.float64)
        >>> graded_ndcg(scores, ratings, mask, 1, "exponential")  # 1 / 3
        tensor([0.3333], dtype=torch.float64)
    """
    if not ((relevance.isfinite() & (relevance >= 0)) | ~mask).all():
        raise ValueError("relevance must be finite and not negative")
    ranks = query_ranks(scores, ~mask, torch.arange(scores.shape[1], device=scores.device).expand(scores.shape), mask)
    gains = relevance.double() if gain == "linear" else torch.exp2(relevance.double()) - 1
    gains = gains.masked_fill(~mask, 0)
    best = gains.sort(dim=1, descending=True).values[:, :k]
    ideal = (best * discount_sums(k, best.device).diff()[: best.shape[1]]).sum(dim=1)
    gained = (gains * ranks.discount(k)).sum(dim=1)
    return gained / ideal.masked_fill(ideal == 0, 1)


def mean_absolute_error(
    predicted: Float[Tensor, "users items"], rated: Float[Tensor, "users items"], mask: Bool[Tensor, "users items"]
) -> Float[Tensor, " users"]:
    """Return each user's mean absolute error over the ratings in ``mask``, at least one a user.

    Example:
        >>> mask = torch.tensor([[True, True, False]])
        >>> mean_absolute_error(torch.tensor([[3.0, 5.0, 0.0]]), torch.tensor([[4.0, 2.0, 1.0]]), mask)
        tensor([2.], dtype=torch.float64)
    """
    return (predicted.double() - rated.double()).abs().masked_fill(~mask, 0).sum(dim=1) / mask.sum(dim=1)


def root_mean_square_error(
    predicted: Float[Tensor, "users items"], rated: Float[Tensor, "users items"], mask: Bool[Tensor, "users items"]
) -> Float[Tensor, " users"]:
    """Return each user's root mean square error over the ratings in ``mask``, at least one a user.

    Its mean over users is not the error of all ratings pooled; for that, pass all ratings as one row.

    Example:
        >>> mask = torch.tensor([[True, True, False]])
        >>> root_mean_square_error(torch.tensor([[3.0, 5.0, 0.0]]), torch.tensor([[4.0, 2.0, 1.0]]), mask)  # sqrt(5)
        tensor([2.2361], dtype=torch.float64)
    """
    squares = (predicted.double() - rated.double()).square().masked_fill(~mask, 0)
    return (squares.sum(dim=1) / mask.sum(dim=1)).sqrt()
