"""The outer loop's gradient: the query loss after adaptation, differentiated with respect to the meta-initialization.

Three ways to the same numbers, on any batches of a cohort. Where nobody clips per user, the weighted sum over users
needs no per-user gradient: one pass forth and back over each batch, item vectors computed once for all. Where
somebody does and the inner loop has a closed form, per-user norms come from ghost norms and the clipped sum from a
second pass. Else, and as the oracle of tests, per-user gradients are formed by a vectorized map, a few users at a
time.
"""

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap

from metarec_shared.adaptation import USERS_AT_ONCE, ClosedForm
from metarec_shared.candidates import Candidates, sampled_query_losses
from metarec_shared.fused_inner_loop import Factors, FusedGradient, chunk_gradients, fused_gradient
from metarec_shared.ghost_norms import GRAM_ITEMS, ItemLayers, Rows, layer_squared_norms, recorded_uses
from metarec_shared.inner_loop import Items
from metarec_shared.meta_learning.adversarial import perturbed
from metarec_shared.model import BertRecommender
from metarec_shared.rating_head import rating_losses
from metarec_shared.tasks import TaskBatch

USERS_CLIPPED_AT_ONCE = 64
"""Users whose ghost norms are computed together; memory grows with it."""

logger = logging.getLogger(__name__)

_ITEM_LAYERS = ("projection.", "item_ids", "item_norm.")
_BIAS = "item_bias"


@dataclass(frozen=True, slots=True, kw_only=True)
class MetaGradient:
    """Gradients by parameter name, and the query losses they come from.

    Attributes:
        gradients: By parameter name; shaped like the parameter where summed, with a leading user dimension where
            per user.
        losses: Query loss of each user, [users].
        norms: Norm of each user's gradient before clipping, [users]; None where nobody asked.
    """

    gradients: dict[str, Tensor]
    losses: Tensor
    norms: Tensor | None = None


Batch = tuple[TaskBatch, Float[Tensor, " users"]]
"""Tasks, and the weight of each user's loss."""


@dataclass(slots=True, kw_only=True)
class _Sums:
    """What has been added up so far."""

    parameters: dict[str, nn.Parameter]
    gradients: dict[str, Tensor] = field(default_factory=dict)
    losses: list[Tensor] = field(default_factory=list)
    norms: list[Tensor] = field(default_factory=list)

    @classmethod
    def of(cls, model: nn.Module, released: Sequence[str] | None) -> "_Sums":
        return cls(parameters={name: p for name, p in model.named_parameters() if released is None or name in released})

    def add(self, names: Iterable[str], gradients: Iterable[Tensor | None]) -> None:
        """Add gradients; those of parameters that are not released, or None, are passed over."""
        for name, gradient in zip(names, gradients, strict=True):
            if gradient is not None and name in self.parameters:
                before = self.gradients.get(name)
                self.gradients[name] = gradient if before is None else before + gradient

    def result(self) -> MetaGradient:
        none = torch.zeros(0)
        return MetaGradient(
            gradients={
                name: self.gradients[name] if name in self.gradients else torch.zeros_like(value)
                for name, value in self.parameters.items()
            },
            losses=torch.cat(self.losses) if self.losses else none,
            norms=torch.cat(self.norms) if self.norms else None,
        )


