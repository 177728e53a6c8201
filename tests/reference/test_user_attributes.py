"""Attributes of users in the model: against transformers' own BERT, gradients that are formed, finite differences."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from metarec_shared.feedback import FEEDBACK_LEVELS
from metarec_shared.inner_loop import query_loss
from metarec_shared.meta_gradient import (
    clip_factors,
    cohort_meta_gradient,
    per_user_meta_gradients,
    separately_clipped_sum,
    summed_meta_gradient,
)
from metarec_shared.model import BertRecommender
from metarec_shared.settings import AdaptationSettings, ModelSettings
from metarec_shared.tasks import TaskBatch
from tests.small import SMALL_MODEL, small_model, small_tasks

CHOICES = ["user-vector", "head", "lora", "all"]
BUCKETS = 5
TABLE = "encoder.embeddings.word_embeddings.weight"
ORDER_AWARE = replace(SMALL_MODEL, attribute_buckets=BUCKETS, layers=2)
SIZES = [ORDER_AWARE, replace(ORDER_AWARE, order_aware=False, recency=True)]


def told(users: int) -> TaskBatch:
    """Draw tasks of users with three attributes, some of them hidden, one user's in one row of the table."""
    rng = torch.Generator().manual_seed(7)
    attributes = torch.randint(1, 2**62, (users, 3), generator=rng)
    attributes[0, 1] = attributes[0, 0] + BUCKETS
    attributes[1] = 0
    attributes[2, 2] = 0
    return replace(small_tasks(users, dtype=torch.float64), attributes=attributes)


def berts_own(model: BertRecommender, task: TaskBatch) -> Tensor:
    """Read one user's tokens with ``BertModel``: what is hidden is left out, so no mask is needed."""
    assert task.attributes is not None
    assert task.dropout is not None
    assert task.in_time is not None
    assert task.recency is not None
    words, shown = model.encoder.get_input_embeddings().weight, task.support_mask[0]
    states = 3 if model.order_aware else 1
    mine = [states + int(value) % BUCKETS for value in task.attributes[0] if value]
    assert task.from_start is not None
    state = int(task.in_time[0]) + int(task.from_start[0]) if model.order_aware else 0
    items = (model.item_vectors()[task.support[0]] * task.dropout[0, :-1])[shown]
    types = [0, *[1 + FEEDBACK_LEVELS] * len(mine), *task.feedback[0][shown].tolist()]
    ranks = task.recency[0][shown].tolist() if model.uses_recency else [0] * len(items)
    outputs = model.encoder(
        inputs_embeds=torch.cat([words[[state, *mine]], items])[None],
        token_type_ids=torch.tensor([types]),
        position_ids=torch.tensor([[0] * (1 + len(mine)) + ranks]),
    )
    return outputs.last_hidden_state[0, 0] * task.dropout[0, -1]


@pytest.mark.parametrize("sizes", SIZES)
def test_attributes_are_tokens_that_berts_own_forward_pass_reads(sizes: ModelSettings) -> None:
    model, tasks = small_model(sizes=sizes), told(6)
    E = model.item_vectors()
    encoded = model.encode(tasks, E)
    with torch.no_grad():
        joined = model.encode(tasks, E)
    for user in range(len(tasks)):
        expected = berts_own(model, tasks.rows(user, user + 1))
        torch.testing.assert_close(encoded[user], expected)
        torch.testing.assert_close(joined[user], expected.detach())


@pytest.mark.parametrize("choice", CHOICES)
def test_hidden_attributes_are_none(choice: str) -> None:
    inner = AdaptationSettings(parameters=choice)  # type: ignore[arg-type]
    model, tasks = small_model(inner, sizes=ORDER_AWARE), told(4)
    assert tasks.attributes is not None
    hidden = replace(tasks, attributes=torch.zeros_like(tasks.attributes))
    without = model(replace(tasks, attributes=None))
    torch.testing.assert_close(model(hidden), without)
    assert (model(tasks) - without).abs().amax(dim=1).gt(1e-3).tolist() == [True, False, True, True]


def test_a_model_without_a_table_passes_over_attributes() -> None:
    model, tasks = small_model(), told(4)
    torch.testing.assert_close(model(tasks), model(replace(tasks, attributes=None)), rtol=0, atol=0)
    assert len(model.encoder.get_input_embeddings().weight) == 3


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("choice", CHOICES)
def test_clipping_by_ghost_norms_is_clipping_gradients_that_are_formed(choice: str, sizes: ModelSettings) -> None:
    inner = AdaptationSettings(parameters=choice, steps=2)  # type: ignore[arg-type]
    model, tasks, weights = small_model(inner, sizes=sizes), told(6), torch.linspace(0.5, 2, 6, dtype=torch.float64)
    each = per_user_meta_gradients(model, tasks)
    squares = torch.stack([value.flatten(1).square().sum(dim=1) for value in each.gradients.values()]).sum(dim=0)
    table = each.gradients[TABLE].flatten(1).square().sum(dim=1)
    assert (table > 1e-6 * squares).all()  # else the table's norm would not be tested
    clip_norm = float(squares.sqrt().median())
    found = cohort_meta_gradient(model, [(tasks, weights)], clip_norm=clip_norm)
    assert found.norms is not None
    torch.testing.assert_close(found.norms, squares.sqrt())
    factors = clip_factors(squares, clip_norm) * weights
    for name, gradient in found.gradients.items():
        torch.testing.assert_close(gradient, torch.tensordot(factors, each.gradients[name], dims=1), msg=name)
    alone = [lambda user=user: (tasks.rows(user, user + 1), weights[user : user + 1]) for user in range(6)]
    separately = separately_clipped_sum(model, alone, clip_norm=clip_norm)
    torch.testing.assert_close(separately.gradients[TABLE], found.gradients[TABLE])


def test_the_norm_of_the_table_alone_is_that_of_its_gradient() -> None:
    model, tasks, ones = small_model(sizes=ORDER_AWARE), told(6), torch.ones(6, dtype=torch.float64)
    each = per_user_meta_gradients(model, tasks)
    found = cohort_meta_gradient(model, [(tasks, ones)], clip_norm=1.0, released=[TABLE])
    torch.testing.assert_close(found.norms, each.gradients[TABLE].flatten(1).norm(dim=1))


@pytest.mark.parametrize("choice", CHOICES)
def test_the_table_s_gradient_is_that_of_finite_differences(choice: str) -> None:
    inner = AdaptationSettings(parameters=choice, steps=2)  # type: ignore[arg-type]
    model, tasks = small_model(inner, sizes=ORDER_AWARE), told(4)
    gradient = summed_meta_gradient(model, tasks, torch.ones(4, dtype=torch.float64)).gradients[TABLE]
    direction = torch.randn(gradient.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    slopes = []
    for step in (1e-5, -1e-5):
        moved = copy.deepcopy(model)
        with torch.no_grad():
            moved.get_parameter(TABLE).add_(direction, alpha=step)
            slopes.append(query_loss(moved(tasks), tasks).sum())
    numeric = (slopes[0] - slopes[1]) / 2e-5
    torch.testing.assert_close((gradient * direction).sum(), numeric, atol=1e-7, rtol=1e-5)
    assert abs(float(numeric)) > 1e-3
