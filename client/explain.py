"""Why an item is recommended: how its score would change if a support item counted a little more or less.

The support set enters a score in every way as a sum over its items, each with weight 1: in the attention of the user
encoder, in the support loss of the inner loop and in the number of items that its step sizes depend on, in task
regression and text kernel (``TaskBatch.weights``). The influence of support item i on the score of item j,

    d score_j / d w_i    at w = 1,

is exact: autograd through the inner loop, its inner gradients included. It is the first-order answer to what the score
would lose if the user had never had the item, w_i = 0; ``without_each`` adapts anew to know it. (A causal encoder
counts positions, which no weight changes: there w_i = 0 is an item that is there, and that nobody reads.)

Blends by size of the support set are held where they are, in both: they are chosen for a number of interactions, and
may be 0 for one and hundreds for the next, so scores of the same item after n and n - 1 interactions are on different
scales, and their difference says that, of every support item alike.

References:
    Koh and Liang (2017), Understanding black-box predictions via influence functions, section 2: up-weighting a point
    (there through the optimum, here through the steps that were taken).
"""

import copy
from collections.abc import Sequence
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
    model: BertRecommender, task: TaskBatch, E: Float[Tensor, "items width"], positions: Sequence[int]
) -> Float[Tensor, "positions support"]:
    """Return the influence of each support item of one user on the scores of items: one adaptation, a pass back each.

    Args:
        model: The recommender.
        task: The user's support set, a batch of one.
        E: Its item vectors.
        positions: Of the items.
    """
    weights = torch.ones(task.support.shape, dtype=E.dtype, requires_grad=True)
    with torch.enable_grad():
        scored = differentiable(model)(replace(task, weights=weights), E=E.detach())[0, list(positions)]
        return torch.cat([torch.autograd.grad(score, weights, retain_graph=True)[0] for score in scored])


@torch.no_grad()
def without_each(
    model: BertRecommender,
    task: TaskBatch,
    E: Float[Tensor, "items width"],
    positions: Sequence[int],
    *,
    blends_held: bool = True,
) -> Float[Tensor, "positions support"]:
    """Return what the scores of items lose without each support item, adapting anew to the others.

    Args:
        model: The recommender.
        task: The user's support set, a batch of one.
        E: Its item vectors.
        positions: Of the items.
        blends_held: Whether what is added to the scores is blended as for the whole support set; or as for what is left
            of it, as if the user came without the item: then the fall also has what a change of blends does to a score.
    """
    size = task.support.shape[1]
    whole: Tensor = model(task, E=E)[0, list(positions)]
    each, gone = task.take(torch.zeros(size, dtype=torch.int64)), torch.eye(size, dtype=torch.bool)
    ranks = task.recency if task.recency is None else task.recency - (task.recency > task.recency.T).long()
    sizes = each.support_sizes() if blends_held else None
    known = each.known.masked_fill(gone, -1)  # whoever never had it may get it as a pseudo-label
    left = replace(each, support_mask=each.support_mask & ~gone, known=known, recency=ranks, sizes=sizes)
    adapt = size > 1 or blends_held  # who has done nothing is not adapted to
    others: Tensor = model(left, adapt=adapt, E=E)[:, list(positions)]
    return whole[:, None] - others.T


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
