"""MAML: the query loss after some gradient steps, differentiated through the steps.

    h_{k+1} = h_k - a_k g(h_k)
    backward   l_K = E' s,   and for k = K-1 .. 0, with c_k = -m a_k l_{k+1}:
               da_k = -l_{k+1} g_k       s_k = p_k (E c_k - <e_k, c_k>)       l_k = l_{k+1} + E' s_k,   e_k = E' p_k

so that dL/dE is a sum of 2K + 1 outer products a user, p_k with c_k and s_k with h_k and s with h_K, besides the rows
of the support items; dL/db = s + sum s_k and dL/dh_0 = l_0. Inner learning rates are one fixed number.

References:
    Finn, Abbeel and Levine (2017), Model-agnostic meta-learning for fast adaptation of deep networks, equation 1 and
    algorithm 1, differentiated by hand.
"""

import torch
from torch import Tensor

from metarec_shared.fused_inner_loop import Chunk, Factors
from metarec_shared.inner_loop import Items, Support, adapt_user_vectors
from metarec_shared.meta_learning.meta_learner import Backward, MetaLearner


class Maml(MetaLearner):
    """Second order, fixed inner learning rate."""

    second_order = True

    def adapt(self, h: Tensor, rates: Tensor, items: Items, support: Support) -> Tensor:
        """Return the user vectors after the gradient steps."""
        return adapt_user_vectors(h, rates, items, support, second_order=True)

    def terms(self, steps: int) -> int:
        """Return 2K + 1: softmaxes, their derivatives, the query's."""
        return 2 * steps + 1

    def forward(self, chunk: Chunk, h: Tensor, rates: Tensor) -> Tensor:
        """Take the steps; each one's softmax stays in the buffer of its number."""
        return gradient_steps(chunk, h, rates)

    def backward(self, chunk: Chunk, h: Tensor, rates: Tensor) -> Backward:
        """Walk the steps back."""
        steps, rate_gradient, target = rates.shape[1], torch.empty_like(rates), torch.zeros_like(h)
        back = chunk.catalogue.mean(chunk.left[-1])
        right = h.new_empty(len(chunk.left), *h.shape)
        right[-1] = h
        for step in reversed(range(steps)):
            visit = chunk.visits[step]
            rate_gradient[:, step] = -back * visit.gradient
            step_back = -rates[:, step] * back
            target -= step_back
            right[step] = step_back * chunk.rows
            back = back + chunk.hessian_product(visit, right[step], out=chunk.left[steps + step])
            right[steps + step] = visit.h
        return Backward(back, rate_gradient, Factors(left=chunk.left, right=right, scored=steps + 1, target=target))


def gradient_steps(chunk: Chunk, h: Tensor, rates: Tensor) -> Tensor:
    """Take a step down the support loss for every inner learning rate."""
    for step in range(rates.shape[1]):
        h = h - rates[:, step] * chunk.visit(h, out=chunk.left[step]).gradient
    return h
