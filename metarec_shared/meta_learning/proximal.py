"""Proximal meta-learning: a user minimizes the support loss near the meta-initialization, differentiated implicitly.

    h* = argmin_h  L_support(h) + lambda/2 |h - h_0|^2           approached by gradient steps from h_0
    0  = g(h*) + lambda (h* - h_0)     =>     dL/dh_0 = v,    (I + H(h*) / lambda) v = q,    by conjugate gradients
    dL/dE = s h*' + d/dE of  -<v, g(h*)> / lambda at fixed h* and v

However many steps are taken, no more than one is remembered. That the regularized problem is what each user solves is
FedProx's local objective; that its solution is differentiated is iMAML.

References:
    Rajeswaran, Finn, Kakade and Levine (2019), Meta-learning with implicit gradients, equations 3 and 6, algorithm 2.
    Li et al. (2020), Federated optimization in heterogeneous networks (FedProx), equation 2.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from metarec_shared.fused_inner_loop import Chunk, Factors
from metarec_shared.inner_loop import Items, Support, scores, support_gradient
from metarec_shared.meta_learning.meta_learner import Backward, MetaLearner

SOLVER_STEPS = 8
"""Steps of conjugate gradients; as many as dimensions would be exact."""


class Proximal(MetaLearner):
    """Implicit gradients.

    Args:
        strength: lambda, how strongly users are held at the meta-initialization.
    """

    def __init__(self, strength: float) -> None:
        self.strength = strength

    def adapt(self, h: Tensor, rates: Tensor, items: Items, support: Support) -> Tensor:
        """Return where the gradient steps ended; its derivative is that of the exact solution, solved exactly."""
        start, here = h, h.detach()
        frozen = Items(items.vectors.detach(), items.bias.detach())
        for step in range(rates.shape[1]):
            pull = support_gradient(here, frozen, support) + self.strength * (here - start.detach())
            here = here - rates[:, step].detach() * pull
        if not torch.is_grad_enabled():
            return here
        residual = support_gradient(here, items, support) + self.strength * (here - start)
        system = self._hessians(here, frozen, support) + self.strength * torch.eye(h.shape[1]).to(h)
        moved: Tensor = torch.linalg.solve(system, (residual - residual.detach())[:, :, None])[:, :, 0]
        return here - moved

    def terms(self, steps: int) -> int:
        """Return 4: the softmax at h*, what it is multiplied with in the solver, a scratch, the query's."""
        return 4

    def forward(self, chunk: Chunk, h: Tensor, rates: Tensor) -> Tensor:
        """Take the steps; look at the support loss once more where they end."""
        start = h
        for step in range(rates.shape[1]):
            gradient = chunk.visit(h, out=chunk.left[0]).gradient
            h = h - rates[:, step] * (gradient + self.strength * (h - start))
        chunk.visit(h, out=chunk.left[0])
        return h

    def backward(self, chunk: Chunk, h: Tensor, rates: Tensor) -> Backward:
        """Solve for v, and differentiate the support loss's gradient once."""
        visit, rows = chunk.visits[-1], chunk.rows
        left = [chunk.left[0], chunk.left[1], chunk.left[-1]]

        def times(v: Tensor) -> Tensor:
            return v + chunk.hessian_product(visit, v * rows, out=left[1]) / self.strength

        v = conjugate_gradients(times, chunk.catalogue.mean(left[2]), SOLVER_STEPS)
        step_back = -v / self.strength
        right = torch.stack([step_back * rows, visit.h, h])
        chunk.hessian_product(visit, right[0], out=left[1])
        chunk.left[2] = left[2]
        factors = Factors(left=chunk.left[:3], right=right, scored=2, target=-step_back)
        return Backward(v, torch.zeros_like(rates), factors)

    def _hessians(self, h: Tensor, items: Items, support: Support) -> Tensor:
        """Return H(h) of every user, [users, width, width]."""
        p = torch.softmax(scores(h, items), dim=1)
        expected = p @ items.vectors
        outer = torch.einsum("ui,id,ie->ude", p, items.vectors, items.vectors)
        weight = support.weights.sum(dim=1)[:, None, None]
        return weight * (outer - expected[:, :, None] * expected[:, None, :])


def conjugate_gradients(times: Callable[[Tensor], Tensor], right: Tensor, steps: int) -> Tensor:
    """Solve A v = ``right`` for each user's positive definite A, from v = 0.

    Args:
        times: Returns A v of every user, [users, width].
        right: Right hand sides, [users, width].
        steps: Iterations.
    """
    v, residual = torch.zeros_like(right), right
    direction, square = residual, residual.square().sum(dim=1, keepdim=True)
    tiny = torch.finfo(right.dtype).tiny
    for _ in range(steps):
        image = times(direction)
        length = square / (direction * image).sum(dim=1, keepdim=True).clamp(min=tiny)
        v, residual = v + length * direction, residual - length * image
        before, square = square, residual.square().sum(dim=1, keepdim=True)
        direction = residual + square / before.clamp(min=tiny) * direction
    return v
