"""The task regression through a federation: nodes' moments, the blend that validation users choose, the checkpoint."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from flwr.app import ArrayRecord, Message, RecordDict
from flwr.serverapp import Grid

from client.app import answer
from client.data_source import load_learner, load_population, simulated_nodes
from client.moments import moments_of
from metarec_shared import wire
from metarec_shared.broadcast import Broadcast
from metarec_shared.checkpoint import load_checkpoint, save_checkpoint
from metarec_shared.errors import Refusal, WireError
from metarec_shared.evaluation import batched, cold_user_tasks, evaluate, model_scorer
from metarec_shared.exchange import (
    Additions,
    Cell,
    EvaluateRequest,
    Evaluation,
    Judged,
    Moments,
    MomentsRequest,
)
from metarec_shared.population import Population
from metarec_shared.settings import Settings
from metarec_shared.sources import load_training_dataset
from metarec_shared.split import Role
from metarec_shared.start_prior import StartPrior
from metarec_shared.task_regression import (
    TaskMoments,
    TaskRegression,
    discounted_moments,
    fit_task_regression,
    task_moments,
)
from metarec_shared.tasks import ORDERS, Order
from metarec_shared.text_kernel import TextKernel
from server.delivery import deliver
from server.regression import BLENDS, PENALTIES, START_BLENDS, _Fitter, read_blends, ways_to_blend
from simulations.engines import ENGINES
from tests.small import small_settings

RUN: dict[str, Any] = {"generator__users": 200, "federation__rounds": 4, "federation__evaluate_every": 4}


def run(tmp_path: Path, **values: Any) -> tuple[Settings, Path]:
    folder = tmp_path / "run"
    settings = small_settings(**{**RUN, **values, "run__out": str(folder)})
    ENGINES["in-process"](settings)
    return settings, folder


def fitted(settings: Settings, folder: Path, order: Order) -> list[TaskRegression]:
    """Return the regressions of a run, one a penalty, whose blends are still to be chosen."""
    population, items, in_time = load_population(settings), len(load_checkpoint(folder).text), order == "time"
    histories, users = population.interactions, population.users(Role.TRAINING)
    decay = settings.regression.decay if in_time else 1.0
    if in_time:
        found = discounted_moments(histories, items, users=users, decay=decay)
    else:
        found = task_moments(histories, items, users=users, support=settings.tasks.support)
    return [
        fit_task_regression(
            found, target="query" if in_time else "both", penalty=settings.regression.penalty * multiple,
            neighbours=settings.regression.neighbours, decay=decay,
        )
        for multiple in PENALTIES[order]
    ]  # fmt: skip


def ndcg(settings: Settings, folder: Path, order: Order, support: int, added: TaskRegression) -> float:
    """Return validation nDCG of the checkpoint with another regression."""
    checkpoint = load_checkpoint(folder)
    model = checkpoint.model()
    model.regressions = {order: [added]}
    model.start_prior = model.text_kernel = None
    dataset = load_training_dataset(settings)
    population = Population.of(dataset.interactions, checkpoint.rating_scale, settings.run.seed)
    users, sizes = population.users(Role.VALIDATION), settings.evaluation
    draws = range(sizes.validation_draws) if order == "random" else range(1)
    tasks = [
        task
        for draw in draws
        for task in cold_user_tasks(population, users, order, support, sizes.query, population.rating_scale, draw)
    ]
    return float(evaluate(model_scorer(model, adapt=True), batched(tasks), sizes.k)[f"ndcg@{sizes.k}"].mean())


def test_a_run_ends_with_regressions_whose_blend_is_best_on_validation_users(tmp_path: Path) -> None:
    settings, folder = run(tmp_path)
    checkpoint = load_checkpoint(folder)
    assert set(checkpoint.regressions) == {"random", "time"}
    for order, kept in checkpoint.regressions.items():
        judged, tried = read_blends(folder)[order], fitted(settings, folder, order)
        assert [list(regression.blends) for regression in kept] == [[1, 3, settings.evaluation.support]] * len(kept)
        gained = []
        for support in kept[0].blends:
            values = {
                (multiple, multiple * blend): ndcg(
                    settings, folder, order, support, replace(regression, blends={1: multiple * blend})
                )
                for regression, multiple in zip(tried, PENALTIES[order], strict=True)
                for blend in BLENDS
            }
            multiple, blend = max(values, key=lambda way: values[way])
            figures = judged[str(support)]
            chosen = (figures["penalty"] / settings.regression.penalty, figures["blend"])
            assert values[chosen] == pytest.approx(values[multiple, blend])
            assert figures["without"] == pytest.approx(values[1.0, 0.0])
            assert [one.blends[support] for one in kept if one.blends[support]] == [chosen[1]] * (chosen[1] > 0)
            for one in kept:
                if one.blends[support]:
                    torch.testing.assert_close(one.weights, tried[PENALTIES[order].index(chosen[0])].weights)
            gained.append(values[chosen] > values[1.0, 0.0])
        assert any(gained)
    assert len({figures["penalty"] for figures in read_blends(folder)["random"].values()}) > 1


def test_ways_to_blend_are_none_or_one_regression_by_blends_that_grow_with_its_penalty() -> None:
    ways = ways_to_blend((1.0, 8.0)).tolist()
    assert ways[0] == [0.0, 0.0]
    assert sorted(ways[1:]) == sorted(
        [[blend, 0.0] for blend in BLENDS[1:]] + [[0.0, 8 * blend] for blend in BLENDS[1:]]
    )


def test_a_run_ends_with_the_start_prior_of_its_training_users(tmp_path: Path) -> None:
    settings, folder = run(tmp_path, federation__nodes=3, regression__text_blend=False, regression__decay=0.01)
    prior, sizes = load_checkpoint(folder).start_prior, (1, 3, settings.evaluation.support)
    assert prior is not None
    assert prior.sizes == sizes
    population = load_population(settings)
    histories = [population.interactions.history(int(user)) for user in population.users(Role.TRAINING)]
    for size, logs in zip(sizes, prior.logs, strict=True):
        following = np.concatenate([history[size : size + settings.evaluation.query] for history in histories])
        np.testing.assert_allclose(logs, np.log(np.bincount(following, minlength=len(logs)) + 0.5), rtol=1e-5)


def test_the_prior_of_the_start_is_blended_in_as_validation_users_choose(tmp_path: Path) -> None:
    settings, folder = run(tmp_path, regression__text_blend=False)
    checkpoint, judged = load_checkpoint(folder), read_blends(folder)["time"]
    assert checkpoint.start_prior is not None
    sizes, model = settings.evaluation, checkpoint.model()
    dataset = load_training_dataset(settings)
    population = Population.of(dataset.interactions, checkpoint.rating_scale, settings.run.seed)
    users = population.users(Role.VALIDATION)
    for support in checkpoint.start_prior.sizes:
        batches = batched(cold_user_tasks(population, users, "time", support, sizes.query, population.rating_scale))
        values = []
        for blend in START_BLENDS:
            model.start_prior = checkpoint.start_prior.with_blends({support: blend})
            values.append(float(evaluate(model_scorer(model, adapt=True), batches, sizes.k)[f"ndcg@{sizes.k}"].mean()))
        chosen = judged[str(support)]
        assert chosen["validation"] == pytest.approx(max(values))
        assert START_BLENDS[int(np.argmax(values))] == chosen["start_blend"]
        assert (
            chosen["start_blend"]
            == dict(zip(checkpoint.start_prior.sizes, checkpoint.start_prior.blends, strict=True))[support]
        )


def test_likeness_of_text_is_blended_in_as_validation_users_choose(tmp_path: Path) -> None:
    settings, folder = run(tmp_path)
    checkpoint, judged = load_checkpoint(folder), read_blends(folder)
    assert checkpoint.text_blends
    sizes, model = settings.evaluation, checkpoint.model()
    model.start_prior = None  # chosen after it
    population = load_population(settings)
    users, gained = population.users(Role.VALIDATION), []
    for order in ORDERS:
        for support in (1, 3, sizes.support):
            batches = batched(
                [
                    task
                    for draw in range(sizes.validation_draws if order == "random" else 1)
                    for task in cold_user_tasks(
                        population, users, order, support, sizes.query, population.rating_scale, draw
                    )
                ]
            )
            values = []
            for blend in BLENDS:
                model.text_kernel = TextKernel.over(model.text, 8.0, blends={order: {support: blend}})
                scorer = model_scorer(model, adapt=True)
                values.append(float(evaluate(scorer, batches, sizes.k)[f"ndcg@{sizes.k}"].mean()))
            chosen = judged[order][str(support)]["text_blend"]
            assert values[BLENDS.index(chosen)] == pytest.approx(max(values))
            assert checkpoint.text_blends.get(order, {}).get(support, 0.0) == chosen
            gained.append(max(values) > values[0])
    assert any(gained)


def test_between_sizes_a_blend_is_linear_and_beyond_them_constant() -> None:
    regression = TaskRegression(
        neighbours=torch.tensor([[1], [2], [0], [3]]), weights=torch.ones(4, 1), blends={2: 4.0, 4: 8.0}
    )
    support = torch.tensor([[0, 1, 2, 3]])
    for size, wanted in ((0, 0.0), (1, 4.0), (2, 4.0), (3, 6.0), (4, 8.0)):
        counted = (torch.arange(4)[None] < size).float()
        added = regression.blended(support, counted, torch.tensor([size]))
        torch.testing.assert_close(added, wanted * regression.predictions(support, counted))
        assert float(added.sum()) == wanted * size


@pytest.mark.parametrize("nodes", [0, 3])
def test_moments_of_all_nodes_are_those_of_all_meta_training_users(tmp_path: Path, nodes: int) -> None:
    settings, folder = run(tmp_path, federation__nodes=nodes)
    population, items = load_population(settings), len(load_learner(settings).model.text)
    whole = task_moments(
        population.interactions, items, users=population.users(Role.TRAINING), support=settings.tasks.support
    )
    expected = {}
    for multiple in PENALTIES["random"]:
        penalty = settings.regression.penalty * multiple * whole.support.diagonal().mean()
        P = np.linalg.inv((whole.support.toarray() + penalty * np.eye(items)).astype(np.float64))
        T = P @ (whole.support + whole.query).toarray()
        expected[settings.regression.penalty * multiple] = T - P @ np.diag(np.diag(T) / np.diag(P))
    each, judged = torch.arange(items)[:, None], read_blends(folder)["random"]
    for regression in load_checkpoint(folder).regressions["random"]:
        size = next(size for size, blend in regression.blends.items() if blend)
        found = regression.predictions(each, torch.ones(items, 1, dtype=torch.bool))
        wanted = expected[judged[str(size)]["penalty"]]
        np.testing.assert_allclose(found.numpy(), wanted, atol=1e-4 * np.abs(wanted).max())


def test_it_can_be_switched_off_and_has_no_place_in_a_model_that_does_not_adapt(tmp_path: Path) -> None:
    for number, values in enumerate(({"regression__enabled": False}, {"adaptation__steps": 0})):
        _, folder = run(tmp_path / str(number), **values)
        assert not load_checkpoint(folder).regressions
        assert load_checkpoint(folder).start_prior is None
    _, folder = run(tmp_path / "regression alone", regression__start_prior=False, regression__text_blend=False)
    checkpoint = load_checkpoint(folder)
    assert checkpoint.regressions
    assert checkpoint.start_prior is None
    assert not checkpoint.text_blends
    assert checkpoint.model().text_kernel is None


def test_nodes_that_guard_their_users_are_not_asked_and_would_refuse(tmp_path: Path) -> None:
    private = {
        "privacy__mode": "site",
        "privacy__randomness": "simulated",
        "privacy__noise_multiplier": 1.0,
        "privacy__sampling_rate": 0.5,
        "federation__clip_norm": 1.0,
        "federation__nodes": 1,
        "model__item_ids": False,
    }
    settings, folder = run(tmp_path, **private)
    assert not load_checkpoint(folder).regressions
    learner = load_learner(settings)
    nodes = simulated_nodes(settings, 1, np.array([0]), np.array([1], dtype=np.uint64))
    request = wire.pack_request(MomentsRequest(catalogue=learner.catalogue))
    with pytest.raises(Refusal, match="not noised"):
        answer(learner, nodes, request, "query.moments")


def test_a_checkpoint_keeps_its_regressions_and_one_of_an_earlier_format_has_none(tmp_path: Path) -> None:
    _, folder = run(tmp_path)
    before = load_checkpoint(folder)
    save_checkpoint(before, tmp_path / "copy")
    after = load_checkpoint(tmp_path / "copy")
    assert len(before.regressions["random"]) > 1
    for order, found in before.regressions.items():
        for kept, regression in zip(after.regressions[order], found, strict=True):
            assert torch.equal(kept.neighbours, regression.neighbours)
            assert torch.equal(kept.weights, regression.weights)
            assert (kept.blends, kept.decay) == (regression.blends, regression.decay)
    assert before.text_blends
    assert after.text_blends == before.text_blends


def test_items_hidden_from_training_are_spoken_for_by_their_text_unless_that_is_off(tmp_path: Path) -> None:
    hidden = {"data__hold_out_items": 0.2}
    for number, by_text in enumerate((True, False)):
        _, folder = run(tmp_path / str(number), **hidden, regression__by_text=by_text)
        checkpoint = load_checkpoint(folder)
        known = torch.from_numpy(checkpoint.items.positions)
        unknown = torch.ones(len(checkpoint.text), dtype=torch.bool).index_fill(0, known, False)
        assert unknown.sum() > 2
        each = torch.ones(len(known), 1, dtype=torch.bool)
        for order, found in checkpoint.full_model().regressions.items():
            for regression, own in zip(found, checkpoint.regressions[order], strict=True):
                predicted = regression.predictions(known[:, None], each)
                torch.testing.assert_close(
                    predicted[:, known], own.predictions(torch.arange(len(known))[:, None], each)
                )
                assert bool((predicted[:, unknown].std(dim=1) > 0).any()) is by_text


def test_only_users_of_an_order_get_its_predictions(tmp_path: Path) -> None:
    settings, folder = run(tmp_path)
    checkpoint = load_checkpoint(folder)
    model = checkpoint.model()
    dataset = load_training_dataset(settings)
    population = Population.of(dataset.interactions, checkpoint.rating_scale, settings.run.seed)
    tasks = [population.evaluation_task(0, order, 4, 2, None) for order in ("random", "time")]
    batch = batched(tasks)[0]
    with torch.no_grad():
        added = model(batch)
        model.regressions = {}
        plain = model(batch)
    for row, order in enumerate(("random", "time")):
        expected = sum(
            regression.blends[4] * regression.predictions(batch.support, batch.support_mask)[row]
            for regression in checkpoint.regressions[order]  # type: ignore[index]
        )
        torch.testing.assert_close(added[row] - plain[row], expected, atol=1e-4, rtol=1e-4)


def moments() -> Moments:
    matrix = sp.csr_array(np.array([[1.0, 0.0, 0.5], [0.0, 2.0, 0.0], [0.5, 0.0, 0.0]], dtype=np.float32))
    starts = sp.csr_array(np.array([[0.0, 2.0, 1.0]], dtype=np.float32))
    found = {
        order: TaskMoments(support=times * matrix, query=sp.csr_array(times * matrix.T))
        for times, order in enumerate(ORDERS, start=1)
    }
    return Moments(moments=found, starts=starts, nodes=2)


def test_moments_travel() -> None:
    found = wire.unpack_moments(wire.pack_moments(moments()), 3, 1)
    assert found.nodes == 2
    for order, sent in moments().moments.items():
        np.testing.assert_array_equal(found.moments[order].support.toarray(), sent.support.toarray())
        np.testing.assert_array_equal(found.moments[order].query.toarray(), sent.query.toarray())
    np.testing.assert_array_equal(found.starts.toarray(), moments().starts.toarray())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("random support.starts", np.array([0, 2, 3], dtype=np.int64)),
        ("time support.starts", np.array([0, 3, 2, 4], dtype=np.int64)),
        ("random support.starts", np.array([0, 2, 3, 9], dtype=np.int64)),
        ("random support.starts", np.array([0, 2**63 - 1, -5, 4], dtype=np.int64)),
        ("random support.starts", np.array([0.0, 2.0, 3.0, 4.0])),
        ("time support.items", np.array([0, 2, 1, 3], dtype=np.int32)),
        ("random support.items", np.array([0, -2, 1, 0], dtype=np.int32)),
        ("random query.values", np.array([1.0, np.nan, 1.0, 1.0], dtype=np.float32)),
        ("time query.values", np.array([1.0], dtype=np.float32)),
        ("start.values", np.array([1.0, -1.0], dtype=np.float32)),
        ("start.values", np.array([1.0, 3e38], dtype=np.float32)),
        ("start.starts", np.array([0, 1, 2], dtype=np.int64)),
    ],
)
def test_moments_that_are_none_are_refused(name: str, value: np.ndarray) -> None:
    content = wire.pack_moments(moments())
    content["arrays"][name] = wire._encode(value)  # type: ignore[index,call-overload]
    with pytest.raises(WireError, match="moments must"):
        wire.unpack_moments(content, 3, 1)


@pytest.mark.parametrize(
    ("neighbours", "weights"),
    [
        (torch.tensor([[0], [3], [1]], dtype=torch.int32), torch.zeros(3, 1)),
        (torch.tensor([[0], [-1], [1]], dtype=torch.int32), torch.zeros(3, 1)),
        (torch.zeros(2, 1, dtype=torch.int32), torch.zeros(2, 1)),
        (torch.zeros(3, 2, dtype=torch.int32), torch.zeros(3, 1)),
        (torch.zeros(3, 1), torch.zeros(3, 1)),
        (torch.zeros(3, 1, dtype=torch.int32), torch.full((3, 1), torch.inf)),
    ],
)
def test_a_regression_that_is_none_is_refused(neighbours: torch.Tensor, weights: torch.Tensor) -> None:
    content = RecordDict({"blends": wire.pack_parameters({"0": torch.ones(2, 1)})})
    content["regression 0"] = wire.pack_parameters({"neighbours": neighbours, "weights": weights})
    with pytest.raises(WireError, match="task regression must"):
        wire.request_additions(content, CELLS[:1], 3)
    content["regression 0"] = ArrayRecord()
    with pytest.raises(WireError, match="task regression must"):
        wire.request_additions(content, CELLS[:1], 3)


@pytest.mark.parametrize(
    ("sizes", "logs"),
    [
        (torch.tensor([1, 3]), torch.zeros(1, 3)),
        (torch.tensor([1, 3]), torch.zeros(2, 4)),
        (torch.tensor([3, 1]), torch.zeros(2, 3)),
        (torch.tensor([0, 1]), torch.zeros(2, 3)),
        (torch.tensor([1.0]), torch.zeros(1, 3)),
        (torch.tensor([1]), torch.full((1, 3), torch.nan)),
        (torch.zeros(0, dtype=torch.int64), torch.zeros(0, 3)),
    ],
)
def test_a_start_prior_that_is_none_is_refused(sizes: torch.Tensor, logs: torch.Tensor) -> None:
    content = RecordDict({"blends": wire.pack_parameters({"0": torch.ones(2, 1)})})
    content["start-prior"] = wire.pack_parameters({"sizes": sizes, "logs": logs})
    with pytest.raises(WireError, match=r"start prior|sizes of support sets"):
        wire.request_additions(content, CELLS[:1], 3)


CELLS = [Cell("time", 3), Cell("random", 1)]


def additions() -> Additions:
    regressions = [
        TaskRegression(neighbours=torch.tensor([[1], [2], [0]]), weights=torch.full((3, 1), value))
        for value in (1.0, 2.0)
    ]
    prior = StartPrior(sizes=(1,), logs=torch.zeros(1, 3), blends=(0.0,))
    blends = dict(zip(CELLS, (torch.arange(8.0).reshape(2, 4), torch.ones(1, 4)), strict=True))
    return Additions(regressions=regressions, sharpness=3.0, start_prior=prior, blends=blends)


def a_request() -> EvaluateRequest:
    return EvaluateRequest(
        role=Role.VALIDATION, orders=("time", "random"), supports=(3, 1), adapt=True, draws=1, sampling_rate=1.0,
        rating_scale=None, catalogue="any",
    )  # fmt: skip


def test_additions_travel() -> None:
    sent = additions()
    assert a_request().cells == CELLS
    found = wire.request_additions(wire.pack_request(a_request(), None, sent), CELLS, 3)
    assert found is not None
    assert found.start_prior is not None
    assert sent.start_prior is not None
    assert list(found.blends) == CELLS
    assert all(torch.equal(found.blends[cell], ways) for cell, ways in sent.blends.items())
    assert found.sharpness == 3.0
    for one, other in zip(found.regressions, sent.regressions, strict=True):
        assert torch.equal(one.neighbours, other.neighbours)
        assert torch.equal(one.weights, other.weights)
        assert one.decay == other.decay
    assert found.start_prior.sizes == sent.start_prior.sizes
    assert torch.equal(found.start_prior.logs, sent.start_prior.logs)
    assert wire.request_additions(wire.pack_request(a_request()), CELLS, 3) is None


@pytest.mark.parametrize(
    "blends",
    [
        torch.ones(2, 3),
        torch.ones(0, 4),
        torch.ones(1000, 4),
        torch.ones(4),
        torch.ones(2, 4, dtype=torch.float64),
        torch.full((2, 4), torch.nan),
        torch.full((2, 4), 3e38),
    ],
)
def test_blends_that_are_none_are_refused(blends: torch.Tensor) -> None:
    sent = replace(additions(), blends=additions().blends | {CELLS[1]: blends})  # type: ignore[operator]
    content = wire.pack_request(a_request(), None, sent)
    with pytest.raises(WireError, match="blends must be"):
        wire.request_additions(content, CELLS, 3)
    for cells in (CELLS[:1], [*CELLS, Cell("time", 1)]):
        with pytest.raises(WireError, match=r"blends must be of cells 0.*, got 0, 1"):
            wire.request_additions(content, cells, 3)
    content["blends"] = ArrayRecord()
    with pytest.raises(WireError, match="blends must be of cells 0, 1, got none"):
        wire.request_additions(content, CELLS, 3)
    del content["blends"]
    with pytest.raises(
        WireError, match="must come with blends, got regression 0, regression 1, start-prior, text-kernel"
    ):
        wire.request_additions(content, CELLS, 3)


@pytest.mark.parametrize("decay", [[0.0], [1.5], [float("nan")], [0.5, 0.5]])
def test_a_decay_that_is_none_is_refused(decay: list[float]) -> None:
    content = wire.pack_request(a_request(), None, additions())
    content["regression 1"] = wire.pack_parameters(
        {
            "neighbours": torch.zeros(3, 1, dtype=torch.int32),
            "weights": torch.ones(3, 1),
            "decay": torch.tensor(decay, dtype=torch.float64),
        }
    )
    with pytest.raises(WireError, match="decay above 0"):
        wire.request_additions(content, CELLS, 3)


@pytest.mark.parametrize("sharpness", [-1.0, 1e5, float("inf"), float("nan"), 8, "8"])
def test_a_sharpness_that_is_none_is_refused(sharpness: Any) -> None:
    content = wire.pack_request(a_request(), None, additions())
    content["text-kernel"]["sharpness"] = sharpness  # type: ignore[index,call-overload]
    with pytest.raises(WireError, match="sharpness"):
        wire.request_additions(content, CELLS, 3)


@pytest.mark.parametrize("sizes", [(3, 1), (0, 1), (1, 1), (1, 2**40)])
def test_sizes_that_are_none_are_refused(sizes: tuple[int, ...]) -> None:
    request = MomentsRequest(catalogue="any", start_sizes=sizes)
    with pytest.raises(WireError, match="whole numbers"):
        wire.unpack_request(MomentsRequest, wire.pack_request(request))


@pytest.mark.parametrize("orders", [ORDERS, ("random",), ("time",)])
def test_moments_that_cannot_be_solved_leave_the_model_as_it_is_in_their_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, orders: tuple[Order, ...]
) -> None:
    """One node's moments of no users, far below zero, must not end the run after all of its rounds."""

    def spoilt(learner: Any, nodes: Any, request: MomentsRequest) -> Moments:
        answer = moments_of(learner, nodes, request)
        broken = sp.csr_array(sp.eye_array(learner.items, format="csr", dtype=np.float32) * np.float32(-1e9))
        spoilt_ones = {order: replace(answer.moments[order], support=broken) for order in orders}
        return replace(answer, moments={**answer.moments, **spoilt_ones})

    monkeypatch.setattr("client.app.moments_of", spoilt)
    _, folder = run(tmp_path)
    assert caplog.text.count("cannot be solved") == len(orders)
    checkpoint = load_checkpoint(folder)
    assert set(checkpoint.regressions) == set(read_blends(folder)) == set(ORDERS) - set(orders)
    assert (checkpoint.start_prior is None) or "time" not in orders


