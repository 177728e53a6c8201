"""What the inner loop adapts, by name, and where it starts.

    theta_u^0 = theta (the meta-initialization),   theta_u^{k+1} = theta_u^k - a_k * dL_support(theta_u^k) / dtheta_u^k

with inner learning rates a_k that are fixed, or meta-learned with everything else as in Meta-SGD. The support loss is
the cross-entropy of the support items over the whole catalogue, averaged over the support set; a user without support
items keeps the initialization. How users step, and what is learned from it, is the meta-learner's (``meta_learning``).

Two families. Where only the user vector or the layer that writes it is adapted, the whole loop is a recursion on user
vectors in closed form (``inner_loop``), and the body runs once for all users. Where the body itself is adapted, every
user has parameters of his own: users never share adapted state, so the gradient of the summed loss with respect to
stacked per-user state is the stack of per-user gradients, and one pass adapts many.

References:
    Finn, Abbeel and Levine (2017), Model-agnostic meta-learning, equation 1. Li et al. (2017), Meta-SGD, equation 2.
"""

import math
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F

from metarec_shared.inner_loop import Items, Support, query_loss, scores
from metarec_shared.meta_learning import build_meta_learner
from metarec_shared.meta_learning.hypernetwork import Hypernetwork
from metarec_shared.meta_learning.self_training import with_pseudo_labels
from metarec_shared.settings import AdaptationSettings
from metarec_shared.tasks import TaskBatch

if TYPE_CHECKING:
    from metarec_shared.model import BertRecommender

State = dict[str, Tensor]
"""What the inner loop changes: named tensors with a leading user dimension."""

FIRST_EVIDENCE = 3.0
"""kappa before it is learned: with as many support items, inner learning rates are half of what they can be."""

USERS_AT_ONCE = 16
"""Users whose own copies of the body are evaluated together; memory grows with it, speed hardly does."""


def support_loss(scored: Float[Tensor, "users items"], tasks: TaskBatch) -> Float[Tensor, " users"]:
    """Return each user's mean cross-entropy of the support items, 0 for an empty support set."""
    support = Support.of(tasks, scored.dtype)
    return -(F.log_softmax(scored, dim=-1).gather(1, support.items) * support.weights).sum(dim=1)


class Adaptation(nn.Module):
    """The inner loop over one choice of adapted parameters."""

    default_learning_rate: float
    """Inner learning rate where the settings give none: gradients of different choices differ in scale."""

    def __init__(self, settings: AdaptationSettings, rate_shape: tuple[int, ...] = ()) -> None:
        super().__init__()
        self.steps = settings.steps
        self.learner = build_meta_learner(settings)
        self.perturbation = settings.perturbation
        rate = settings.learning_rate or self.default_learning_rate
        shape = (settings.steps, *rate_shape)
        self.learned = self.learner.learned_rates and settings.steps > 0
        if self.learned:
            self.raw_rates = nn.Parameter(torch.full(shape, math.log(math.expm1(rate))))
        else:
            self.register_buffer("fixed_rates", torch.full(shape, rate), persistent=False)

    @abstractmethod
    def forward(
        self, model: "BertRecommender", tasks: TaskBatch, E: Tensor, id_mask: Bool[Tensor, " items"] | None
    ) -> Float[Tensor, "users items"]:
        """Return the catalogue's scores after the inner loop; ``E`` are the meta-initialization's item vectors."""

    def losses(
        self, model: "BertRecommender", tasks: TaskBatch, E: Tensor, id_mask: Bool[Tensor, " items"] | None
    ) -> Float[Tensor, " users"]:
        """Return each user's query loss after the inner loop, whose gradient by autograd is the meta-gradient."""
        return query_loss(self(model, tasks, E, id_mask), tasks)

    def rates(self) -> Float[Tensor, "steps ..."]:
        """Return the inner learning rates, one row a step; learned ones are kept positive by a softplus."""
        return F.softplus(self.raw_rates) if self.learned else self.fixed_rates  # type: ignore[return-value]


