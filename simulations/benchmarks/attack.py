"""What an attacker does with a release, and what differential privacy leaves any attacker.

An item test scores every item of the catalogue: was it in the target's history? Each statistic undoes what a layer did
to the gradient of a query loss, -(sum over query items of the gradient of log p_j) / (number of query items):

    rows         size of the gradient of an item's ID vector
    bias         the gradient of the score bias is p_j less the share of the query items that are j; p_j, about
                 proportional to popularity, is taken away
    head         the gradient of the head's bias is a sum of item vectors; matched filter with their covariance
    projection   the gradient of W is a sum of (gradient of e_j) t_j'; size of the matched filter with the text's
                 covariance
    likelihood   inner product of the whole release with the gradient of -log p_j, a user without support items
    together     all of these, their ranks combined by Fisher's method: one finds the query set, another the support set

References:
    Kairouz, Oh and Viswanath (2015), The composition theorem for differential privacy, theorem 2.1.
    Carlini et al. (2022), Membership inference attacks from first principles.
"""

import math
import warnings
from collections.abc import Callable, Iterable

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor
from torch.func import functional_call, jvp
from torch.nn import functional as F

from metarec_shared.exchange import Parameters
from metarec_shared.model import BertRecommender
from metarec_shared.tasks import TaskBatch

_RIDGE = 1e-3
"""Added to covariances, in shares of their mean eigenvalue."""

_MESH = 20_001


def auc(positive: NDArray[np.float64], negative: NDArray[np.float64]) -> float:
    """Return the chance that a positive scores higher than a negative, equal scores counted as half; NaN of none."""
    if not (len(positive) and len(negative)):
        return math.nan
    ranked = np.sort(negative)
    below = np.searchsorted(ranked, positive, "left") + np.searchsorted(ranked, positive, "right")
    return float(below.mean() / (2 * len(negative)))


def auc_bound(guarantees: Iterable[tuple[float, float]]) -> float:
    """Return the highest AUC of a test between neighbours under every one of ``guarantees``, pairs (epsilon, delta).

    Each bounds the true positive rate by min(e^epsilon FPR + delta, 1 - e^-epsilon (1 - delta - FPR)); the area under
    the lowest of these curves is what is returned.
    """
    false = np.linspace(0.0, 1.0, _MESH)
    highest = np.ones_like(false)
    for epsilon, delta in guarantees:
        if math.isfinite(epsilon):
            rising = math.exp(epsilon) * false + delta
            highest = np.minimum(highest, np.minimum(rising, 1.0 - math.exp(-epsilon) * (1.0 - delta - false)))
    return float(np.trapezoid(highest, false))


def for_replacement(guarantees: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return what holds when a history is replaced by another, as one item more makes it: removed, then added."""
    return [(2.0 * epsilon, delta * (1.0 + math.exp(epsilon))) for epsilon, delta in guarantees]


def along(
    model: BertRecommender,
    parameters: Parameters,
    direction: Parameters,
    tasks: TaskBatch,
    of_scores: Callable[[Tensor, TaskBatch], Tensor],
) -> Tensor:
    """Return the derivative of a function of the adapted model's scores along ``direction``, for each user."""
    tangents = {name: direction.get(name, torch.zeros_like(value)) for name, value in parameters.items()}

    def value(at: Parameters) -> Tensor:
        return of_scores(functional_call(model, at, (tasks,)), tasks)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch compiles its rules by what it deprecates
        return jvp(value, (parameters,), (tangents,))[1].detach()  # type: ignore[no-any-return]


def log_probabilities(scored: Tensor, tasks: TaskBatch) -> Float[Tensor, "users items"]:
    """Return log p_j of every item."""
    return F.log_softmax(scored, dim=-1)


def item_statistics(
    model: BertRecommender, parameters: Parameters, release: Parameters
) -> dict[str, NDArray[np.float64]]:
    """Score every item by every statistic that the released parameters allow, [items] each."""
    with torch.no_grad():
        E: Tensor = functional_call(_ItemVectors(model), {f"model.{n}": value for n, value in parameters.items()}, ())
    popularity = F.softmax(parameters["item_bias"], dim=0)
    found = {"likelihood": -along(model, parameters, release, _nobody(), log_probabilities)[0]}
    if "item_ids" in release:
        found["rows"] = release["item_ids"].norm(dim=1)
    if "item_bias" in release:
        bias = release["item_bias"]
        found["bias"] = (bias / popularity).median() * popularity - bias
    if "head.bias" in release:
        found["head"] = -(_matched(E, popularity) @ release["head.bias"])
    if "projection.weight" in release:
        filters = _matched(model.text, torch.full_like(popularity, 1.0 / len(popularity)))
        found["projection"] = (release["projection.weight"] @ filters.T).norm(dim=0)
    scores = {name: value.double().numpy() for name, value in found.items()}
    return scores | {"together": _fisher(list(scores.values()))}


def _fisher(scores: list[NDArray[np.float64]]) -> NDArray[np.float64]:
    """Return minus the sum of the logarithms of each item's upper rank in every score."""
    items = len(scores[0])
    ranks = [np.argsort(np.argsort(-score, kind="stable"), kind="stable") for score in scores]
    return -np.sum([np.log((rank + 1.0) / items) for rank in ranks], axis=0)  # type: ignore[no-any-return]


def _matched(vectors: Float[Tensor, "items width"], weights: Float[Tensor, " items"]) -> Float[Tensor, "items width"]:
    """Return each vector, less their mean, times the inverse of their covariance."""
    centred = vectors - weights @ vectors
    covariance = centred.T @ (centred * weights[:, None])
    covariance.diagonal().add_(_RIDGE * covariance.diagonal().mean())
    solved: Tensor = torch.linalg.solve(covariance, centred.T)
    return solved.T


class _ItemVectors(torch.nn.Module):
    """Item vectors as a function of the parameters."""

    def __init__(self, model: BertRecommender) -> None:
        super().__init__()
        self.model = model

    def forward(self) -> Tensor:
        return self.model.item_vectors()


def _nobody() -> TaskBatch:
    """Return the task of a user without any interaction."""
    none = torch.zeros(1, 1, dtype=torch.int64)
    absent = torch.zeros(1, 1, dtype=torch.bool)
    return TaskBatch(support=none, support_mask=absent, feedback=none, query=none, query_mask=absent, known=none - 1)