def test_validation_nodes_that_fail_meanwhile_cost_what_they_would_have_judged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = _Fitter._values

    def failing(self: _Fitter, additions: Additions) -> dict[Cell, list[float]]:
        return {} if additions.sharpness is not None else values(self, additions)

    monkeypatch.setattr(_Fitter, "_values", failing)
    _, folder = run(tmp_path)
    checkpoint = load_checkpoint(folder)
    assert checkpoint.regressions
    assert not checkpoint.text_blends


def test_nodes_are_asked_once_for_moments_and_validation_nodes_once_for_regressions_and_once_beside_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Broadcast] = []

    def noted(grid: Grid, messages: Broadcast, timeout: float) -> Iterator[Message]:
        asked.append(messages)
        return deliver(grid, messages, timeout)

    monkeypatch.setattr("server.regression.deliver", noted)
    run(tmp_path)
    assert [one.kind for one in asked] == ["query.moments", "evaluate", "evaluate"]
    cells = [wire.unpack_request(EvaluateRequest, one.content).cells for one in asked[1:]]
    assert cells == [[Cell(order, support) for order in ORDERS for support in (1, 3, 4)]] * 2
    alone, beside = (set(one.content) - {"request", "parameters", "blends"} for one in asked[1:])
    assert alone == {f"regression {place}" for place in range(4)}
    assert {"text-kernel", "start-prior"} < beside <= alone | {"text-kernel", "start-prior"}