class ClosedForm(Adaptation):
    """An inner loop that is a recursion on user vectors: the body runs once, and a few numbers a user are adapted."""

    def __init__(self, settings: AdaptationSettings, rate_shape: tuple[int, ...] = ()) -> None:
        super().__init__(settings, rate_shape)
        self._pseudo_labels, self._pseudo_weight = settings.pseudo_labels, settings.pseudo_weight
        self.weighs_evidence = self.learned and settings.evidence
        if self.weighs_evidence:
            self.raw_evidence = nn.Parameter(torch.full_like(self.raw_rates, math.log(math.expm1(FIRST_EVIDENCE))))

    def rate_parameters(self) -> dict[str, nn.Parameter]:
        """Return the parameters that inner learning rates are made of, by name; none where the rates are fixed."""
        return dict(self.named_parameters(recurse=False))

    def user_rates(
        self, encoded: Float[Tensor, "users width"], tasks: TaskBatch, own: Mapping[str, Tensor] | None = None
    ) -> Float[Tensor, "users steps width"]:
        """Return the learning rates of the recursion on user vectors.

        With n support items rates are a n / (n + kappa), kappa learned: a few items say less than many.

        Args:
            encoded: What the body wrote.
            tasks: The support sets.
            own: ``rate_parameters``, a copy a user; None: one for all.
        """
        values = {name: value[None] for name, value in self.rate_parameters().items()} if own is None else own
        rates = F.softplus(values["raw_rates"]) if self.learned else self.rates()[None]
        rates = rates.expand(encoded.shape[0], *rates.shape[1:])
        if self.weighs_evidence:
            n = tasks.counted(rates.dtype).sum(dim=1).view(-1, *(1 for _ in rates.shape[1:]))
            rates = rates * n / (n + F.softplus(values["raw_evidence"]))
        return self.reaching(encoded, rates)

    @abstractmethod
    def reaching(
        self, encoded: Float[Tensor, "users width"], rates: Float[Tensor, "users steps ..."]
    ) -> Float[Tensor, "users steps width"]:
        """Return how far steps with ``rates`` move a user vector, over the support loss's gradient."""

    def start(self, h: Tensor, rows: Float[Tensor, "users support width"], tasks: TaskBatch) -> Tensor:
        """Return where the inner loop starts.

        Args:
            h: What the head wrote, [users, width].
            rows: Vectors of the support items.
            tasks: The support sets.
        """
        return h

    def support(self, h: Tensor, rates: Tensor, items: Items, tasks: TaskBatch) -> Support:
        """Return what users adapt to from ``h``: their support sets, and pseudo-labels if there are to be any."""
        support = Support.of(tasks, h.dtype)
        if not self._pseudo_labels:
            return support
        if tasks.weights is None:  # constants of every derivative but that in the weights
            h, rates = h.detach(), rates.detach()
        with torch.set_grad_enabled(torch.is_grad_enabled() and tasks.weights is not None):
            adapted = self.learner.adapt(h, rates, items, support)
            return with_pseudo_labels(support, adapted, items, tasks, self._pseudo_labels, self._pseudo_weight)

    def forward(
        self, model: "BertRecommender", tasks: TaskBatch, E: Tensor, id_mask: Bool[Tensor, " items"] | None
    ) -> Float[Tensor, "users items"]:
        """Return the catalogue's scores after the inner loop."""
        h, rates, items, support = self._before(model, tasks, E)
        return scores(self.learner.adapt(h, rates, items, support), items)

    def losses(
        self, model: "BertRecommender", tasks: TaskBatch, E: Tensor, id_mask: Bool[Tensor, " items"] | None
    ) -> Float[Tensor, " users"]:
        """Return what the meta-learner learns from."""
        return self.learner.losses(*self._before(model, tasks, E), tasks)

    def _before(self, model: "BertRecommender", tasks: TaskBatch, E: Tensor) -> tuple[Tensor, Tensor, Items, Support]:
        encoded, items = model.encode(tasks, E), model.items(E)
        own = self.user_rates(encoded, tasks)
        h = self.start(model.head(encoded), E[tasks.support], tasks)
        return h, own, items, self.support(h, own, items, tasks)


class UserVector(ClosedForm):
    """Adapts the user vector that the body wrote. Inner learning rates: one a step and dimension."""

    default_learning_rate = 0.5

    def __init__(self, settings: AdaptationSettings, width: int) -> None:
        super().__init__(settings, (width,))

    def reaching(self, encoded: Tensor, rates: Tensor) -> Tensor:
        """Return the rates as they are."""
        return rates


class GeneratedUserVector(UserVector):
    """Adapts the user vector as a network writes that reads the support set; no step is taken."""

    def __init__(self, settings: AdaptationSettings, width: int) -> None:
        super().__init__(replace(settings, steps=0), width)
        self.hypernetwork = Hypernetwork(width)

    def start(self, h: Tensor, rows: Tensor, tasks: TaskBatch) -> Tensor:
        """Return the generated user vectors."""
        adapted: Tensor = self.hypernetwork(h, rows, tasks.counted(h.dtype))
        return adapted


