"""The meta-learning family against derivations of its own: what each paper writes, for one user, in plain autograd."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.sparse.linalg import cg
from torch import Tensor
from torch.nn import functional as F

from metarec_shared.checkpoint import load_checkpoint
from metarec_shared.errors import SettingsError
from metarec_shared.fused_inner_loop import fused_gradient
from metarec_shared.initialization import initial_model
from metarec_shared.inner_loop import Items, Support, query_loss
from metarec_shared.meta_gradient import clip_factors, cohort_meta_gradient, per_user_meta_gradients
from metarec_shared.meta_learning import MetaLearner, build_meta_learner
from metarec_shared.meta_learning.adversarial import perturbed
from metarec_shared.meta_learning.proximal import conjugate_gradients
from metarec_shared.settings import AdaptationSettings, Settings
from metarec_shared.settings_checks import ADAPTED_BY_METHOD
from metarec_shared.tasks import TaskBatch
from tests.integration.test_in_process_federation import run
from tests.small import ITEMS, small_model, small_settings, small_tasks

WIDTH, USERS, RATE = 6, 7, 0.4
BY_STEPS = ["meta-sgd", "maml", "fomaml", "anil", "reptile", "proximal"]
FAMILY = [*BY_STEPS, "hypernetwork"]
ADDITIONS = [{}, {"pseudo_labels": 3}, {"perturbation": 0.5}, {"pseudo_labels": 2, "perturbation": 0.3}]


def _learner(method: str, **values: object) -> MetaLearner:
    return build_meta_learner(AdaptationSettings(method=method, **values))  # type: ignore[arg-type]


def _problem(steps: int, rate: float = RATE) -> tuple[Tensor, Tensor, Items, TaskBatch, Tensor]:
    draw = torch.Generator().manual_seed(steps)
    tasks = small_tasks(USERS, dtype=torch.float64)
    h, vectors = (torch.randn(n, WIDTH, dtype=torch.float64, generator=draw) for n in (USERS, ITEMS))
    rates = torch.full((USERS, steps, WIDTH), rate, dtype=torch.float64)
    items = Items(vectors, torch.randn(ITEMS, dtype=torch.float64, generator=draw))
    return h, rates, items, tasks, torch.rand(USERS, dtype=torch.float64, generator=draw)


def _support_items(tasks: TaskBatch, user: int) -> Tensor:
    return tasks.support[user][tasks.support_mask[user]]


def _support_loss(h: Tensor, items: Items, chosen: Tensor) -> Tensor:
    scored = items.vectors @ h + items.bias
    return F.cross_entropy(scored.expand(len(chosen), -1), chosen) if len(chosen) else 0.0 * scored.sum()


def _query_loss(h: Tensor, items: Items, tasks: TaskBatch, user: int) -> Tensor:
    ranked = [item for item in range(ITEMS) if item not in tasks.known[user].tolist()]
    asked = [ranked.index(item) for item in tasks.query[user][tasks.query_mask[user]].tolist()]
    scored = (items.vectors @ h + items.bias)[ranked]
    return F.cross_entropy(scored.expand(len(asked), -1), torch.tensor(asked))


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("method", BY_STEPS)
def test_what_is_differentiated_by_hand_is_autograds_gradient_of_the_losses(method: str, steps: int) -> None:
    h, rates, items, tasks, weights = _problem(steps)
    learner, leaves = _learner(method), [value.requires_grad_() for value in (h, rates, *items)]
    losses = learner.losses(h, rates, items, Support.of(tasks, h.dtype), tasks)
    expected = torch.autograd.grad((losses * weights).sum(), leaves, allow_unused=True)
    with torch.no_grad():
        found = fused_gradient(h.detach(), rates.detach(), Items(*(v.detach() for v in items)), tasks, weights,
                               learner=learner)  # fmt: skip
    torch.testing.assert_close(found.losses, losses.detach())
    for got, wanted in zip((found.h, found.rates, found.vectors, found.bias), expected, strict=True):
        torch.testing.assert_close(got, torch.zeros_like(got) if wanted is None else wanted)


def test_reptile_is_the_way_over_the_rate_that_its_algorithm_walks() -> None:
    """Algorithm 1 on a user's vector: plain SGD on the task's minibatches; (theta - theta_u) / a is the update."""
    steps = 3
    h, rates, items, tasks, _ = _problem(steps)
    found = fused_gradient(h, rates, items, tasks, torch.ones(USERS, dtype=torch.float64), learner=_learner("reptile"))
    for user in range(USERS):
        phi = h[user].clone().requires_grad_()
        optimizer = torch.optim.SGD([phi], lr=RATE)
        for step in range(steps + 1):
            optimizer.zero_grad()
            batch = _support_items(tasks, user)
            loss = _query_loss(phi, items, tasks, user) if step == steps else _support_loss(phi, items, batch)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        torch.testing.assert_close(found.h[user], (h[user] - phi.detach()) / RATE)


def test_reptile_is_fomaml_and_the_gradients_of_the_way() -> None:
    """In the item vectors too: what one joint step on every minibatch where it was visited would add up to."""
    h, rates, items, tasks, _ = _problem(2)
    ones = torch.ones(USERS, dtype=torch.float64)
    more = fused_gradient(h, rates, items, tasks, ones, learner=_learner("reptile")).vectors
    last = fused_gradient(h, rates, items, tasks, ones, learner=_learner("fomaml")).vectors
    way = torch.zeros_like(more)
    for user in range(USERS):
        here = h[user]
        for _ in range(2):
            leaves = [here.clone().requires_grad_(), items.vectors.clone().requires_grad_()]
            loss = _support_loss(leaves[0], Items(leaves[1], items.bias), _support_items(tasks, user))
            of_h, of_vectors = torch.autograd.grad(loss, leaves)
            way, here = way + of_vectors, here - RATE * of_h
    torch.testing.assert_close(more - last, way)


def test_the_implicit_gradient_is_that_of_a_solution_unrolled_to_the_end() -> None:
    """Gradient descent on the regularized problem, 500 steps, every one of them differentiated through."""
    strength, steps, rate = 0.7, 500, 0.3
    h, rates, items, tasks, weights = _problem(steps, rate)
    found = fused_gradient(h, rates, items, tasks, weights, learner=_learner("proximal", proximal=strength))
    leaves = [value.requires_grad_() for value in (h, *items)]
    total = torch.zeros((), dtype=torch.float64)
    for user in range(USERS):
        phi = h[user]
        for _ in range(steps):
            (gradient,) = torch.autograd.grad(
                _support_loss(phi, items, _support_items(tasks, user)), [phi], create_graph=True
            )
            phi = phi - rate * (gradient + strength * (phi - h[user]))
        total = total + weights[user] * _query_loss(phi, items, tasks, user)
    expected = torch.autograd.grad(total, leaves)
    for got, wanted in zip((found.h, found.vectors, found.bias), expected, strict=True):
        torch.testing.assert_close(got, wanted, atol=1e-9, rtol=1e-6)


def test_conjugate_gradients_are_scipys() -> None:
    draw = np.random.default_rng(0)
    roots, right = draw.normal(size=(3, 9, 9)), draw.normal(size=(3, 9))
    systems = roots @ roots.transpose(0, 2, 1) + np.eye(9)
    right[2] = 0.0
    found = conjugate_gradients(
        lambda v: torch.einsum("uij,uj->ui", torch.from_numpy(systems), v), torch.from_numpy(right), 4
    )
    for user in range(2):
        expected, _ = cg(systems[user], right[user], maxiter=4, rtol=0.0)
        torch.testing.assert_close(found[user], torch.from_numpy(expected))
    assert not found[2].any()


def test_a_hypernetwork_writes_what_its_equations_say() -> None:
    model = small_model(AdaptationSettings(method="hypernetwork"))
    tasks = replace(small_tasks(4, dtype=torch.float64), dropout=None)
    parameters = {name: value.detach().numpy() for name, value in model.named_parameters()}
    E = model.item_vectors().detach().numpy()
    scored = model(tasks).detach().numpy()
    h_0 = model.head(model.encode(tasks, model.item_vectors())).detach().numpy()
    for user in (user for user in range(4) if len(_support_items(tasks, user))):
        chosen = E[_support_items(tasks, user).numpy()]
        name = "adaptation.hypernetwork"
        reads = chosen @ parameters[f"{name}.reads.weight"].T + parameters[f"{name}.reads.bias"]
        z = np.maximum(reads, 0.0).mean(axis=0)
        gamma, beta = np.split(parameters[f"{name}.writes.weight"] @ z + parameters[f"{name}.writes.bias"], 2)
        h = h_0[user] + gamma * h_0[user] + beta
        np.testing.assert_allclose(scored[user], E @ h + parameters["item_bias"])


def test_a_hypernetwork_begins_as_no_adaptation_and_learns() -> None:
    settings = small_settings(adaptation__method="hypernetwork")
    model = initial_model(settings, torch.randn(ITEMS, 5))
    tasks = replace(small_tasks(4), dropout=None)
    torch.testing.assert_close(model(tasks), model(tasks, adapt=False))
    found = cohort_meta_gradient(model, [(tasks, torch.ones(4))])
    assert found.gradients["adaptation.hypernetwork.writes.weight"].abs().sum() > 0


@pytest.mark.parametrize("choice", ["user-vector", "head"])
def test_pseudo_labels_are_the_likeliest_items_that_a_user_does_not_know(choice: str) -> None:
    """For one user after the other: adapt, look, add, adapt again from the start."""
    count, weight = 3, 0.6
    inner = AdaptationSettings(
        method="maml",
        parameters=choice,
        steps=2,
        learning_rate=0.01,
        pseudo_labels=count,
        pseudo_weight=weight,  # type: ignore[arg-type]
    )
    model, tasks = small_model(inner), small_tasks(5, dtype=torch.float64)
    scored, E = model(tasks).detach(), model.item_vectors().detach()
    encoded = model.encode(tasks, E).detach()

    def adapted(user: int, chosen: list[int], weights: list[float]) -> Tensor:
        W, c = model.head.weight.detach().clone(), model.head.bias.detach().clone()
        free = {"h": W @ encoded[user] + c} if choice == "user-vector" else {"W": W, "c": c}
        for _ in range(2):
            free = {name: value.requires_grad_() for name, value in free.items()}
            h = free["h"] if choice == "user-vector" else free["W"] @ encoded[user] + free["c"]
            logs = F.log_softmax(E @ h + model.item_bias.detach(), dim=0)
            loss = -sum((w * logs[item] for item, w in zip(chosen, weights, strict=True)), 0.0 * logs.sum())
            gradients = torch.autograd.grad(loss, list(free.values()))
            free = {n: (v - 0.01 * g).detach() for (n, v), g in zip(free.items(), gradients, strict=True)}
        h = free["h"] if choice == "user-vector" else free["W"] @ encoded[user] + free["c"]
        return E @ h + model.item_bias.detach()

    for user in range(5):
        chosen = _support_items(tasks, user).tolist()
        n = len(chosen)
        first = adapted(user, chosen, [1 / max(n, 1)] * n)
        unknown = [item for item in range(ITEMS) if item not in tasks.known[user].tolist()]
        best = sorted(unknown, key=lambda item: -float(first[item]))[:count]
        confidence = [float((first[item] - first[best[0]]).exp()) for item in best] if n else [0.0] * count
        weights = np.array([1.0] * n + [weight * value for value in confidence])
        second = adapted(user, chosen + best, list(weights / max(weights.sum(), 1.0)))
        torch.testing.assert_close(scored[user], second)


def test_a_perturbation_has_its_radius_and_the_direction_of_steepest_ascent() -> None:
    inner = AdaptationSettings(steps=2)
    model, tasks = small_model(inner), replace(small_tasks(5, dtype=torch.float64), dropout=None)
    rows = torch.zeros(5, tasks.support.shape[1], 8, dtype=torch.float64, requires_grad=True)
    losses = query_loss(model(replace(tasks, perturbation=rows)), tasks)
    (gradient,) = torch.autograd.grad(losses.sum(), [rows])
    read = perturbed(tasks, gradient, 1e-3)
    assert read.perturbation is not None
    real = tasks.support_mask.any(dim=1)
    norms = read.perturbation.flatten(1).norm(dim=1)
    torch.testing.assert_close(norms[real], torch.full_like(norms[real], 1e-3))
    risen = query_loss(model(read), tasks) - losses
    torch.testing.assert_close(risen[real], 1e-3 * gradient.flatten(1).norm(dim=1)[real], rtol=2e-2, atol=1e-9)
    torch.testing.assert_close(risen[~real], torch.zeros_like(risen[~real]))


@pytest.mark.parametrize("additions", ADDITIONS)
@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("method", FAMILY)
def test_every_meta_gradient_is_the_sum_of_users_own_clipped_or_not(
    method: str, clip: bool, additions: dict[str, float]
) -> None:
    """Ghost norms against gradients that are formed by autograd, a user at a time, with and without additions."""
    inner = AdaptationSettings(method=method, steps=2, **additions)  # type: ignore[arg-type]
    model, tasks = small_model(inner), small_tasks(7, dtype=torch.float64)
    weights, id_mask = torch.rand(7, dtype=torch.float64), torch.arange(ITEMS) % 4 > 0
    read = tasks
    if radius := additions.get("perturbation"):
        rows = torch.zeros(7, tasks.support.shape[1], 8, dtype=torch.float64, requires_grad=True)
        E = model.item_vectors(id_mask).detach()
        losses = model.adaptation.losses(model, replace(tasks, perturbation=rows), E, id_mask)
        read = perturbed(tasks, torch.autograd.grad(losses.sum(), [rows])[0], radius)
    each = per_user_meta_gradients(model, read, id_mask)
    squares = torch.stack([value.flatten(1).square().sum(dim=1) for value in each.gradients.values()]).sum(dim=0)
    clip_norm = float(squares.sqrt().median()) if clip else 0.0
    found = cohort_meta_gradient(
        model, [(tasks.rows(0, 4), weights[:4]), (tasks.rows(4, 7), weights[4:])], id_mask, clip_norm=clip_norm
    )
    factors = clip_factors(squares, clip_norm) * weights if clip else weights
    torch.testing.assert_close(found.losses, each.losses)
    for name, gradient in found.gradients.items():
        wanted = torch.tensordot(factors, each.gradients[name], dims=1)
        torch.testing.assert_close(gradient, wanted, atol=1e-10, rtol=1e-7, msg=name)


@pytest.mark.parametrize("choice", ["lora", "all"])
def test_adversarial_training_reaches_users_with_bodies_of_their_own(choice: str) -> None:
    inner = AdaptationSettings(method="maml", parameters=choice, steps=1, perturbation=0.5)  # type: ignore[arg-type]
    model, tasks = small_model(inner), small_tasks(4, dtype=torch.float64)
    rows = torch.zeros(4, tasks.support.shape[1], 8, dtype=torch.float64, requires_grad=True)
    losses = query_loss(model(replace(tasks, perturbation=rows)), tasks)
    read = perturbed(tasks, torch.autograd.grad(losses.sum(), [rows])[0], 0.5)
    each, found = per_user_meta_gradients(model, read), cohort_meta_gradient(model, [(tasks, torch.ones(4))])
    for name, gradient in found.gradients.items():
        torch.testing.assert_close(gradient, each.gradients[name].sum(dim=0), msg=name)


@pytest.mark.parametrize("method", ADAPTED_BY_METHOD)
def test_a_meta_learner_refuses_to_adapt_what_it_cannot(method: str) -> None:
    with pytest.raises(SettingsError, match=f"adaptation.method = {method} needs adaptation.parameters"):
        Settings().with_values({"adaptation.method": method, "adaptation.parameters": "all"}, "test")


@pytest.mark.parametrize("additions", [{}, {"adaptation__pseudo_labels": 2, "adaptation__perturbation": 0.1}])
@pytest.mark.parametrize("method", FAMILY)
def test_every_meta_learner_trains_in_a_federation(
    method: str, additions: dict[str, object], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("run") / "run"
    run(small_settings(run__out=str(folder), adaptation__method=method, federation__clip_norm=1.0, **additions))
    checkpoint = load_checkpoint(folder)
    tasks = replace(small_tasks(3), dropout=None)
    with torch.no_grad():
        adapted, read = checkpoint.model()(tasks), checkpoint.model()(tasks, adapt=False)
    assert adapted.isfinite().all()
    assert not torch.equal(adapted, read)
