"""Second-order MAML as a textbook writes it, user by user: what the engine's numbers and speed are compared with.

For every user a deep copy of the model, ``torch.autograd.grad`` with ``create_graph`` in the inner loop, one more for
the query loss. Text vectors are computed beforehand and shared, as the engine shares them.
"""

import copy
from collections.abc import Callable

import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional as F

from metarec_shared.model import BertRecommender
from metarec_shared.tasks import TaskBatch

State = dict[str, Tensor]
Adapt = Callable[[State, State, float | Tensor], State]
"""Returns the state after one step from state, gradients and inner learning rate."""


def plain_step(state: State, gradients: State, rate: float | Tensor) -> State:
    """Take one gradient step."""
    return {name: value - rate * gradients[name] for name, value in state.items()}


def textbook_meta_gradient(
    model: BertRecommender,
    tasks: TaskBatch,
    weights: Tensor,
    id_mask: Tensor | None,
    choice: str,
    clip_norm: float = 0.0,
    step: Adapt = plain_step,
) -> State:
    """Return the weighted sum of users' meta-gradients, each clipped to ``clip_norm`` where that is not 0."""
    total = {name: torch.zeros_like(value) for name, value in model.named_parameters()}
    shared = {id(value): value for value in (model.text, model._text_products)}  # frozen, so nobody copies them
    for user in range(len(tasks)):
        learner = copy.deepcopy(model, dict(shared))
        task = tasks.rows(user, user + 1)
        support, query = task.support[0][task.support_mask[0]], task.query[0][task.query_mask[0]]
        state, score = _start(learner, task, id_mask, choice)
        for rate in _inner_rates(learner, len(support)) if len(support) else ():
            loss = F.cross_entropy(score(state).expand(len(support), -1), support)
            found = torch.autograd.grad(loss, list(state.values()), create_graph=True, allow_unused=True)
            gradients = {
                n: torch.zeros_like(v) if g is None else g for (n, v), g in zip(state.items(), found, strict=True)
            }
            state = step(state, gradients, rate)
        scores = score(state).index_fill(0, task.known[0][task.known[0] >= 0], -torch.inf)
        loss = F.cross_entropy(scores.expand(len(query), -1), query)
        found = torch.autograd.grad(loss, list(learner.parameters()), allow_unused=True)
        own = {name: g for name, g in zip(total, found, strict=True) if g is not None}
        norm = torch.stack([g.norm() for g in own.values()]).norm()
        factor = min(1.0, clip_norm / float(norm)) if clip_norm else 1.0
        for name, gradient in own.items():
            total[name] += weights[user] * factor * gradient
    return total


def _inner_rates(model: BertRecommender, support: int) -> Tensor:
    """Return the inner learning rates of a user with ``support`` support items, a row a step."""
    rates, evidence = model.adaptation.rates(), dict(model.adaptation.named_parameters()).get("raw_evidence")
    return rates if evidence is None else rates * support / (support + F.softplus(evidence))


def _start(
    model: BertRecommender, task: TaskBatch, id_mask: Tensor | None, choice: str
) -> tuple[State, Callable[[State], Tensor]]:
    """Return what is adapted, and one user's scores as a function of it."""
    parameters: State = dict(model.named_parameters())
    E = model.item_vectors(id_mask)
    encoded = model.encode(task, E)[0]
    projections = [n for n in parameters if ".attention." in n and n.endswith("weight") and "LayerNorm" not in n]
    match choice:
        case "user-vector":
            return {"h": model.head(encoded)}, lambda state: E @ state["h"] + model.item_bias
        case "head":
            head = {name: parameters[f"head.{name}"] for name in ("weight", "bias")}
            return head, lambda state: E @ F.linear(encoded, **state) + model.item_bias
        case "lora":
            down = parameters["adaptation.down"]
            low = {f"A {n}": down for n in projections}
            low |= {f"B {n}": torch.zeros_like(down).T.requires_grad_() for n in projections}

            def lora(state: State) -> Tensor:
                weights = {n: parameters[n] + (state[f"A {n}"] @ state[f"B {n}"]).T for n in projections}
                scored: Tensor = functional_call(model, weights, (task, id_mask), {"adapt": False, "E": E})
                return scored[0]

            return low, lora
        case _:
            everything = {n: p for n, p in parameters.items() if not n.startswith("adaptation.")}
            return everything, lambda state: functional_call(model, state, (task, id_mask), {"adapt": False})[0]