class Head(ClosedForm):
    """Adapts the linear layer that turns the body's output into the user vector. Inner learning rates: one a step.

    With user vector h = W x + c, the support loss has gradient (dL/dh) x' in W and dL/dh in c, so one step moves h by
    a (x'x + 1) dL/dh: no user needs a W of his own.
    """

    default_learning_rate = 0.005

    def reaching(self, encoded: Tensor, rates: Tensor) -> Tensor:
        """Return a_k (x'x + 1) for every dimension; in a first-order loop one of the two x is a constant."""
        other = encoded if self.learner.second_order else encoded.detach()
        reach = 1.0 + (encoded * other).sum(dim=-1, keepdim=True)
        return (rates * reach)[:, :, None].expand(-1, -1, encoded.shape[-1])


class OwnParameters(Adaptation):
    """An inner loop in which every user has parameters of the body of his own."""

    @abstractmethod
    def initial(self, model: "BertRecommender") -> State:
        """Return the meta-initialization of what is adapted, without the user dimension."""

    @abstractmethod
    def parameters_of_one(self, model: "BertRecommender", state: State) -> State:
        """Return one user's parameters of the model, by name."""

    def shared_vectors(self, E: Tensor) -> Tensor | None:
        """Return the item vectors that all users share; None where each has his own."""
        return E

    def forward(
        self, model: "BertRecommender", tasks: TaskBatch, E: Tensor, id_mask: Bool[Tensor, " items"] | None
    ) -> Float[Tensor, "users items"]:
        """Return the catalogue's scores after the inner loop."""
        shared = self.shared_vectors(E)

        def score_one(state: State, task: dict[str, Tensor]) -> Tensor:
            batch = TaskBatch(**{name: value[None] for name, value in task.items()})
            own = self.parameters_of_one(model, state)
            scored: Tensor = functional_call(model, own, (batch, id_mask), {"adapt": False, "E": shared})
            return scored[0]

        def score(state: State) -> Tensor:
            scored: Tensor = vmap(score_one, chunk_size=USERS_AT_ONCE)(state, tasks.tensors())
            return scored

        state = {name: value.expand(len(tasks), *value.shape) for name, value in self.initial(model).items()}
        for rate in self.rates():
            gradient: State = grad(lambda s: support_loss(score(s), tasks).sum())(state)
            if not self.learner.second_order:
                gradient = {name: value.detach() for name, value in gradient.items()}
            state = {name: value - rate * gradient[name] for name, value in state.items()}
        return score(state)


class LowRank(OwnParameters):
    """Adapts a low-rank update A B of every attention projection of the body (LoRA). Inner learning rates: one a step.

    A starts at a meta-learned initialization and B at zero, so the initial update is zero.

    References:
        Hu et al. (2021), LoRA, section 4.1.
    """

    default_learning_rate = 0.05

    def __init__(self, settings: AdaptationSettings, width: int) -> None:
        super().__init__(settings)
        self.down = nn.Parameter(torch.randn(width, settings.lora_rank) / math.sqrt(width))

    def initial(self, model: "BertRecommender") -> State:
        """Return A and B of every attention projection."""
        names = _attention_projections(model)
        state: State = {f"{name}.down": self.down for name in names}
        return state | {f"{name}.up": torch.zeros_like(self.down).T for name in names}

    def parameters_of_one(self, model: "BertRecommender", state: State) -> State:
        """Return the body's projections with one user's update added."""
        return {
            name: weight + (state[f"{name}.down"] @ state[f"{name}.up"]).T
            for name, weight in _attention_projections(model).items()
        }


class Everything(OwnParameters):
    """Adapts every parameter of the recommender: MAML as published, and as costly. Inner learning rates: one a step."""

    default_learning_rate = 0.005

    def initial(self, model: "BertRecommender") -> State:
        """Return the whole meta-initialization."""
        return {name: value for name, value in model.named_parameters() if not name.startswith("adaptation.")}

    def parameters_of_one(self, model: "BertRecommender", state: State) -> State:
        """Return the user's parameters, which are what is adapted."""
        return state

    def shared_vectors(self, E: Tensor) -> Tensor | None:
        """Return None: item vectors are made of adapted parameters."""
        return None


def _attention_projections(model: "BertRecommender") -> State:
    return {
        name: value
        for name, value in model.named_parameters()
        if name.startswith("encoder.") and ".attention." in name and name.endswith("weight") and "LayerNorm" not in name
    }


def build_adaptation(settings: AdaptationSettings, width: int) -> Adaptation:
    """Return the inner loop that the settings name."""
    match settings.parameters:
        case "user-vector" if settings.method == "hypernetwork":
            return GeneratedUserVector(settings, width)
        case "user-vector":
            return UserVector(settings, width)
        case "head":
            return Head(settings)
        case "lora":
            return LowRank(settings, width)
        case "all":
            return Everything(settings)
