"""Reptile: the meta-initialization moves towards where users went; the sum of the gradients on the way.

    h_{k+1} = h_k - a g(h_k),  k < K;  the last minibatch of the task is the query set
    meta-gradient = sum_{k<K} dL_support(h_k) + dL_query(h_K),    each in (h, E, b) where it was computed

which is (theta - theta_u) / a of the published update. Its minibatches are those of one task: the support set in the
first K, the query set in the last, since with one minibatch alone Reptile is joint training. Gradients in h reach the
body through h_0, as if each h_k were h_0 moved by a constant. FOMAML is the last term alone.

    dL/dh_0 = sum g(h_k) + E' s,    dL/dE = sum (m p_k - y) h_k' + s h_K',    dL/db = sum (m p_k - y) + s

References:
    Nichol, Achiam and Schulman (2018), On first-order meta-learning algorithms, algorithm 1 and section 3.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from metarec_shared.fused_inner_loop import Chunk, Factors
from metarec_shared.inner_loop import Items, Support, query_loss, scores, support_gradient
from metarec_shared.meta_learning.fomaml import Fomaml
from metarec_shared.meta_learning.meta_learner import Backward
from metarec_shared.tasks import TaskBatch


class Reptile(Fomaml):
    """First order, all gradients of the way count."""

    def losses(self, h: Tensor, rates: Tensor, items: Items, support: Support, tasks: TaskBatch) -> Tensor:
        """Return query losses whose gradient is that of all losses of the way."""
        way: Tensor = torch.zeros_like(h[:, 0])
        moved = torch.zeros_like(h)
        for step in range(rates.shape[1]):
            here = h + moved
            loss = -(F.log_softmax(scores(here, items), dim=1).gather(1, support.items) * support.weights).sum(dim=1)
            way = way + loss - loss.detach()
            moved = moved - (rates[:, step] * support_gradient(here, items, support)).detach()
        return way + query_loss(scores(h + moved, items), tasks)

    def backward(self, chunk: Chunk, h: Tensor, rates: Tensor) -> Backward:
        """Add up the gradients of the way."""
        steps, weights = rates.shape[1], chunk.weights[:, None]
        chunk.left[steps] = chunk.left[-1]
        back = chunk.catalogue.mean(chunk.left[steps])
        for step, visit in enumerate(chunk.visits):
            back = back + weights * visit.gradient
            residual = chunk.left[step].mul_(chunk.rows).scatter_add_(1, chunk.support.items, -chunk.support.weights)
            residual.mul_(weights)
        right = torch.stack([*(visit.h for visit in chunk.visits), h])
        factors = Factors(left=chunk.left[: steps + 1], right=right, scored=steps + 1, target=torch.zeros_like(h))
        return Backward(back, torch.zeros_like(rates), factors)
