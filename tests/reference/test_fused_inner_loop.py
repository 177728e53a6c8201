"""The derivative by hand against autograd, and clipping by ghost norms against gradients that are formed."""

from typing import Literal

import pytest
import torch
from torch import Tensor

from metarec_shared import meta_gradient as module
from metarec_shared.fused_inner_loop import chunk_gradients, fused_gradient
from metarec_shared.inner_loop import Items, Support, adapt_user_vectors, query_loss, scores
from metarec_shared.meta_gradient import (
    MetaGradient,
    clip_factors,
    cohort_meta_gradient,
    per_user_meta_gradients,
    summed_meta_gradient,
)
from metarec_shared.meta_learning import MetaLearner
from metarec_shared.meta_learning.fomaml import Fomaml
from metarec_shared.meta_learning.maml import Maml
from metarec_shared.settings import AdaptationSettings, Settings, TaskSettings
from metarec_shared.tasks import TaskBatch
from simulations.benchmarks.cohort import make_cohort
from simulations.benchmarks.inner_loop import largest_difference
from simulations.benchmarks.textbook import textbook_meta_gradient
from tests.small import ITEMS, small_model, small_tasks

CHOICES = ["user-vector", "head", "lora", "all"]
METHODS = ["meta-sgd", "maml", "fomaml"]
WIDTH = 6


def _problem(steps: int) -> tuple[Tensor, Tensor, Items, TaskBatch, Tensor]:
    draw = torch.Generator().manual_seed(steps)
    users = 7
    tasks = small_tasks(users, dtype=torch.float64)
    h, vectors = (torch.randn(n, WIDTH, dtype=torch.float64, generator=draw) for n in (users, ITEMS))
    rates = torch.rand(users, steps, WIDTH, dtype=torch.float64, generator=draw)
    items = Items(vectors, torch.randn(ITEMS, dtype=torch.float64, generator=draw))
    return h, rates, items, tasks, torch.rand(users, dtype=torch.float64, generator=draw)


@pytest.mark.parametrize("learner", [Maml(), Fomaml()])
@pytest.mark.parametrize("steps", [0, 1, 3])
@pytest.mark.parametrize("users_at_once", [1, 3, 100])
def test_the_derivative_by_hand_is_autograds(steps: int, learner: MetaLearner, users_at_once: int) -> None:
    h, rates, items, tasks, weights = _problem(steps)
    leaves = [value.requires_grad_() for value in (h, rates, *items)]
    support = Support.of(tasks, h.dtype)
    adapted = adapt_user_vectors(h, rates, items, support, second_order=learner.second_order)
    losses = query_loss(scores(adapted, items), tasks)
    expected = torch.autograd.grad((losses * weights).sum(), leaves, allow_unused=True)
    detached = (h.detach(), rates.detach(), Items(items.vectors.detach(), items.bias.detach()))
    found = fused_gradient(*detached, tasks, weights, learner=learner)
    torch.testing.assert_close(found.losses, losses.detach())
    for got, wanted in zip((found.h, found.rates, found.vectors, found.bias), expected, strict=True):
        torch.testing.assert_close(got, torch.zeros_like(got) if wanted is None else wanted)
    again = torch.empty_like(h)
    for part in chunk_gradients(*detached, tasks, weights, learner=learner, users_at_once=users_at_once):
        again[part.users] = part.h
    torch.testing.assert_close(again, found.h)


def _assert_close(found: MetaGradient, each: MetaGradient, factors: Tensor, atol: float = 1e-10) -> None:
    for name, gradient in found.gradients.items():
        wanted = torch.tensordot(factors, each.gradients[name], dims=1)
        torch.testing.assert_close(gradient, wanted, atol=atol, rtol=1e-7, msg=name)


def _squared_norms(each: MetaGradient, names: list[str]) -> Tensor:
    return torch.stack([each.gradients[name].flatten(1).square().sum(dim=1) for name in names]).sum(dim=0)


