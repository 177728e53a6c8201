"""Adversarial training: support items are read where reading them wrongly hurts most.

    delta = r * grad / |grad|,   grad = dL_query / d(vectors of the user's support items as the user encoder reads them)

A user's meta-gradient is that of the query loss with delta added, delta a constant. It is drawn from the user's own
task alone, so a clipped meta-gradient stays clipped.

References:
    Goodfellow, Shlens and Szegedy (2015), Explaining and harnessing adversarial examples, section 4.
    Miyato, Dai and Goodfellow (2017), Adversarial training methods for semi-supervised text classification, equation 5.
    He et al. (2018), Adversarial personalized ranking for recommendation, equation 8.
"""

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from metarec_shared.tasks import TaskBatch


def perturbed(tasks: TaskBatch, gradient: Float[Tensor, "users support width"], radius: float) -> TaskBatch:
    """Return tasks whose support items are read ``radius`` away, in the direction of ``gradient``, by user."""
    norms = torch.linalg.vector_norm(gradient, dim=(1, 2), keepdim=True)
    delta = radius * gradient / norms.clamp(min=torch.finfo(norms.dtype).tiny)
    return replace(tasks, perturbation=delta.detach())
