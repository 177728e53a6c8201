"""The inner loop: gradient steps on each user's support loss, for what is adapted by name.

    theta_u^0 = theta (the meta-initialization),   theta_u^{k+1} = theta_u^k - a_k * dL_support(theta_u^k) / dtheta_u^k

with inner learning rates a_k that are fixed, or meta-learned with everything else as in Meta-SGD. The support loss is
the cross-entropy of the support items over the whole catalogue, averaged over the support set; a user without support
items keeps the initialization. Users never share adapted state, so the gradient of the summed loss with respect to
stacked per-user state is the stack of per-user gradients, and one pass adapts a whole cohort.

References:
    Finn, Abbeel and Levine (2017), Model-agnostic meta-learning, equation 1. Li et al. (2017), Meta-SGD, equation 2.
"""

import math
from abc import abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F

from metarec_shared.settings import AdaptationSettings
from metarec_shared.tasks import TaskBatch

if TYPE_CHECKING:
    from metarec_shared.model import BertRecommender

State = dict[str, Tensor]
"""What the inner loop changes: named tensors with a leading user dimension."""

Scores = Callable[[State], Tensor]
"""Scores [users, items] of the catalogue as a function of the adapted state."""

USERS_AT_ONCE = 16
"""Users whose own copies of the body are evaluated together; memory grows with it, speed hardly does."""


class Context(NamedTuple):
    """What an inner loop runs on: the model, the users' tasks, item vectors ``E`` [items, width], ID vectors on."""

    model: "BertRecommender"
    tasks: TaskBatch
    E: Tensor
    id_mask: Tensor | None


class Start(NamedTuple):
    """Where the inner loop begins.

    Attributes:
        state: The meta-initialization of what is adapted, one row a user.
        scores: Scores of the catalogue as a function of such a state.
    """

    state: State
    scores: Scores


def support_loss(scores: Float[Tensor, "users items"], tasks: TaskBatch) -> Float[Tensor, " users"]:
    """Return each user's mean cross-entropy of the support items, 0 for an empty support set."""
    log_probabilities = F.log_softmax(scores, dim=-1).gather(1, tasks.support)
    return -(log_probabilities * support_weights(tasks, scores.dtype)).sum(dim=1)


def support_weights(tasks: TaskBatch, dtype: torch.dtype) -> Float[Tensor, "users support"]:
    """Return the weight of each support item in its user's loss: 1 / support size, 0 for padding."""
    mask = tasks.support_mask.to(dtype)
    return mask / mask.sum(dim=1, keepdim=True).clamp(min=1.0)


class Adaptation(nn.Module):
    """The inner loop over one choice of adapted parameters.

    Subclasses say where the loop starts and how scores depend on the adapted state.
    """

    default_learning_rate: float
    """Inner learning rate where the settings give none: gradients of different choices differ in scale."""

    def __init__(self, settings: AdaptationSettings, rate_shape: tuple[int, ...] = ()) -> None:
        super().__init__()
        self.steps = settings.steps
        self.second_order = settings.order == "second"
        rate = settings.learning_rate or self.default_learning_rate
        shape = (settings.steps, *rate_shape)
        self.learned = settings.learned and settings.steps > 0
        if self.learned:
            self.raw_rates = nn.Parameter(torch.full(shape, math.log(math.expm1(rate))))
        else:
            self.register_buffer("fixed_rates", torch.full(shape, rate), persistent=False)

    @abstractmethod
    def start(self, context: Context) -> Start:
        """Return the initial state of every user and the scores as a function of the state."""

    def forward(
        self, model: "BertRecommender", tasks: TaskBatch, id_mask: Bool[Tensor, " items"] | None
    ) -> Float[Tensor, "users items"]:
        """Return the catalogue's scores after the inner loop."""
        context = Context(model, tasks, model.item_vectors(id_mask), id_mask)
        state, scores = self.start(context)
        for rates in self.rates():
            gradient = self.support_gradient(context, state, scores)
            if not self.second_order:
                gradient = {name: value.detach() for name, value in gradient.items()}
            state = {name: value - rates * gradient[name] for name, value in state.items()}
        return scores(state)

    def rates(self) -> Float[Tensor, "steps ..."]:
        """Return the inner learning rates, one row a step; learned ones are kept positive by a softplus."""
        return F.softplus(self.raw_rates) if self.learned else self.fixed_rates  # type: ignore[return-value]

    def support_gradient(self, context: Context, state: State, scores: Scores) -> State:
        """Return the gradient of each user's support loss with respect to that user's state."""
        gradient: State = grad(lambda s: support_loss(scores(s), context.tasks).sum())(state)
        return gradient


