"""The outer loop's gradient: the query loss after adaptation, differentiated with respect to the meta-initialization.

Two ways to the same numbers. Where nobody clips per user, the weighted sum over users needs no per-user gradient: one
backward pass over the batch. Where somebody does, per-user gradients come from a vectorized map, in chunks.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.func import functional_call, grad_and_value, vmap
from torch.nn import functional as F

from metarec_shared.model import NEVER, BertRecommender
from metarec_shared.tasks import TaskBatch


@dataclass(frozen=True, slots=True, kw_only=True)
class MetaGradient:
    """Gradients by parameter name, and the query losses they come from.

    Attributes:
        gradients: By parameter name; shaped like the parameter where summed, with a leading user dimension where
            per user.
        losses: Query loss of each user, [users].
    """

    gradients: dict[str, Tensor]
    losses: Tensor


def query_loss(scores: Float[Tensor, "users items"], tasks: TaskBatch) -> Float[Tensor, " users"]:
    """Return each user's mean cross-entropy of the query items over the catalogue without the known items."""
    ranked = scores.masked_fill(tasks.known_mask(scores.shape[1]), NEVER)
    log_probabilities = F.log_softmax(ranked, dim=-1).gather(1, tasks.query)
    mask = tasks.query_mask.float()
    return -(log_probabilities * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1.0)


def summed_meta_gradient(
    model: BertRecommender,
    tasks: TaskBatch,
    weights: Float[Tensor, " users"],
    id_mask: Bool[Tensor, " items"] | None = None,
) -> MetaGradient:
    """Return the meta-gradient summed over users with ``weights``, by one backward pass."""
    parameters = dict(model.named_parameters())
    losses = query_loss(model(tasks, id_mask), tasks)
    gradients = torch.autograd.grad((losses * weights).sum(), list(parameters.values()), materialize_grads=True)
    return MetaGradient(gradients=dict(zip(parameters, gradients, strict=True)), losses=losses.detach())


def per_user_meta_gradients(
    model: BertRecommender,
    tasks: TaskBatch,
    id_mask: Bool[Tensor, " items"] | None = None,
    users_at_once: int = 16,
) -> MetaGradient:
    """Return every user's own meta-gradient, [users, *shape of the parameter].

    Memory grows with ``users_at_once`` times the number of parameters on top of the result.
    """

    def loss_of_one(parameters: dict[str, Tensor], task: dict[str, Tensor]) -> Tensor:
        batch = TaskBatch(**{name: value[None] for name, value in task.items()})
        return query_loss(functional_call(model, parameters, (batch, id_mask)), batch)[0]

    parameters = {name: value.detach() for name, value in model.named_parameters()}
    gradients, losses = vmap(grad_and_value(loss_of_one), in_dims=(None, 0), chunk_size=users_at_once)(
        parameters, tasks.tensors()
    )
    return MetaGradient(gradients=gradients, losses=losses)
