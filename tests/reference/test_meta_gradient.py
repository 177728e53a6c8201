"""The meta-gradient against derivations of its own: a loop over users with plain autograd, and finite differences."""

import copy

import pytest
import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional as F

from metarec_shared.inner_loop import query_loss
from metarec_shared.meta_gradient import per_user_meta_gradients, summed_meta_gradient
from metarec_shared.model import BertRecommender
from metarec_shared.settings import AdaptationSettings
from metarec_shared.tasks import TaskBatch
from tests.small import ITEMS, small_model, small_tasks

CHOICES = ["user-vector", "head", "lora", "all"]
METHODS = ["meta-sgd", "maml", "fomaml"]


def _naive_support_loss(scores: Tensor, task: TaskBatch) -> Tensor:
    visible = task.support[0][task.support_mask[0]]
    if len(visible) == 0:
        return scores.sum() * 0.0
    return F.cross_entropy(scores.expand(len(visible), -1), visible)


def _naive_query_loss(scores: Tensor, task: TaskBatch) -> Tensor:
    candidates = [item for item in range(ITEMS) if item not in task.known[0].tolist()]
    targets = torch.tensor([candidates.index(item) for item in task.query[0][task.query_mask[0]].tolist()])
    return F.cross_entropy(scores[candidates].expand(len(targets), -1), targets)


def _naive_scores(model: BertRecommender, task: TaskBatch, choice: str, id_mask: Tensor, second: bool) -> Tensor:
    """MAML for one user as a textbook writes it: adapt copies of named tensors by autograd.grad, then score."""
    parameters = dict(model.named_parameters())
    E = model.item_vectors(id_mask)
    if choice == "user-vector":
        state = {"h": model.head(model.encode(task, E))[0]}

        def score(state: dict[str, Tensor]) -> Tensor:
            return E @ state["h"] + model.item_bias
    elif choice == "lora":
        names = [n for n in parameters if ".attention." in n and n.endswith("weight") and "LayerNorm" not in n]
        down = parameters["adaptation.down"]
        state = {f"A {n}": down for n in names} | {f"B {n}": torch.zeros_like(down).T.requires_grad_() for n in names}

        def score(state: dict[str, Tensor]) -> Tensor:
            weights = {n: parameters[n] + (state[f"A {n}"] @ state[f"B {n}"]).T for n in names}
            return functional_call(model, weights, (task, id_mask), {"adapt": False})[0]
    else:
        prefix = "head." if choice == "head" else ""
        state = {n: p for n, p in parameters.items() if n.startswith(prefix) and "adaptation" not in n}

        def score(state: dict[str, Tensor]) -> Tensor:
            return functional_call(model, state, (task, id_mask), {"adapt": False})[0]

    for rates in model.adaptation.rates():
        loss = _naive_support_loss(score(state), task)
        gradients = torch.autograd.grad(
            loss, list(state.values()), create_graph=second, retain_graph=True, allow_unused=True
        )
        state = {
            name: value if gradient is None else value - rates * gradient
            for (name, value), gradient in zip(state.items(), gradients, strict=True)
        }
    return score(state)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("choice", CHOICES)
def test_meta_gradient_equals_a_naive_loop_over_users(choice: str, method: str) -> None:
    model = small_model(AdaptationSettings(parameters=choice, method=method, steps=2))  # type: ignore[arg-type]
    tasks, id_mask = small_tasks(dtype=torch.float64), torch.arange(ITEMS) % 4 > 0
    result = per_user_meta_gradients(model, tasks, id_mask, users_at_once=2)
    for user in range(len(tasks)):
        alone = tasks.rows(user, user + 1)
        loss = _naive_query_loss(_naive_scores(model, alone, choice, id_mask, method != "fomaml"), alone)
        expected = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
        torch.testing.assert_close(result.losses[user], loss.detach())
        for (name, parameter), gradient in zip(model.named_parameters(), expected, strict=True):
            wanted = torch.zeros_like(parameter) if gradient is None else gradient
            torch.testing.assert_close(result.gradients[name][user], wanted, atol=1e-10, rtol=1e-7, msg=name)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("choice", CHOICES)
def test_per_user_meta_gradients_sum_to_the_one_backward_sum(choice: str, method: str) -> None:
    model = small_model(AdaptationSettings(parameters=choice, method=method))  # type: ignore[arg-type]
    batch = small_tasks(7, dtype=torch.float64)
    weights = torch.rand(7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    summed = summed_meta_gradient(model, batch, weights)
    each = per_user_meta_gradients(model, batch, users_at_once=3)
    torch.testing.assert_close(each.losses, summed.losses)
    for name, gradient in summed.gradients.items():
        torch.testing.assert_close(torch.tensordot(weights, each.gradients[name], dims=1), gradient, msg=name)


@pytest.mark.parametrize("choice", CHOICES)
def test_second_order_meta_gradient_equals_finite_differences(choice: str) -> None:
    model = small_model(AdaptationSettings(parameters=choice, steps=2))  # type: ignore[arg-type]
    batch = small_tasks(2, dtype=torch.float64)
    weights = torch.ones(2, dtype=torch.float64)
    gradients = summed_meta_gradient(model, batch, weights).gradients
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        direction = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        slopes = []
        for step in (1e-5, -1e-5):
            moved = copy.deepcopy(model)
            with torch.no_grad():
                dict(moved.named_parameters())[name].add_(direction, alpha=step)
                slopes.append(query_loss(moved(batch), batch).sum())
        numeric = (slopes[0] - slopes[1]) / 2e-5
        torch.testing.assert_close((gradients[name] * direction).sum(), numeric, atol=1e-6, rtol=1e-4, msg=name)


def test_first_and_second_order_differ() -> None:
    batch = small_tasks(dtype=torch.float64)
    weights = torch.ones(len(batch), dtype=torch.float64)
    first, second = (
        summed_meta_gradient(small_model(AdaptationSettings(method=method)), batch, weights)  # type: ignore[arg-type]
        for method in ("fomaml", "maml")
    )
    assert not torch.allclose(first.gradients["item_ids"], second.gradients["item_ids"], rtol=1e-2)
    torch.testing.assert_close(first.losses, second.losses)


@pytest.mark.parametrize("choice", ["user-vector", "head"])
def test_the_recursion_on_user_vectors_is_a_naive_inner_loop(choice: str) -> None:
    model = small_model(AdaptationSettings(parameters=choice, steps=3))  # type: ignore[arg-type]
    batch, id_mask = small_tasks(dtype=torch.float64), torch.arange(ITEMS) % 4 > 0
    scored = model(batch, id_mask)
    for user in range(len(batch)):
        expected = _naive_scores(model, batch.rows(user, user + 1), choice, id_mask, second=True)
        torch.testing.assert_close(scored[user], expected)