def asked_at_once(settings: Settings, cells: Sequence[Cell], *, has_time: bool = True) -> Evaluation:
    """Return what all validation users say of what ``additions`` has for the catalogue, in some cells."""
    learner, population = load_learner(settings), load_population(settings)
    count = settings.generator.users
    nodes = simulated_nodes(settings, count, np.arange(count), np.arange(count, dtype=np.uint64))
    untimed = replace(population, interactions=replace(population.interactions, has_time=has_time))
    shift = torch.arange(1, learner.items + 1)[:, None] % learner.items
    regressions = [TaskRegression(neighbours=shift, weights=torch.ones(learner.items, 1))]
    blends = {cell: torch.tensor([[0.0], [cell.support]]) for cell in cells}
    request = EvaluateRequest(
        role=Role.VALIDATION,
        orders=tuple(order for order, _ in cells),
        supports=tuple(support for _, support in cells),
        adapt=True,
        draws=2,
        sampling_rate=1.0,
        rating_scale=None,
        catalogue=learner.catalogue,
    )
    parameters = {name: value.detach() for name, value in learner.model.named_parameters()}
    content = wire.pack_request(
        request, wire.pack_parameters(parameters), Additions(regressions=regressions, blends=blends)
    )
    reply = answer(learner, replace(nodes, population=untimed), content, "evaluate")
    return wire.unpack_evaluation(reply, [2] * len(cells))


def test_cells_asked_at_once_are_judged_as_those_asked_alone(tmp_path: Path) -> None:
    settings = small_settings(run__out=str(tmp_path))
    cells = [Cell(order, support) for order in ORDERS for support in (1, 3)] + [Cell("random", 10_000)]
    together = asked_at_once(settings, cells).cells
    for cell, judged in zip(cells, together, strict=True):
        assert asked_at_once(settings, [cell]).cells == [judged]
    assert together[0].users == 2 * together[2].users > 0
    assert together[0].sums["ndcg@10"][0] != together[0].sums["ndcg@10"][1]
    assert together[-1] == Judged(users=0, sums={})


def test_a_node_without_timestamps_judges_nobody_in_time_order(tmp_path: Path) -> None:
    settings = small_settings(run__out=str(tmp_path))
    random, in_time = asked_at_once(settings, [Cell("random", 1), Cell("time", 1)], has_time=False).cells
    assert random.users > 0
    assert in_time == Judged(users=0, sums={})