def cohort_meta_gradient(
    model: BertRecommender,
    batches: Iterable[Batch],
    id_mask: Bool[Tensor, " items"] | None = None,
    *,
    clip_norm: float = 0.0,
    released: Sequence[str] | None = None,
    candidates: Candidates | None = None,
) -> MetaGradient:
    """Return the meta-gradient summed over the users of all ``batches`` with their weights.

    Args:
        model: The recommender at the meta-initialization.
        batches: The cohort; how it is cut changes nothing but memory and speed.
        id_mask: Items whose ID vector is on; None: all.
        clip_norm: Largest norm of a user's gradient over all released parameters; 0: nobody is clipped. A user
            whose gradient is not finite then contributes nothing.
        released: Names of the parameters to differentiate in; None: all.
        candidates: Items of the softmax, where inner loop and query loss are not over the whole catalogue; only for an
            inner loop in closed form, and without clipping.
    """
    sums = _Sums.of(model, released)
    if not isinstance(model.adaptation, ClosedForm):
        for tasks, weights in batches:
            _add_own_parameters(model, sums, tasks, weights, id_mask, clip_norm)
        return sums.result()
    with torch.enable_grad():
        E = model.item_vectors(id_mask).to(model.text.dtype)  # low precision is for products, not for sums
    layers = _item_layers(model, id_mask, sums) if clip_norm else None
    add = _ClosedForm(model, E.detach().requires_grad_(), sums, layers, clip_norm)
    for tasks, weights in batches:
        if candidates is not None:
            add.sampled(tasks, weights, candidates)
        elif layers is None:
            add.summed(tasks, weights)
        else:
            for start in range(0, len(tasks), USERS_CLIPPED_AT_ONCE):
                rows = slice(start, start + USERS_CLIPPED_AT_ONCE)
                add.clipped(tasks.rows(rows.start, rows.stop), weights[rows])
    _add_below(sums, E, add.vectors)
    return sums.result()


def separately_clipped_sum(
    model: nn.Module,
    users: Iterable[Callable[[], tuple[Any, Tensor]]],
    id_mask: Bool[Tensor, " items"] | None = None,
    *,
    clip_norm: float,
    released: Sequence[str] | None = None,
    gradient_of: Callable[[Any], MetaGradient] | None = None,
) -> MetaGradient:
    """Return the sum of clipped meta-gradients in a way that holds for any parameters, whoever chose them.

    ``cohort_meta_gradient`` is right to rounding. But parameters can be chosen so that rounding is all there is: then a
    ghost norm says little of the gradient that is released, and one user's presence in a batch changes the others'
    numbers. Here every user is computed alone, in the same way whoever else takes part; the norm is that of the very
    numbers that are added; and they are added in double precision. So one user more or less changes the sum by at most
    ``clip_norm`` (1 + 1e-6), and adversarial parameters cost utility, not privacy.

    Args:
        model: The recommender at the meta-initialization.
        users: Draws the task of each user, a batch of one. A user for whom anything fails, and one whose gradient is
            not finite, contributes nothing: an error would say that he is there.
        id_mask: Items whose ID vector is on; None: all.
        clip_norm: Largest norm of a user's gradient over all released parameters.
        released: Names of the parameters to differentiate in; None: all.
        gradient_of: Computes the gradient of one user, of another loss; None: the meta-gradient.

    Returns:
        Sums in double precision; losses and norms by user.
    """
    if gradient_of is None:
        assert isinstance(model, BertRecommender)
        gradient_of = _alone(model, id_mask, released)
    parameters = _Sums.of(model, released).parameters
    total = {name: torch.zeros_like(value, dtype=torch.float64) for name, value in parameters.items()}
    losses, norms = [], []
    for draw in users:
        loss = norm = 0.0
        try:
            task, weight = draw()
            each = gradient_of(task)
            squares = torch.stack([value.double().square().sum() for value in each.gradients.values()]).sum()
            contribution = clip_factors(squares, clip_norm) * weight[0].double()
            if bool(squares.isfinite()):
                loss, norm = float(each.losses[0]), float(squares.sqrt())
                for name, value in each.gradients.items():
                    total[name].add_(value.double() * contribution)
        except Exception:
            logger.warning("a user's meta-gradient could not be computed; it counts as zero")
        losses.append(loss)
        norms.append(norm)
    return MetaGradient(
        gradients=total,
        losses=torch.tensor(losses, dtype=torch.float64),
        norms=torch.tensor(norms, dtype=torch.float64),
    )