class UserVector(Adaptation):
    """Adapts the user vector that the body wrote: a few numbers a user, and the body runs once.

    Inner learning rates: one a step and dimension.
    """

    default_learning_rate = 0.5

    def __init__(self, settings: AdaptationSettings, width: int) -> None:
        super().__init__(settings, (width,))

    def start(self, context: Context) -> Start:
        """Start from the user vector of the meta-initialization."""
        model, tasks, E, _ = context
        h = model.head(model.encode(tasks, E))
        return Start({"user_vector": h}, lambda state: model.scores(state["user_vector"], E))

    def support_gradient(self, context: Context, state: State, scores: Scores) -> State:
        """Return the gradient in closed form, (softmax(h E' + b) - target) E: no graph of a graph is needed."""
        _, tasks, E, _ = context
        weights = support_weights(tasks, E.dtype)
        target = torch.einsum("us,usd->ud", weights, E[tasks.support])
        expected = F.softmax(scores(state), dim=-1) @ E
        return {"user_vector": expected * weights.sum(dim=1, keepdim=True) - target}


class Head(Adaptation):
    """Adapts the linear layer that turns the body's output into the user vector; the body runs once.

    Inner learning rates: one a step.
    """

    default_learning_rate = 0.005

    def start(self, context: Context) -> Start:
        """Start from the meta-initialization of the head."""
        model, tasks, E, _ = context
        encoded = model.encode(tasks, E)
        state = _copies({"weight": model.head.weight, "bias": model.head.bias}, len(tasks))

        def scores(state: State) -> Tensor:
            h = torch.einsum("uoi,ui->uo", state["weight"], encoded) + state["bias"]
            return model.scores(h, E)

        return Start(state, scores)


class LowRank(Adaptation):
    """Adapts a low-rank update A B of every attention projection of the body (LoRA).

    A starts at a meta-learned initialization and B at zero, so the initial update is zero. Inner learning rates: one
    a step.

    References:
        Hu et al. (2021), LoRA, section 4.1.
    """

    default_learning_rate = 0.05

    def __init__(self, settings: AdaptationSettings, width: int) -> None:
        super().__init__(settings)
        self.down = nn.Parameter(torch.randn(width, settings.lora_rank) / math.sqrt(width))

    def start(self, context: Context) -> Start:
        """Start from the body's own weights."""
        body = dict(context.model.named_parameters())
        adapted = [name for name in body if name.startswith("encoder.") and _is_attention_projection(name)]
        initial: State = {f"{name}.down": self.down for name in adapted}
        initial |= {f"{name}.up": torch.zeros_like(self.down).T for name in adapted}

        def weights(state: State) -> State:
            return {name: body[name] + (state[f"{name}.down"] @ state[f"{name}.up"]).T for name in adapted}

        return _start_with_own_parameters(context, initial, weights)


class Everything(Adaptation):
    """Adapts every parameter of the recommender, a copy a user: MAML as published, and as costly.

    Inner learning rates: one a step.
    """

    default_learning_rate = 0.005

    def start(self, context: Context) -> Start:
        """Start from a copy of the whole meta-initialization for every user."""
        parameters: State = {n: p for n, p in context.model.named_parameters() if not n.startswith("adaptation.")}
        return _start_with_own_parameters(context, parameters, lambda state: state)


def _start_with_own_parameters(context: Context, initial: State, parameters: Callable[[State], State]) -> Start:
    """Start from a copy of ``initial`` a user; ``parameters`` turns one user's copy into parameters of the model."""
    model, tasks, _, id_mask = context

    def scores_of_one(state: State, task: dict[str, Tensor]) -> Tensor:
        batch = TaskBatch(**{name: value[None] for name, value in task.items()})
        scored: Tensor = functional_call(model, parameters(state), (batch, id_mask), {"adapt": False})
        return scored[0]

    def scores(state: State) -> Tensor:
        scored: Tensor = vmap(scores_of_one, chunk_size=USERS_AT_ONCE)(state, tasks.tensors())
        return scored

    return Start(_copies(initial, len(tasks)), scores)


def _copies(tensors: State, users: int) -> State:
    return {name: value.expand(users, *value.shape) for name, value in tensors.items()}


def _is_attention_projection(name: str) -> bool:
    return name.endswith("weight") and ".attention." in name and "LayerNorm" not in name


def build_adaptation(settings: AdaptationSettings, width: int) -> Adaptation:
    """Return the inner loop that the settings name."""
    match settings.parameters:
        case "user-vector":
            return UserVector(settings, width)
        case "head":
            return Head(settings)
        case "lora":
            return LowRank(settings, width)
        case "all":
            return Everything(settings)
