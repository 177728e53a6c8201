"""Self-training: what an adapted user would most likely choose joins his support set, and he adapts once more.

    first adaptation   h' from the support set S
    pseudo-labels      the n items j not in S that softmax(E h' + b) holds most likely, with confidence p_j / max p
    second adaptation  from h_0, on S and the pseudo-labels; one weighs c * confidence where a support item weighs 1

The choice of pseudo-labels and their confidence are constants of the meta-gradient; whoever explains a score follows
the confidence back, too (``TaskBatch.weights``). A user without support items has none.

References:
    Lee (2013), Pseudo-label: the simple and efficient semi-supervised learning method for deep neural networks.
    Li et al. (2019), Learning to self-train for semi-supervised few-shot classification, section 3 (in an inner loop).
"""

import torch
from jaxtyping import Float
from torch import Tensor

from metarec_shared.inner_loop import NEVER, Items, Support, scores
from metarec_shared.tasks import TaskBatch


def with_pseudo_labels(
    support: Support, adapted: Float[Tensor, "users width"], items: Items, tasks: TaskBatch, count: int, weight: float
) -> Support:
    """Return support sets joined by pseudo-labels; ``count`` more columns, behind the support items.

    Args:
        support: The support sets.
        adapted: User vectors after the first adaptation.
        items: The catalogue.
        tasks: Whose known items are no pseudo-labels.
        count: Pseudo-labels of a user, n.
        weight: Of the most confident one, where a support item weighs 1: c.
    """
    scored = scores(adapted, items).masked_fill(tasks.known_mask(len(items.bias)), NEVER)
    best = scored.topk(min(count, scored.shape[1]), dim=1)
    confidence = (best.values - best.values[:, :1]).exp()
    counted = tasks.counted(scored.dtype)
    some = (counted.sum(dim=1, keepdim=True) > 0).to(scored.dtype)
    weights = torch.cat([counted, weight * confidence * some], dim=1)
    total = weights.sum(dim=1, keepdim=True)
    return Support(torch.cat([support.items, best.indices], dim=1), weights / torch.where(total > 0, total, 1.0))