def _alone(
    model: BertRecommender, id_mask: Bool[Tensor, " items"] | None, released: Sequence[str] | None
) -> Callable[[TaskBatch], MetaGradient]:
    """Return what computes the meta-gradient of one user; item vectors are computed once for all."""
    if not isinstance(model.adaptation, ClosedForm):
        return lambda task: cohort_meta_gradient(model, [(task, _one(task))], id_mask, released=released)
    with torch.enable_grad():
        E = model.item_vectors(id_mask)

    def gradient_of(task: TaskBatch) -> MetaGradient:
        sums = _Sums.of(model, released)
        add = _ClosedForm(model, E.detach().requires_grad_(), sums, None, 0.0)
        add.summed(task, _one(task))
        _add_below(sums, E, add.vectors, keep=True)
        return sums.result()

    return gradient_of


def _one(task: TaskBatch) -> Tensor:
    return torch.ones(len(task), device=task.support.device)


def _add_below(sums: _Sums, E: Tensor, vectors: Tensor, *, keep: bool = False) -> None:
    """Add what gradients in the item vectors are in the layers below them."""
    below = {name: value for name, value in sums.parameters.items() if name.startswith(_ITEM_LAYERS)}
    if below:
        found = torch.autograd.grad(E, list(below.values()), vectors, allow_unused=True, retain_graph=keep)
        sums.add(below, found)


def summed_meta_gradient(
    model: BertRecommender,
    tasks: TaskBatch,
    weights: Float[Tensor, " users"],
    id_mask: Bool[Tensor, " items"] | None = None,
) -> MetaGradient:
    """Return the meta-gradient of one batch, summed over users with ``weights``."""
    return cohort_meta_gradient(model, [(tasks, weights)], id_mask)


def per_user_meta_gradients(
    model: BertRecommender,
    tasks: TaskBatch,
    id_mask: Bool[Tensor, " items"] | None = None,
    users_at_once: int = 16,
) -> MetaGradient:
    """Return every user's own meta-gradient, [users, *shape of the parameter].

    Memory grows with ``users_at_once`` times the number of parameters on top of the result.
    """
    meta_loss = _MetaLoss(model)

    def loss_of_one(parameters: dict[str, Tensor], task: dict[str, Tensor]) -> Tensor:
        batch = TaskBatch(**{name: value[None] for name, value in task.items()})
        losses: Tensor = functional_call(meta_loss, parameters, (batch, id_mask))
        return losses[0]

    parameters = {name: value.detach() for name, value in meta_loss.named_parameters()}
    gradients, losses = vmap(grad_and_value(loss_of_one), in_dims=(None, 0), chunk_size=users_at_once)(
        parameters, tasks.tensors()
    )
    named = {name.removeprefix("model."): value for name, value in gradients.items()}
    return MetaGradient(gradients=named, losses=losses)


class _MetaLoss(nn.Module):
    """What the meta-gradient is the gradient of, by user."""

    def __init__(self, model: BertRecommender) -> None:
        super().__init__()
        self.model = model

    def forward(self, tasks: TaskBatch, id_mask: Tensor | None) -> Tensor:
        return _losses(self.model, tasks, id_mask)


def _losses(model: BertRecommender, tasks: TaskBatch, id_mask: Tensor | None) -> Tensor:
    """Return what the meta-gradient is the gradient of, by user: of the meta-learner, and of predicted ratings."""
    E = model.item_vectors(id_mask)
    losses = model.adaptation.losses(model, tasks, E, id_mask)
    predicted = None if tasks.query_feedback is None else model.ratings(tasks, E[tasks.query], E)
    return losses if predicted is None else losses + model.rating_weight * rating_losses(predicted, tasks)


def clip_factors(squared_norms: Float[Tensor, " users"], clip_norm: float) -> Float[Tensor, " users"]:
    """Return min(1, clip norm / norm) of each user, 0 where the norm is not finite."""
    factors = (clip_norm / squared_norms.clamp(min=0.0).sqrt()).clamp(max=1.0)  # rounding leaves a zero below zero
    return torch.where(squared_norms.isfinite(), factors, 0.0)


