"""Gradients of a loss of pre-training, summed over users: what a meta-gradient is to a round of meta-learning.

Where nobody clips, one pass forth and back over each batch, item vectors computed once for all; else per-user
gradients by a vectorized map, a few users at a time.
"""

from collections.abc import Callable, Iterable, Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap

from metarec_shared.adaptation import USERS_AT_ONCE
from metarec_shared.meta_gradient import MetaGradient, clip_factors, separately_clipped_sum
from metarec_shared.model import BertRecommender
from metarec_shared.pretraining.histories import HistoryBatch
from metarec_shared.pretraining.objective import Objective

Batch = tuple[HistoryBatch, Float[Tensor, " users"]]
"""Histories, and the weight of each user's loss."""


class _Losses(nn.Module):
    """The losses of a batch as the output of one module, so that its parameters can be replaced."""

    def __init__(
        self, model: BertRecommender, objective: Objective, id_mask: Bool[Tensor, " items"] | None, public: Tensor
    ) -> None:
        super().__init__()
        self.model = model
        self._objective, self._id_mask, self._public = objective, id_mask, public

    def forward(self, batch: HistoryBatch) -> Float[Tensor, " users"]:
        return self._objective.losses(self.model, batch, self.model.item_vectors(self._id_mask), self._public)


def cohort_gradient(
    model: BertRecommender,
    objective: Objective,
    batches: Iterable[Batch],
    id_mask: Bool[Tensor, " items"] | None = None,
    *,
    public: Tensor,
    clip_norm: float = 0.0,
    released: Sequence[str] | None = None,
) -> MetaGradient:
    """Return the gradient of the loss summed over the users of all ``batches`` with their weights.

    Args:
        model: The recommender.
        objective: The loss.
        batches: The cohort; how it is cut changes nothing but memory and speed.
        id_mask: Items whose ID vector is on; None: all.
        public: What ``objective.public`` drew for the round.
        clip_norm: Largest norm of a user's gradient over all released parameters; 0: nobody is clipped. A user whose
            gradient is not finite then contributes nothing.
        released: Names of the parameters to differentiate in; None: all.
    """
    parameters = {name: p for name, p in model.named_parameters() if released is None or name in released}
    sums = {name: torch.zeros_like(value) for name, value in parameters.items()}
    losses, norms = [torch.zeros(0, device=model.text.device)], []
    if clip_norm:
        losses_of = _Losses(model, objective, id_mask, public)
        for batch, weights in batches:
            each = _per_user(losses_of, parameters, batch)
            squares = torch.stack([v.flatten(1).square().sum(dim=1) for v in each.gradients.values()]).sum(dim=0)
            whole = squares.isfinite()
            scale = (clip_factors(squares, clip_norm) * weights)[whole]
            for name, value in each.gradients.items():
                sums[name] += torch.tensordot(scale, value[whole], dims=1)
            losses.append(torch.where(whole, each.losses, 0.0))
            norms.append(torch.where(whole, squares.sqrt(), 0.0))
        return MetaGradient(gradients=sums, losses=torch.cat(losses), norms=torch.cat(norms) if norms else None)
    with torch.enable_grad():
        E = model.item_vectors(id_mask)
        rows = E.detach().requires_grad_()
        vectors = torch.zeros_like(rows)
        for batch, weights in batches:
            found = objective.losses(model, batch, rows, public)
            of_rows, *gradients = torch.autograd.grad(
                (found * weights).sum(), [rows, *parameters.values()], allow_unused=True
            )
            vectors += of_rows
            _add(sums, gradients)
            losses.append(found.detach())
        if E.grad_fn is not None:
            _add(sums, torch.autograd.grad(E, list(parameters.values()), vectors, allow_unused=True))
    return MetaGradient(gradients=sums, losses=torch.cat(losses))


def _add(sums: dict[str, Tensor], gradients: Sequence[Tensor | None]) -> None:
    for total, gradient in zip(sums.values(), gradients, strict=True):
        if gradient is not None:
            total += gradient


def separately_clipped_gradient(
    model: BertRecommender,
    objective: Objective,
    users: Iterable[Callable[[], Batch]],
    id_mask: Bool[Tensor, " items"] | None = None,
    *,
    public: Tensor,
    clip_norm: float,
    released: Sequence[str] | None = None,
) -> MetaGradient:
    """Return the sum of clipped gradients, each user computed alone, in double precision.

    See ``meta_gradient.separately_clipped_sum``, which says why.
    """

    def gradient_of(history: HistoryBatch) -> MetaGradient:
        one = torch.ones(1, device=history.items.device)
        return cohort_gradient(model, objective, [(history, one)], id_mask, public=public, released=released)

    return separately_clipped_sum(
        model, users, id_mask, clip_norm=clip_norm, released=released, gradient_of=gradient_of
    )


def _per_user(losses_of: _Losses, parameters: dict[str, nn.Parameter], batch: HistoryBatch) -> MetaGradient:
    """Return every user's own gradient, [users, *shape of the parameter]."""

    def loss_of_one(own: dict[str, Tensor], history: dict[str, Tensor]) -> Tensor:
        alone = HistoryBatch(**{name: value[None] for name, value in history.items()})
        losses: Tensor = functional_call(losses_of, {f"model.{name}": value for name, value in own.items()}, (alone,))
        return losses[0]

    detached = {name: value.detach() for name, value in parameters.items()}
    gradients, losses = vmap(grad_and_value(loss_of_one), in_dims=(None, 0), chunk_size=USERS_AT_ONCE)(
        detached, batch.tensors()
    )
    return MetaGradient(gradients=gradients, losses=losses)