@pytest.mark.parametrize("large_catalogue", [False, True])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("choice", CHOICES)
def test_clipping_by_ghost_norms_is_clipping_gradients_that_are_formed(
    choice: str, method: str, large_catalogue: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if large_catalogue:
        monkeypatch.setattr(module, "GRAM_ITEMS", 0)
    monkeypatch.setattr(module, "USERS_CLIPPED_AT_ONCE", 3)
    inner = AdaptationSettings(parameters=choice, method=method, steps=2)  # type: ignore[arg-type]
    model, tasks = small_model(inner), small_tasks(7, dtype=torch.float64)
    weights, id_mask = torch.rand(7, dtype=torch.float64), torch.arange(ITEMS) % 4 > 0
    each = per_user_meta_gradients(model, tasks, id_mask)
    squares = _squared_norms(each, list(each.gradients))
    clip_norm = float(squares.sqrt().median())
    batches = [(tasks.rows(0, 5), weights[:5]), (tasks.rows(5, 7), weights[5:])]
    found = cohort_meta_gradient(model, batches, id_mask, clip_norm=clip_norm)
    assert found.norms is not None
    torch.testing.assert_close(found.norms, squares.sqrt())
    torch.testing.assert_close(found.losses, each.losses)
    factors = clip_factors(squares, clip_norm)
    assert 0 < int((factors < 1).sum()) < 7
    _assert_close(found, each, factors * weights)


@pytest.mark.parametrize(
    "released", [["head.", "adaptation."], ["item_ids", "encoder.encoder.layer.0"], ["projection."]]
)
@pytest.mark.parametrize("choice", CHOICES)
def test_only_released_parameters_count_in_a_norm_and_in_the_sum(choice: str, released: list[str]) -> None:
    model, tasks = small_model(AdaptationSettings(parameters=choice)), small_tasks(5, dtype=torch.float64)  # type: ignore[arg-type]
    names = [name for name, _ in model.named_parameters() if name.startswith(tuple(released))]
    each, weights = per_user_meta_gradients(model, tasks), torch.ones(5, dtype=torch.float64)
    squares = _squared_norms(each, names)
    clip_norm = float(squares.sqrt().median())
    for clip, factors in ((0.0, weights), (clip_norm, clip_factors(squares, clip_norm))):
        found = cohort_meta_gradient(model, [(tasks, weights)], clip_norm=clip, released=names)
        assert list(found.gradients) == names
        _assert_close(found, each, factors)


def test_a_long_support_set_is_clipped_the_same() -> None:
    """With many tokens a layer's gradient is formed, with few it is not: both give the norms of the naive way."""
    model = small_model()
    tasks = small_tasks(4, settings=TaskSettings(support=12, query=4), dtype=torch.float64)
    each = per_user_meta_gradients(model, tasks)
    found = cohort_meta_gradient(model, [(tasks, torch.ones(4, dtype=torch.float64))], clip_norm=1.0)
    torch.testing.assert_close(found.norms, _squared_norms(each, list(each.gradients)).sqrt())


@pytest.mark.parametrize("choice", CHOICES)
def test_a_user_whose_gradient_is_not_finite_contributes_nothing_when_clipped(choice: str) -> None:
    model, tasks = small_model(AdaptationSettings(parameters=choice)), small_tasks(6, dtype=torch.float64)  # type: ignore[arg-type]
    assert tasks.dropout is not None
    others = cohort_meta_gradient(
        model, [(tasks.take(torch.tensor([0, 1, 3, 4, 5])), torch.ones(5, dtype=torch.float64))], clip_norm=0.5
    )
    tasks.dropout[2] = torch.nan
    found = cohort_meta_gradient(model, [(tasks, torch.ones(6, dtype=torch.float64))], clip_norm=0.5)
    for name, gradient in others.gradients.items():
        torch.testing.assert_close(found.gradients[name], gradient, msg=name)
    assert len(found.losses) == 6
    assert found.losses.isfinite().all()


@pytest.mark.parametrize("clip_norm", [0.0, 1.0])
@pytest.mark.parametrize("choice", CHOICES)
def test_in_float32_at_the_default_size_the_engine_equals_the_textbook_loop_to_1e_5(
    choice: Literal["user-vector", "head", "lora", "all"], clip_norm: float
) -> None:
    settings = Settings().with_values({"adaptation.parameters": choice}, "test")
    cohort = make_cohort(settings, 4, items=500, text_width=64)
    batch = [(cohort.tasks, cohort.weights)]
    found = cohort_meta_gradient(cohort.model, batch, cohort.id_mask, clip_norm=clip_norm).gradients
    arguments = (cohort.model, cohort.tasks, cohort.weights, cohort.id_mask, choice, clip_norm)
    expected = textbook_meta_gradient(*arguments)
    # Three steps of every parameter multiply float32's rounding; in float64 the two are equal to 1e-10 (above).
    tolerance = 1e-4 if choice == "all" else 1e-5
    assert largest_difference(found, expected, 4) < tolerance
    assert largest_difference({**found, "head.bias": found["head.bias"] + 1e-2}, expected, 4) > tolerance


@pytest.mark.parametrize("clip_norm", [0.0, 1.0])
@pytest.mark.parametrize("choice", CHOICES)
def test_how_a_cohort_is_cut_changes_nothing(choice: str, clip_norm: float) -> None:
    model, tasks = small_model(AdaptationSettings(parameters=choice)), small_tasks(9, dtype=torch.float64)  # type: ignore[arg-type]
    weights = torch.rand(9, dtype=torch.float64)
    whole = cohort_meta_gradient(model, [(tasks, weights)], clip_norm=clip_norm)
    parts = [(tasks.rows(start, start + 2), weights[start : start + 2]) for start in range(0, 9, 2)]
    cut = cohort_meta_gradient(model, parts, clip_norm=clip_norm)
    torch.testing.assert_close(cut.losses, whole.losses)
    for name, gradient in whole.gradients.items():
        torch.testing.assert_close(cut.gradients[name], gradient, msg=name)


@pytest.mark.parametrize("item_ids", [True, False])
def test_bfloat16_is_close_to_float32(item_ids: bool) -> None:
    settings = Settings().with_values({"model.item-ids": item_ids}, "test")
    cohort = make_cohort(settings, 8, items=200, text_width=32)
    exact = summed_meta_gradient(cohort.model, cohort.tasks, cohort.weights, cohort.id_mask).gradients
    with torch.autocast("cpu", torch.bfloat16):
        rough = summed_meta_gradient(cohort.model, cohort.tasks, cohort.weights, cohort.id_mask).gradients
    flat = [torch.cat([g[name].float().flatten() for name in exact]) for g in (exact, rough)]
    assert 1e-6 < float((flat[0] - flat[1]).norm() / flat[0].norm()) < 0.1