class _ClosedForm:
    """Adds batches of a cohort whose inner loop is a recursion on user vectors."""

    def __init__(
        self, model: BertRecommender, E: Tensor, sums: _Sums, layers: ItemLayers | None, clip_norm: float
    ) -> None:
        assert isinstance(model.adaptation, ClosedForm)
        self._model, self._adaptation = model, model.adaptation
        self._E, self._sums, self._layers, self._clip_norm = E, sums, layers, clip_norm
        self._items = Items(E.detach(), model.item_bias.detach())
        self._body = {
            name: value
            for name, value in sums.parameters.items()
            if not name.startswith(_ITEM_LAYERS) and name != _BIAS
        }
        self._released = frozenset(self._body.values())
        self.vectors = torch.zeros_like(E)

    def summed(self, tasks: TaskBatch, weights: Tensor) -> None:
        part, way_back, rows, h = self._fused(self._perturbed(tasks), weights)
        second, asked = self._second_task(h, tasks)
        self._sums.losses.append(part.losses + sum(loss.detach() for loss in second))
        way_back += [(loss, weights) for loss in second]
        *back, of_rows, of_asked = _differentiate(way_back, [*self._body.values(), rows, asked])
        self._sums.add(self._body, back)
        self.vectors += part.vectors
        if of_rows is not None:
            self.vectors.index_add_(0, tasks.support.flatten(), of_rows.flatten(0, 1))
        if of_asked is not None:
            self.vectors.index_add_(0, tasks.query.flatten(), of_asked.flatten(0, 1))
        self._sums.add([_BIAS], [part.bias])

    def _second_task(self, h: Tensor, tasks: TaskBatch, E: Tensor | None = None) -> tuple[list[Tensor], Tensor | None]:
        """Return users' losses of predicted ratings, and the query items' vectors to differentiate them in.

        Args:
            h: User vectors before adaptation.
            tasks: Of a batch.
            E: The item vectors if they are differentiated in themselves; None: their query rows are.
        """
        model = self._model
        if model.rating_head is None or tasks.query_feedback is None:
            return [], None
        asked = self._items.vectors[tasks.query].requires_grad_() if E is None else E[tasks.query]
        return [model.rating_weight * rating_losses(model.rating_head(h, asked), tasks)], asked

    def _fused(
        self, tasks: TaskBatch, weights: Tensor
    ) -> tuple[FusedGradient, list[tuple[Tensor, Tensor]], Tensor, Tensor]:
        """Return the fused gradient, what it is to be passed on to, the rows that were read, what the body wrote."""
        rows = self._items.vectors[tasks.support].requires_grad_()
        encoded = self._model.read(tasks, rows, joined=True)
        written = self._model.head(encoded)
        h = self._adaptation.start(written, rows, tasks)
        own = self._adaptation.user_rates(encoded, tasks)
        with torch.no_grad():
            support = self._adaptation.support(h, own, self._items, tasks)
            part = fused_gradient(
                h, own, self._items, tasks, weights, learner=self._adaptation.learner, support=support
            )  # fmt: skip
        return part, [(h, part.h), (own, part.rates)], rows, written

    def _perturbed(self, tasks: TaskBatch) -> TaskBatch:
        """Return tasks read where it hurts, if the settings say so."""
        radius = self._adaptation.perturbation
        if not radius or tasks.perturbation is not None:
            return tasks
        delta = torch.zeros_like(self._items.vectors[tasks.support]).requires_grad_()
        ones = delta.new_ones(len(tasks))
        _, way_back, _, _ = self._fused(replace(tasks, perturbation=delta), ones)
        (gradient,) = _differentiate(way_back, [delta])
        return tasks if gradient is None else perturbed(tasks, gradient, radius)

    def sampled(self, tasks: TaskBatch, weights: Tensor, candidates: Candidates) -> None:
        bias = self._model.item_bias
        encoded = self._model.encode(tasks, self._E)
        own = self._adaptation.user_rates(encoded, tasks)
        h = self._model.head(encoded)
        losses = sampled_query_losses(
            h, own, Items(self._E, bias), tasks, candidates,
            second_order=self._adaptation.learner.second_order,
        )  # fmt: skip
        losses = losses + sum(self._second_task(h, tasks, self._E)[0])
        self._sums.losses.append(losses.detach())
        *back, of_vectors, of_bias = _differentiate([(losses, weights)], [*self._body.values(), self._E, bias])
        self._sums.add(self._body, back)
        assert of_vectors is not None
        assert of_bias is not None
        self.vectors += of_vectors
        self._sums.add([_BIAS], [of_bias])

    def clipped(self, tasks: TaskBatch, weights: Tensor) -> None:
        """Add users clipped: norms from a first way back, the sum of the clipped gradients from a second."""
        model, layers = self._model, self._layers
        assert layers is not None
        tasks = self._perturbed(tasks)
        rows = self._items.vectors[tasks.support].requires_grad_()
        raw = {
            name: value.detach().expand(len(tasks), *value.shape).clone().requires_grad_()
            for name, value in self._adaptation.rate_parameters().items()
        }
        layered = [part for part in (model.encoder, model.head, model.rating_head) if part is not None]
        with recorded_uses(*layered, *self._adaptation.children()) as uses:
            encoded = model.read(tasks, rows)
            written = model.head(encoded)
            h = self._adaptation.start(written, rows, tasks)
            second, asked = self._second_task(written, tasks)
        own = self._adaptation.user_rates(encoded, tasks, raw)
        with torch.no_grad():
            support = self._adaptation.support(h, own, self._items, tasks)
            (part,) = chunk_gradients(
                h, own, self._items, tasks, torch.ones_like(weights),
                learner=self._adaptation.learner, support=support, users_at_once=len(tasks),
            )  # fmt: skip
        way_back = [(h, part.h), (own, part.rates), *((loss, torch.ones_like(loss)) for loss in second)]
        inputs = [*(use.returned for use in uses), rows, asked, *raw.values()]
        found = _differentiate(way_back, inputs, keep=True)
        of_uses, of_rows, of_asked = found[: len(uses)], *found[len(uses) : len(uses) + 2]
        of_raw = {
            f"adaptation.{name}": value
            for name, value in zip(raw, found[len(uses) + 2 :], strict=True)
            if value is not None
        }
        with torch.no_grad():
            values = support.weights[:, :, None] * part.factors.target[:, None]
            if of_rows is not None:
                values[:, : of_rows.shape[1]] += of_rows
            single = Rows(support.items, values)
            if of_asked is not None:
                single = Rows(torch.cat([single.items, tasks.query], 1), torch.cat([single.values, of_asked], 1))
            squares = layers.squared_norms(part.factors, single)
            for use, gradient in zip(uses, of_uses, strict=True):
                if gradient is not None:
                    squares = squares + layer_squared_norms(use, gradient, self._released)
            for name, gradient in of_raw.items():
                if name in self._body:
                    squares = squares + gradient.flatten(1).square().sum(dim=1)
        whole = squares.isfinite()
        if not whole.all():
            self._without(~whole, tasks, weights)
            return
        scale = clip_factors(squares, self._clip_norm) * weights
        self._sums.losses.append(part.losses + sum(loss.detach() for loss in second))
        self._sums.norms.append(squares.clamp(min=0.0).sqrt())
        with torch.no_grad():
            self._add_factors(part.factors, single, scale)
        layers_only = {name: value for name, value in self._body.items() if name not in of_raw}
        scaled = [(h, part.h * scale[:, None]), (own, part.rates * scale[:, None, None])]
        scaled += [(loss, scale) for loss in second]
        self._sums.add(layers_only, _differentiate(scaled, list(layers_only.values())))
        self._sums.add(of_raw, (torch.tensordot(scale, value, dims=1) for value in of_raw.values()))

    def _without(self, broken: Tensor, tasks: TaskBatch, weights: Tensor) -> None:
        """Add a batch without its users whose gradient is not finite: they count with a loss and a norm of 0."""
        kept = (~broken).nonzero()[:, 0]
        if len(kept):
            self.clipped(tasks.take(kept), weights[kept])
        nothing = weights.new_zeros(len(tasks) - len(kept))
        self._sums.losses.append(nothing)
        self._sums.norms.append(nothing)

    def _add_factors(self, factors: Factors, single: Rows, scale: Tensor) -> None:
        right = factors.right * scale[:, None]
        self.vectors.addmm_(factors.left.flatten(0, 1).T, right.flatten(0, 1))
        self.vectors.index_add_(0, single.items.flatten(), (single.values * scale[:, None, None]).flatten(0, 1))
        self._sums.add([_BIAS], [scale @ factors.left[-factors.scored :].sum(dim=0)])


