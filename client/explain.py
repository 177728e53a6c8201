"""Why an item is recommended: how its score would change if a support item counted a little more or less.

The support set enters a score in every way as a sum over its items, each with weight 1: in the attention of the user
encoder, in the support loss of the inner loop and in the number of items that its step sizes depend on, in task
regression, start prior and text kernel (``TaskBatch.weights``). The influence of support item i on the score of item j,

    d score_j / d w_i    at w = 1,

is exact: autograd through the inner loop, its inner gradients included. It is the first-order answer to what the score
would lose if the user had never had the item, w_i = 0; ``without_each`` adapts anew to know it. (A causal encoder
counts positions, which no weight changes: there w_i = 0 is an item that is there, and that nobody reads.)

References:
    Koh and Liang (2017), Understanding black-box predictions via influence functions, section 2: up-weighting a point
    (there through the optimum, here through the steps that were taken).
"""

import copy
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from metarec_shared.adaptation import Adaptation
from metarec_shared.meta_learning.fomaml import Fomaml
from metarec_shared.meta_learning.maml import Maml
from metarec_shared.model import BertRecommender
from metarec_shared.tasks import TaskBatch


def influences(
    model: BertRecommender, task: TaskBatch, E: Float[Tensor, "items width"], position: int
) -> Float[Tensor, " support"]:
    """Return the influence of each support item of one user on the score of an item.

    Args:
        model: The recommender.
        task: The user's support set, a batch of one.
        E: Its item vectors.
        position: Of the item.
    """
    weights = torch.ones(task.support.shape, dtype=E.dtype, requires_grad=True)
    with torch.enable_grad():
        scored = differentiable(model)(replace(task, weights=weights), E=E.detach())[0, position]
        return torch.autograd.grad(scored, weights)[0][0]


@torch.no_grad()
def without_each(
    model: BertRecommender, task: TaskBatch, E: Float[Tensor, "items width"], position: int
) -> Float[Tensor, " support"]:
    """Return what the score of an item loses without each support item, adapting anew to the others.

    Args: as ``influences``.
    """
    size = task.support.shape[1]
    whole: Tensor = model(task, E=E)[0, position]
    each, gone = task.take(torch.zeros(size, dtype=torch.int64)), torch.eye(size, dtype=torch.bool)
    ranks = task.recency if task.recency is None else task.recency - (task.recency > task.recency.T).long()
    left = replace(each, support_mask=each.support_mask & ~gone, recency=ranks)
    others: Tensor = model(left, adapt=size > 1, E=E)[:, position]  # who has done nothing is not adapted to
    return whole - others


def differentiable(model: BertRecommender) -> BertRecommender:
    """Return the same model, whose inner gradients are functions of the support set where it takes them for constants.

    First-order meta-learners do, for their meta-gradients; the steps that they take are those of MAML.
    """
    adaptation = model.adaptation
    if not isinstance(adaptation.learner, Fomaml):
        return model
    other: Adaptation = copy.copy(adaptation)
    other.learner = Maml()
    same = copy.copy(model)
    same._modules = {**model._modules, "adaptation": other}
    return same
