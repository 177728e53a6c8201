"""The graph computes what the recommender does, for every model it can hold, before any exporter touches it."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from client.export.graph import EdgeGraph, check_exportable
from client.export.neighbours import Neighbours
from client.export.tables import QuantizedLinear, QuantizedTable
from client.history import Profile
from client.recommend import recommend
from metarec_shared.checkpoint import Checkpoint
from metarec_shared.errors import CheckpointError
from metarec_shared.model import BertRecommender
from metarec_shared.settings import AdaptationSettings, ModelSettings, Settings
from metarec_shared.task_regression import TaskRegression
from metarec_shared.tasks import ORDERS
from tests.exportable import ALL, EVERYTHING, exportable, some_profiles
from tests.small import SMALL_MODEL

META_LEARNERS = [
    ("meta-sgd", "user-vector"),
    ("meta-sgd", "head"),
    ("maml", "user-vector"),
    ("maml", "head"),
    ("fomaml", "user-vector"),
    ("fomaml", "head"),
    ("anil", "head"),
    ("reptile", "user-vector"),
    ("proximal", "user-vector"),
    ("hypernetwork", "user-vector"),
]


def by_graph(graph: EdgeGraph, profile: Profile, k: int, padding: int = 2) -> list[tuple[int, float]]:
    pad = [0] * padding
    with torch.no_grad():
        positions, scores = graph(
            torch.tensor([[item.position for item in profile.items] + pad]),
            torch.tensor([[item.feedback for item in profile.items] + pad]),
            torch.tensor([[True] * len(profile.items) + [False] * padding]),
            torch.tensor([profile.in_time]),
            k,
            torch.tensor([[*profile.attributes, 0]]),
        )
    return list(zip(positions[0].tolist(), scores[0].tolist(), strict=True))


def assert_same(checkpoint: Checkpoint, *, attributes: bool = True) -> BertRecommender:
    model = checkpoint.full_model()
    graph = EdgeGraph(model)
    for profile in some_profiles(attributes=attributes):
        expected, found = recommend(model, profile, 10), by_graph(graph, profile, 10)
        assert [at for at, _ in found] == [at for at, _ in expected]
        assert [score for _, score in found] == pytest.approx([score for _, score in expected], abs=1e-4)
    return model


@pytest.mark.parametrize(("method", "parameters"), META_LEARNERS)
def test_every_meta_learner_adapts_as_it_does_in_the_model(method: str, parameters: str) -> None:
    values = {"adaptation.method": method, "adaptation.parameters": parameters, "adaptation.steps": 2}
    assert_same(exportable(adaptation=Settings().with_values(values, "test").adaptation))


@pytest.mark.parametrize("changes", [{"steps": 0}, {"steps": 1, "evidence": False}])
def test_other_inner_loops_adapt_as_they_do_in_the_model(changes: dict[str, Any]) -> None:
    assert_same(exportable(adaptation=AdaptationSettings(**changes)))


@pytest.mark.parametrize(
    "sizes",
    [
        EVERYTHING,
        replace(EVERYTHING, order_aware=False),
        replace(EVERYTHING, recency=False),
        replace(EVERYTHING, feedback=False),
        replace(EVERYTHING, attribute_buckets=0, item_ids=False),
        replace(EVERYTHING, rating_weight=0.5),
    ],
)
@pytest.mark.parametrize("additions", [True, False])
def test_every_encoder_reads_as_it_does_in_the_model(sizes: ModelSettings, additions: bool) -> None:
    assert_same(exportable(sizes, additions=additions), attributes=sizes.attribute_buckets > 0)


def test_many_unknown_items_are_spoken_for_by_the_factors_of_their_text() -> None:
    checkpoint = exportable()
    known = checkpoint.items.positions
    text = torch.cat([checkpoint.text[torch.from_numpy(known)], torch.randn(20, checkpoint.text.shape[1])])
    model = checkpoint.transferred(text, known, known)
    graph = EdgeGraph(model)
    assert any(getattr(part, "by_text", None) is not None and part.by_text.text is not None for part in graph.additions)
    for profile in some_profiles():
        inside = replace(profile, items=[item for item in profile.items if item.position < len(text)])
        expected, found = recommend(model, inside, 10), by_graph(graph, inside, 10)
        assert [score for _, score in found] == pytest.approx([score for _, score in expected], abs=1e-4)


def test_no_item_of_the_history_is_recommended_however_many_are_asked_for() -> None:
    graph = EdgeGraph(exportable().full_model())
    for profile in some_profiles():
        mine = {item.position for item in profile.items}
        found = by_graph(graph, profile, ALL)
        assert {at for at, score in found if score < -1e8} == mine
        assert mine.isdisjoint(at for at, _ in found[: ALL - len(mine)])


def test_pruned_regressions_keep_the_largest_weights() -> None:
    model = exportable().full_model()
    regression = model.regressions["random"][0]
    part = EdgeGraph(model, neighbours=3).additions[0]
    kept = part.neighbours.weights.whole().abs()  # type: ignore[union-attr, operator]
    assert kept.shape == (ALL, 3)
    torch.testing.assert_close(kept, regression.weights.abs().topk(3, dim=1).values)


@pytest.mark.parametrize(("items", "neighbours"), [(40, 7), (3000, 300), (3000, 4), (40_000, 5), (40_000, 200)])
def test_positions_in_few_bytes_are_the_same_positions(items: int, neighbours: int) -> None:
    random = torch.Generator().manual_seed(items)
    rows = 20
    positions = torch.rand(rows, items, generator=random).topk(neighbours, dim=1).indices
    positions[0] = 0  # as where an item has no weights
    positions[1, 0], positions[2, 0] = 0, items - 1
    weights = torch.randn(rows, neighbours, generator=random)

    def dense(table: Neighbours) -> torch.Tensor:
        at, values = table.rows(torch.arange(rows)[None])
        assert 0 <= at.min() <= at.max() < items
        return torch.zeros(rows, items).scatter_add(1, at[0], values[0])

    exact, small = dense(Neighbours(positions, weights, int8=False)), Neighbours(positions, weights, int8=True)
    half_a_step = 0.501 * weights.abs().amax(dim=1, keepdim=True) / 127
    half_a_step[0] *= neighbours
    assert ((dense(small) - exact).abs() <= half_a_step).all()
    assert small.stored.nbytes <= 3 * rows * neighbours + rows * 2 * (items // 255)


def test_quantized_numbers_are_off_by_half_a_scale_at_most() -> None:
    values = torch.randn(5, 40, generator=torch.Generator().manual_seed(0)) * torch.tensor(
        [[1e-6], [1], [9], [0], [50]]
    )
    found = QuantizedTable(values)
    assert ((found.whole() - values).abs() <= values.abs().amax(dim=1, keepdim=True) / 127 * 0.501).all()
    torch.testing.assert_close(found.rows(torch.tensor([[4, 1]]))[0], found.whole()[[4, 1]])
    layer = torch.nn.Linear(8, 3)
    inputs = torch.ones(2, 8)
    torch.testing.assert_close(QuantizedLinear(layer)(inputs), layer(inputs), atol=0.02, rtol=0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model.target": "rating"}, "model.target = rating; wanted ranking: a graph ranks the catalogue"),
        ({"model.encoder": "gpt2"}, "model.encoder = gpt2; wanted bert"),
        ({"adaptation.parameters": "lora"}, "adaptation.parameters = lora; wanted user-vector or head: the gradient"),
        ({"adaptation.parameters": "all"}, "adaptation.parameters = all; wanted user-vector or head"),
        ({"adaptation.pseudo-labels": 3}, "adaptation.pseudo-labels = 3; wanted 0: the graph has no self-training"),
    ],
)
def test_a_model_that_a_graph_cannot_hold_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(CheckpointError, match=f"cannot export a model of a run with {message}"):
        check_exportable(Settings().with_values(changes, "test"))


def test_the_exported_copy_leaves_the_model_as_it_was() -> None:
    model = exportable(SMALL_MODEL, AdaptationSettings()).full_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    EdgeGraph(model, int8=True)
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_quantized_graph_holds_less_than_a_third_of_the_bytes() -> None:
    random = torch.Generator().manual_seed(0)
    items, width = 2000, 64
    model = BertRecommender(torch.randn(items, 8, generator=random), ModelSettings(), AdaptationSettings())
    model.regressions = {
        order: [
            TaskRegression(
                neighbours=torch.rand(items, items, generator=random).topk(100, dim=1).indices,
                weights=torch.randn(items, 100, generator=random),
            )
        ]
        for order in ORDERS
    }
    exact, small = (
        sum(value.nbytes for value in EdgeGraph(model, int8=int8).state_dict().values()) for int8 in (False, True)
    )
    assert exact > items * (4 * width + 2 * 8 * 100)
    assert small < exact / 3