def _differentiate(
    outputs: Iterable[tuple[Tensor, Tensor]], inputs: Sequence[Tensor | None], *, keep: bool = False
) -> list[Tensor | None]:
    """Return the gradients in ``inputs`` of outputs with given gradients; None where there is no way back."""
    live = [(output, gradient) for output, gradient in outputs if output.requires_grad]
    wanted = [value for value in inputs if value is not None and value.requires_grad]
    if not live or not wanted:
        return [None] * len(inputs)
    values, gradients = zip(*live, strict=True)
    gradients = tuple(gradient.to(value.dtype) for gradient, value in zip(gradients, values, strict=True))
    found = iter(torch.autograd.grad(values, wanted, gradients, retain_graph=keep, allow_unused=True))
    return [next(found) if value is not None and value.requires_grad else None for value in inputs]


def _item_layers(model: BertRecommender, id_mask: Tensor | None, sums: _Sums) -> ItemLayers:
    with torch.no_grad():
        return ItemLayers.of(
            model.before_norm(id_mask),
            model.item_norm,
            model.text,
            id_mask,
            frozenset(sums.parameters),
            model.text_products() if len(model.text) <= GRAM_ITEMS else None,
        )


def _perturbed(model: BertRecommender, tasks: TaskBatch, id_mask: Tensor | None) -> TaskBatch:
    """Return tasks read where it hurts, if the settings say so; by autograd."""
    if not model.adaptation.perturbation:
        return tasks
    E = model.item_vectors(id_mask).detach()
    delta = torch.zeros_like(E[tasks.support]).requires_grad_()
    losses = model.adaptation.losses(model, replace(tasks, perturbation=delta), E, id_mask)
    (gradient,) = torch.autograd.grad(losses.sum(), [delta])
    return perturbed(tasks, gradient, model.adaptation.perturbation)


