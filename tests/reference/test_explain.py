"""Influences against finite differences, and against adapting anew without an item, in every way a model can adapt."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from client.explain import differentiable, influences, without_each
from client.history import Item, Profile
from client.recommend import task_of
from metarec_shared.model import BertRecommender
from metarec_shared.settings import AdaptationSettings
from metarec_shared.start_prior import StartPrior
from metarec_shared.task_regression import TaskRegression
from metarec_shared.tasks import TaskBatch
from metarec_shared.text_kernel import TextKernel
from tests.small import ITEMS, SMALL_MODEL, TEXT, small_model

ADAPTATIONS: list[dict[str, Any]] = [
    {"method": "meta-sgd", "steps": 1},
    {"method": "maml", "steps": 3},
    {"method": "fomaml", "steps": 2},
    {"method": "reptile", "steps": 2},
    {"method": "proximal", "steps": 600, "learning_rate": 0.05},
    {"method": "hypernetwork"},
    {"method": "maml", "steps": 2, "pseudo_labels": 3},
    {"method": "fomaml", "steps": 1, "pseudo_labels": 3},
    {"method": "maml", "steps": 2, "parameters": "head"},
    {"method": "maml", "steps": 1, "parameters": "lora"},
    {"method": "maml", "steps": 1, "parameters": "all"},
    {"method": "meta-sgd", "encoder": "gpt2"},
]


NO_TRACE = [one for one in ADAPTATIONS if not {"pseudo_labels", "encoder"} & one.keys()]
"""Those to which an item of weight 0 is as if it were not there: it is no pseudo-label, and counts in no position."""


def a_model(adaptation: dict[str, Any], *, recency: bool = False) -> BertRecommender:
    """Return a model that has everything that can be added to its scores."""
    own = {name: value for name, value in adaptation.items() if name != "encoder"}
    sizes = replace(SMALL_MODEL, encoder=adaptation.get("encoder", "bert"), recency=recency)
    model = small_model(AdaptationSettings(**own), sizes=sizes)
    draw = torch.Generator().manual_seed(1)
    weights = torch.randn(ITEMS, 5, generator=draw, dtype=torch.float64)
    neighbours = torch.randint(0, ITEMS, (ITEMS, 5), generator=draw)
    for order, decay in (("random", 1.0), ("time", 0.8)):
        one = TaskRegression(neighbours=neighbours, weights=weights, blends={1: 0.5, 3: 1.0, 8: 2.0}, decay=decay)
        model.regressions = {**model.regressions, order: [one]}
    logs = torch.randn(2, ITEMS, generator=draw, dtype=torch.float64)
    model.start_prior = StartPrior(sizes=(1, 9), logs=logs, blends=(1.0, 0.5))
    text = torch.randn(ITEMS, TEXT, generator=draw, dtype=torch.float64)
    model.text_kernel = TextKernel.over(text, 4.0, blends={"random": {1: 1.0, 10: 3.0}, "time": {1: 2.0}})
    return model


def a_task(*, in_time: bool) -> TaskBatch:
    rng = np.random.default_rng(2)
    support = torch.from_numpy(rng.permutation(ITEMS)[None, :6])
    return TaskBatch(
        support=support,
        support_mask=torch.ones(1, 6, dtype=torch.bool),
        feedback=torch.from_numpy(rng.integers(0, 6, (1, 6))),
        query=support[:, :0],
        query_mask=support[:, :0] > 0,
        known=support,
        in_time=torch.tensor([in_time]),
        from_start=torch.tensor([in_time]),
        recency=torch.arange(6, 0, -1)[None],
    )


@pytest.mark.parametrize("adaptation", ADAPTATIONS)
@pytest.mark.parametrize("in_time", [False, True])
def test_an_influence_is_the_derivative_in_an_items_weight(adaptation: dict[str, Any], in_time: bool) -> None:
    model, task, position = a_model(adaptation), a_task(in_time=in_time), 4
    E = model.item_vectors().detach()
    found = influences(model, task, E, [9, position])[1]

    def score(weights: torch.Tensor) -> float:
        with torch.no_grad():
            return float(model(replace(task, weights=weights[None]), E=E)[0, position])

    ones, step = torch.ones(6, dtype=torch.float64), 1e-5
    for place in range(6):
        moved = step * torch.eye(6, dtype=torch.float64)[place]
        slope = (score(ones + moved) - score(ones - moved)) / (2 * step)
        tolerance = 2e-2 if adaptation["method"] == "proximal" else 1e-5  # that of the solution, which steps approach
        assert float(found[place]) == pytest.approx(slope, rel=tolerance, abs=tolerance * float(found.abs().max()))


@pytest.mark.parametrize("adaptation", NO_TRACE)
@pytest.mark.parametrize("in_time", [False, True])
def test_an_item_of_no_weight_is_as_if_it_were_not_there(adaptation: dict[str, Any], in_time: bool) -> None:
    model, task = a_model(adaptation), a_task(in_time=in_time)
    E = model.item_vectors().detach()
    with torch.no_grad():
        whole = model(task, E=E)[0, 7]
        lost = without_each(model, task, E, [7])[0]
        for place in range(6):
            weights = torch.ones(1, 6, dtype=torch.float64)
            weights[0, place] = 0.0
            left = model(replace(task, weights=weights), E=E)[0, 7]
            assert float(whole - lost[place]) == pytest.approx(float(left), abs=1e-9)


def test_weights_of_one_change_nothing() -> None:
    model, task = a_model({"method": "meta-sgd"}), a_task(in_time=True)
    with torch.no_grad():
        torch.testing.assert_close(model(replace(task, weights=torch.ones(1, 6))), model(task))


def test_influences_rank_the_items_as_adapting_anew_does() -> None:
    model, task = a_model({"method": "meta-sgd"}), a_task(in_time=False)
    E = model.item_vectors().detach()
    pairs = zip(influences(model, task, E, range(ITEMS)), without_each(model, task, E, range(ITEMS)), strict=True)
    assert np.mean([spearmanr(found.numpy(), lost.numpy()).statistic for found, lost in pairs]) > 0.7


def test_explaining_leaves_the_model_as_it_was() -> None:
    model = a_model({"method": "fomaml"})
    learner = model.adaptation.learner
    assert differentiable(model) is not model
    assert model.adaptation.learner is learner
    assert differentiable(model).projection is model.projection


@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("method", [{"method": "meta-sgd"}, {"method": "maml", "steps": 1, "pseudo_labels": 3}])
def test_adapting_anew_is_what_is_recommended_from_without_the_item(size: int, method: dict[str, Any]) -> None:
    """Ranks in time close up, nobody adapts to nothing, and blends are those of what is left."""
    model = a_model(method, recency=True)
    E = model.item_vectors().detach()
    items = [Item(position=position) for position in (3, 9, 4, 21)[:size]]

    def score(history: list[Item]) -> float:
        with torch.no_grad():
            return float(model(task_of([Profile(items=history, in_time=True)]), adapt=bool(history), E=E)[0, 7])

    lost = without_each(model, task_of([Profile(items=items, in_time=True)]), E, [7], blends_held=False)[0]
    expected = [score(items) - score(items[:place] + items[place + 1 :]) for place in range(size)]
    assert lost.tolist() == pytest.approx(expected, abs=1e-5)
