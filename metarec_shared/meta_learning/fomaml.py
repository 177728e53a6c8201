"""First-order MAML: the same steps, their gradients taken for constants.

    h_{k+1} = h_k - a g(h_k)        dL/dh_0 = E' s,   dL/dE = s h_K',   dL/db = s

References:
    Finn, Abbeel and Levine (2017), Model-agnostic meta-learning for fast adaptation of deep networks, section 5.2.
    Nichol, Achiam and Schulman (2018), On first-order meta-learning algorithms, section 2.
"""

import torch
from torch import Tensor

from metarec_shared.fused_inner_loop import Chunk, Factors
from metarec_shared.inner_loop import Items, Support, adapt_user_vectors
from metarec_shared.meta_learning.maml import gradient_steps
from metarec_shared.meta_learning.meta_learner import Backward, MetaLearner


class Fomaml(MetaLearner):
    """First order, fixed inner learning rate."""

    def adapt(self, h: Tensor, rates: Tensor, items: Items, support: Support) -> Tensor:
        """Return the user vectors after the gradient steps."""
        return adapt_user_vectors(h, rates, items, support, second_order=False)

    def terms(self, steps: int) -> int:
        """Return one buffer a step, a scratch and the query's."""
        return steps + 2

    def forward(self, chunk: Chunk, h: Tensor, rates: Tensor) -> Tensor:
        """Take the steps."""
        return gradient_steps(chunk, h, rates)

    def backward(self, chunk: Chunk, h: Tensor, rates: Tensor) -> Backward:
        """Differentiate the query loss where the steps ended."""
        back, rate_gradient = chunk.catalogue.mean(chunk.left[-1]), torch.empty_like(rates)
        for step, visit in enumerate(chunk.visits):
            rate_gradient[:, step] = -back * visit.gradient
        factors = Factors(left=chunk.left[-1:], right=h[None], scored=1, target=torch.zeros_like(h))
        return Backward(back, rate_gradient, factors)