def _add_own_parameters(
    model: BertRecommender, sums: _Sums, tasks: TaskBatch, weights: Tensor, id_mask: Tensor | None, clip_norm: float
) -> None:
    """Add a batch of users each of whom has parameters of the body of his own."""
    tasks = _perturbed(model, tasks, id_mask)
    if not clip_norm:
        losses = _losses(model, tasks, id_mask)
        found = torch.autograd.grad((losses * weights).sum(), list(sums.parameters.values()), allow_unused=True)
        sums.add(sums.parameters, found)
        sums.losses.append(losses.detach())
        return
    for start in range(0, len(tasks), USERS_AT_ONCE):
        rows = slice(start, start + USERS_AT_ONCE)
        each = per_user_meta_gradients(model, tasks.rows(rows.start, rows.stop), id_mask, USERS_AT_ONCE)
        own = {name: each.gradients[name] for name in sums.parameters}
        squares = torch.stack([value.flatten(1).square().sum(dim=1) for value in own.values()]).sum(dim=0)
        whole = squares.isfinite()
        scale = clip_factors(squares, clip_norm)[whole] * weights[rows][whole]
        sums.add(own, (torch.tensordot(scale, value[whole], dims=1) for value in own.values()))
        sums.losses.append(torch.where(whole, each.losses, 0.0))
        sums.norms.append(torch.where(whole, squares.sqrt(), 0.0))
