"""The service on models that federations trained, asked over real connections."""

import asyncio
import gc
import json
import logging
import os
import stat
import threading
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from typer.testing import CliRunner

from client.recommender import Recommendation, Recommender
from client.service import answers, methods, serve
from client.service.cli import client_app
from client.service.limits import Limits
from client.service.proto.metarec.v1 import recommender_pb2 as pb
from client.service.security import bearing
from client.service.serve import ServeSettings, Service
from client.service.served import Models, load_served
from client.service.user_state import unpack_state
from metarec_shared.checkpoint import load_tensors, save_tensors
from metarec_shared.errors import CheckpointError, MetaRecError, ServiceError, SettingsError, TrustError
from simulations.benchmarks.service import Level, load, make_requests, soaked
from tests.certificates import Authority
from tests.service import PATIENCE, Running, history, refusal, replace_model, serving, train, with_service

Code = grpc.StatusCode
HISTORY: Sequence[Any] = [("b0003", 5.0), "b0007", ("Northern Map", 2.0)]
TIMED: Sequence[Any] = [("b0003", 5.0, 30.0), ("b0007", 2.0, 10.0), ("b0011", None, 20.0)]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tmp_path_factory.mktemp("model") / "run", model__rating_weight=0.1)


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tmp_path_factory.mktemp("model") / "other", seed=1, model__rating_weight=0.1)


@pytest.fixture
def folder(trained: Path, tmp_path: Path) -> Path:
    """Return a folder of the model that a test may change."""
    made = tmp_path / "served"
    made.mkdir()
    replace_model(made, trained)
    return made


@pytest.fixture(scope="module")
def rec(trained: Path) -> Recommender:
    return Recommender.load(trained)


def listed(items: Sequence[pb.Recommendation | Recommendation]) -> list[Any]:
    found = []
    for one in items:
        rated = one.HasField("rating") if isinstance(one, pb.Recommendation) else one.rating is not None
        rating = pytest.approx(one.rating, rel=1e-5) if rated else None
        found.append((one.item_id, one.title, pytest.approx(one.score, rel=1e-5, abs=1e-5), rating))
    return found


WISHES: list[dict[str, Any]] = [
    {},
    {"k": 1},
    {"k": 1000},
    {"exclude": ["b0001", "b0002", "nowhere"]},
    {"candidates": ["b0005", "b0006", "b0003", "nowhere"]},
    {"candidates": []},
    {"include_known": True, "k": 30},
    {"popularity": 0.0},
    {"popularity": 2.5, "diversity": 0.7, "k": 5},
    {"diversity": 1.0, "candidates": ["b0005", "b0006"]},
]


def request(told: Sequence[Any], wish: dict[str, Any]) -> pb.RecommendRequest:
    given = {name: pb.Candidates(items=value) if name == "candidates" else value for name, value in wish.items()}
    return pb.RecommendRequest(history=history(*told), **given)


def test_lists_are_those_of_the_python_api(trained: Path, rec: Recommender) -> None:
    async def test(running: Running) -> None:
        for told in (HISTORY, TIMED, [], ["nowhere"], ["b0001", "b0001"]):
            user = rec.adapt(told)
            for wish in WISHES:
                answer = await running.ask.Recommend(request(told, wish))
                assert listed(answer.items) == listed(user.recommend(**wish)), (told, wish)
                assert list(answer.skipped) == list(user.skipped)
                assert answer.model == running.service.models.served.version
        new = await running.ask.Recommend(pb.RecommendRequest())
        assert listed(new.items) == listed(rec.adapt([]).recommend())

    with_service(trained, test)


def test_calls_at_the_same_time_are_few_passes_and_the_same_lists(
    trained: Path, rec: Recommender, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes: list[int] = []
    whole = answers.scores_of

    def watched(state: Any, profiles: Any) -> Any:
        passes.append(len(profiles))
        return whole(state, profiles)

    monkeypatch.setattr(answers, "scores_of", watched)
    users = [(told, wish) for told in (HISTORY, TIMED, [], [f"b{n:04}" for n in range(20)]) for wish in WISHES] * 3

    async def test(running: Running) -> None:
        found = await asyncio.gather(*(running.ask.Recommend(request(*user)) for user in users))
        for (told, wish), answer in zip(users, found, strict=True):
            assert listed(answer.items) == listed(rec.adapt(told).recommend(**wish)), (told, wish)

    with_service(trained, test, max_wait=0.05)
    assert sum(passes) == len(users) == 120
    assert len(passes) <= 12


def test_long_histories_are_not_padded_to_one_another(
    trained: Path, rec: Recommender, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answers, "_PAIRS_AT_ONCE", 100)
    every = [f"b{n:04}" for n in range(40)]
    told = [every[:size] for size in (40, 1, 12, 0, 3, 2, 39)]

    async def test(running: Running) -> None:
        found = await asyncio.gather(*(running.ask.Recommend(request(one, {})) for one in told))
        assert [listed(one.items) for one in found] == [listed(rec.adapt(one).recommend()) for one in told]

    with_service(trained, test)


def test_a_state_stands_for_the_history(trained: Path, rec: Recommender) -> None:
    async def test(running: Running) -> None:
        adapted = await running.ask.Adapt(pb.AdaptRequest(history=history(*HISTORY, "nowhere")))
        assert (adapted.known, list(adapted.skipped)) == (3, ["nowhere"])
        answer = await running.ask.Recommend(pb.RecommendRequest(state=adapted.state))
        assert listed(answer.items) == listed(rec.adapt(HISTORY).recommend())
        more = pb.UpdateRequest(state=adapted.state, interactions=history(("b0021", 4.0)).interactions)
        updated = await running.ask.Update(more)
        assert updated.known == 4
        answer = await running.ask.Recommend(pb.RecommendRequest(state=updated.state))
        assert listed(answer.items) == listed(rec.adapt([*HISTORY, ("b0021", 4.0)]).recommend())
        new = await running.ask.Adapt(pb.AdaptRequest())
        assert unpack_state(new.state, Limits()).interactions == ()

    with_service(trained, test)


def test_explanations_and_similar_items_are_those_of_the_python_api(trained: Path, rec: Recommender) -> None:
    async def test(running: Running) -> None:
        state = (await running.ask.Adapt(pb.AdaptRequest(history=history(*HISTORY)))).state
        for asked in (
            pb.ExplainRequest(history=history(*HISTORY), item="b0001"),
            pb.ExplainRequest(state=state, item="b0001"),
            pb.ExplainRequest(item="b0001"),
        ):
            told = [] if asked.WhichOneof("user") is None else HISTORY
            expected = rec.adapt(told).explain("b0001")
            found = await running.ask.Explain(asked)
            assert (found.item_id, found.title, found.sentence) == ("b0001", expected.title, str(expected))
            assert [(one.item_id, one.title) for one in found.influences] == [
                (one.item_id, one.title) for one in expected.influences
            ]
            values = [one.influence for one in expected.influences]
            assert [one.influence for one in found.influences] == pytest.approx(values, abs=1e-6)
        similar = await running.ask.SimilarItems(pb.SimilarItemsRequest(item="Northern Map", k=4))
        assert listed(similar.items) == listed(rec.similar_items("Northern Map", 4))

    with_service(trained, test)


def test_a_batch_is_answered_in_order_whatever_is_wrong_with_some(trained: Path, rec: Recommender) -> None:
    users = [request(HISTORY, {"k": 1 + place % 5}) for place in range(150)]
    users[7] = pb.RecommendRequest(k=0)
    users[140] = pb.RecommendRequest(state=b"none")

    async def test(running: Running) -> None:
        found = [one async for one in running.ask.RecommendBatch(pb.RecommendBatchRequest(users=users))]
        assert [one.user for one in found] == list(range(150))
        for place, one in enumerate(found):
            if place in (7, 140):
                assert one.problem.code == Code.INVALID_ARGUMENT.value[0]
                assert one.problem.message.startswith("k: got 0" if place == 7 else "state: got 4 bytes")
            else:
                assert listed(one.response.items) == listed(rec.adapt(HISTORY).recommend(1 + place % 5))
        many = pb.RecommendBatchRequest(users=[pb.RecommendRequest()] * 1001)
        with pytest.raises(grpc.aio.AioRpcError, match="users: got 1,001, wanted at most 1,000"):
            await running.raw("RecommendBatch", many.SerializeToString())

    with_service(trained, test)


def test_batches_leave_room_and_are_not_refused_by_their_own_size(trained: Path) -> None:
    many = pb.RecommendBatchRequest(users=[request(HISTORY, {})] * 200)

    async def whole(running: Running) -> set[str]:
        return {one.WhichOneof("answer") async for one in running.ask.RecommendBatch(many)}

    async def test(running: Running) -> None:
        batches = [asyncio.create_task(whole(running)) for _ in range(4)]
        while not all(batch.done() for batch in batches):
            await running.ask.Recommend(request(HISTORY, {}))
        assert [batch.result() for batch in batches] == [{"response"}] * 4

    with_service(trained, test, max_waiting=10)


def test_more_batches_than_are_answered_at_a_time_are_refused(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    may, whole = threading.Event(), answers.scores_of

    def slow(state: Any, profiles: Any) -> Any:
        assert may.wait(PATIENCE)
        return whole(state, profiles)

    async def test(running: Running) -> None:
        monkeypatch.setattr(answers, "scores_of", slow)
        many = pb.RecommendBatchRequest(users=[request(HISTORY, {})] * 100).SerializeToString()
        first = [asyncio.create_task(running.raw("RecommendBatch", many)) for _ in range(2)]
        while running.service.figures.open < 2 or running.service.methods.waiting < 100:
            await asyncio.sleep(0.001)
        assert "metarec_service_waiting 1" in await scraped(running)
        code, said = await refusal(running.raw("RecommendBatch", many))
        assert code is Code.RESOURCE_EXHAUSTED
        assert said == "batches being answered: got 2, wanted fewer than 2; try again later"
        may.set()
        await asyncio.gather(*first)
        await running.raw("RecommendBatch", many)
        assert running.service.methods.waiting == 0

    with_service(trained, test, max_waiting=10, max_batches=2)


NAN, INF = float("nan"), float("inf")
RECOMMEND, ADAPT, UPDATE, EXPLAIN, SIMILAR = "Recommend", "Adapt", "Update", "Explain", "SimilarItems"


@pytest.mark.parametrize(
    ("method", "asked", "code", "said"),
    [
        (RECOMMEND, pb.RecommendRequest(k=0), Code.INVALID_ARGUMENT, "k: got 0, wanted from 1 to 1,000"),
        (RECOMMEND, pb.RecommendRequest(k=2**32 - 1), Code.INVALID_ARGUMENT, "k: got 4,294,967,295"),
        (
            RECOMMEND,
            pb.RecommendRequest(k=101, diversity=0.1),
            Code.INVALID_ARGUMENT,
            "k: got 101, wanted from 1 to 100",
        ),
        (
            RECOMMEND,
            pb.RecommendRequest(diversity=NAN),
            Code.INVALID_ARGUMENT,
            "diversity: got nan, wanted from 0 to 1",
        ),
        (RECOMMEND, pb.RecommendRequest(popularity=INF), Code.INVALID_ARGUMENT, "popularity: got inf, wanted from 0"),
        (RECOMMEND, pb.RecommendRequest(popularity=-1), Code.INVALID_ARGUMENT, "popularity: got -1.0, wanted from 0"),
        (RECOMMEND, pb.RecommendRequest(exclude=["a"] * 10_001), Code.INVALID_ARGUMENT, "exclude: got 10,001, wanted"),
        (
            RECOMMEND,
            pb.RecommendRequest(exclude=["a", ""]),
            Code.INVALID_ARGUMENT,
            "exclude, item 2: must not be empty",
        ),
        (
            RECOMMEND,
            pb.RecommendRequest(candidates=pb.Candidates(items=["a" * 513])),
            Code.INVALID_ARGUMENT,
            "candidates, item 1: got 513 bytes, wanted at most 512",
        ),
        (
            RECOMMEND,
            pb.RecommendRequest(history=history(("b0001", NAN))),
            Code.INVALID_ARGUMENT,
            "history, interaction 1: rating must be a finite number, got nan",
        ),
        (
            RECOMMEND,
            pb.RecommendRequest(history=history("b0001", ("b0002", 9.0))),
            Code.INVALID_ARGUMENT,
            "history, item 'b0002': rating must be between 1 and 5, got 9",
        ),
        (
            RECOMMEND,
            pb.RecommendRequest(history=history(*["b0001"] * 1001)),
            Code.INVALID_ARGUMENT,
            "history, interactions: got 1,001, wanted at most 1,000",
        ),
        (
            RECOMMEND,
            pb.RecommendRequest(history=pb.History(attributes={"gender": "F"})),
            Code.INVALID_ARGUMENT,
            "the model reads no attributes",
        ),
        (
            RECOMMEND,
            pb.RecommendRequest(history=pb.History(attributes={str(n): "F" for n in range(33)})),
            Code.INVALID_ARGUMENT,
            "attributes: got 33, wanted at most 32",
        ),
        (
            ADAPT,
            pb.AdaptRequest(history=history("b0001", ("b0002", None, 3.0))),
            Code.INVALID_ARGUMENT,
            "interaction 2: either every interaction has a time or none has",
        ),
        (UPDATE, pb.UpdateRequest(), Code.INVALID_ARGUMENT, "state: got 0 bytes that Adapt did not return"),
        (EXPLAIN, pb.ExplainRequest(item="nowhere"), Code.NOT_FOUND, "item: got 'nowhere', wanted an id or title"),
        (EXPLAIN, pb.ExplainRequest(), Code.INVALID_ARGUMENT, "item: must not be empty"),
        (SIMILAR, pb.SimilarItemsRequest(item="nowhere"), Code.NOT_FOUND, "item: got 'nowhere', wanted an id or title"),
        (SIMILAR, pb.SimilarItemsRequest(item="b0001", k=0), Code.INVALID_ARGUMENT, "k: got 0, wanted from 1 to 1,000"),
    ],
)
def test_what_makes_no_sense_or_is_too_much_is_said(
    trained: Path, method: str, asked: Any, code: Code, said: str
) -> None:
    async def test(running: Running) -> None:
        found = await refusal(running.raw(method, asked.SerializeToString()))
        assert found[0] is code
        assert said in found[1]

    with_service(trained, test)


def test_bytes_that_are_no_request_and_messages_that_are_too_large(trained: Path) -> None:
    async def test(running: Running) -> None:
        for method in (RECOMMEND, ADAPT, UPDATE, EXPLAIN, SIMILAR, "RecommendBatch"):
            assert (await refusal(running.raw(method, b"\xff\xff")))[0] is Code.INVALID_ARGUMENT
            assert (await refusal(running.raw(method, b"\0" * (5 << 20))))[0] is Code.RESOURCE_EXHAUSTED
        assert (await refusal(running.raw("Nothing", b"")))[0] is Code.UNIMPLEMENTED
        full = await running.ask.Adapt(pb.AdaptRequest(history=history(*["b0001"] * 1000)))
        more = pb.UpdateRequest(state=full.state, interactions=history("b0001").interactions)
        found = await refusal(running.raw(UPDATE, more.SerializeToString()))
        assert found == (
            Code.INVALID_ARGUMENT, "state and interactions together: got 1,001, wanted at most 1,000"
        )  # fmt: skip

    with_service(trained, test)


def test_a_failure_says_nothing_of_its_cause(
    trained: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("secret of b0003")

    monkeypatch.setattr(answers, "scores_of", fail)
    monkeypatch.setattr(methods, "explain", fail)

    async def test(running: Running) -> None:
        for method, asked in ((RECOMMEND, request(HISTORY, {})), (EXPLAIN, pb.ExplainRequest(item="b0001"))):
            found = await refusal(running.raw(method, asked.SerializeToString()))
            assert found == (Code.INTERNAL, "the service failed; its log says where")

    monkeypatch.setattr(serve, "Models", _untried(trained))
    with caplog.at_level(logging.DEBUG):
        with_service(trained, test)
    assert "a call failed: RuntimeError at" in caplog.text
    assert "secret" not in caplog.text
    assert "b0003" not in caplog.text


def _untried(folder: Path) -> Callable[..., Any]:
    served = load_served(folder)

    class Fixed:
        def __init__(self, *_: object) -> None:
            self.served, self.reloads, self.failures = served, 0, 0

        def look(self) -> bool:
            return False

    return Fixed


def test_a_call_whose_deadline_passes_is_not_computed(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    began, may, computed = threading.Event(), threading.Event(), []
    whole = answers.scores_of

    def slow(state: Any, profiles: Any) -> Any:
        computed.append(len(profiles))
        began.set()
        assert may.wait(PATIENCE)
        return whole(state, profiles)

    async def test(running: Running) -> None:
        monkeypatch.setattr(answers, "scores_of", slow)
        first = asyncio.ensure_future(running.ask.Recommend(request(HISTORY, {})))
        assert await asyncio.to_thread(began.wait, PATIENCE)
        late = [
            asyncio.create_task(refusal(running.ask.Recommend(request(HISTORY, {}), timeout=2.0))) for _ in range(5)
        ]
        while running.service.batcher.waiting < 5:
            assert not any(one.done() for one in late), "on a machine this busy, give it more time"
            await asyncio.sleep(0.001)
        assert {code for code, _ in await asyncio.gather(*late)} == {Code.DEADLINE_EXCEEDED}
        gone = running.ask.Recommend(request(HISTORY, {}))
        while running.service.batcher.waiting < 6:
            await asyncio.sleep(0.001)
        gone.cancel()
        while running.service.figures.open > 1:
            await asyncio.sleep(0.001)
        may.set()
        await first
        counted = (await scraped(running)).splitlines()
        assert 'metarec_service_calls_total{code="DEADLINE_EXCEEDED",method="Recommend"} 5.0' in counted
        assert 'metarec_service_calls_total{code="CANCELLED",method="Recommend"} 1.0' in counted
        assert 'metarec_service_calls_total{code="OK",method="Recommend"} 1.0' in counted

    with_service(trained, test)
    assert computed == [1]


def test_calls_beyond_the_queue_are_refused(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    may = threading.Event()
    whole = answers.scores_of

    def slow(state: Any, profiles: Any) -> Any:
        assert may.wait(PATIENCE)
        return whole(state, profiles)

    async def test(running: Running) -> None:
        monkeypatch.setattr(answers, "scores_of", slow)
        calls = [asyncio.ensure_future(running.ask.Recommend(request([], {}))) for _ in range(8)]
        while sum(call.done() for call in calls) < 3:
            await asyncio.sleep(0.001)
        may.set()
        found = await asyncio.gather(*calls, return_exceptions=True)
        refused = [one for one in found if isinstance(one, grpc.aio.AioRpcError)]
        assert {one.code() for one in refused} == {Code.RESOURCE_EXHAUSTED}
        assert len(refused) in (3, 4)

    with_service(trained, test, max_waiting=4, max_batch=1)


async def scraped(running: Running, path: str = "metrics") -> str:
    url = f"http://127.0.0.1:{running.service.metrics_port}/{path}"

    def read() -> str:
        with urllib.request.urlopen(url, timeout=PATIENCE) as answer:
            return str(answer.read().decode())

    return await asyncio.to_thread(read)


def test_figures_count_calls_and_batches_and_name_the_model(trained: Path) -> None:
    async def test(running: Running) -> None:
        await running.ask.Recommend(request(HISTORY, {}))
        await refusal(running.ask.SimilarItems(pb.SimilarItemsRequest(item="nowhere")))
        text = await scraped(running)
        version = running.service.models.served.version
        for line in (
            'metarec_service_calls_total{code="OK",method="Recommend"} 1.0',
            'metarec_service_calls_total{code="NOT_FOUND",method="SimilarItems"} 1.0',
            'metarec_service_seconds_count{method="Recommend"} 1.0',
            "metarec_service_batch_users_count 1.0",
            "metarec_service_waiting 0.0",
            f'metarec_service_model{{version="{version}"}} 1.0',
            'metarec_service_reloads_total{outcome="refused"} 0.0',
        ):
            assert line in text.splitlines()
        assert "b0003" not in text
        assert json.loads(await scraped(running, "health")) == {"healthy": True, "model": version}

    with_service(trained, test)


def test_health_and_reflection(trained: Path) -> None:
    async def asked() -> AsyncIterator[Any]:
        yield reflection_pb2.ServerReflectionRequest(list_services="")
        yield reflection_pb2.ServerReflectionRequest(file_containing_symbol="metarec.v1.Recommender")

    async def test(running: Running) -> None:
        health = health_pb2_grpc.HealthStub(running.channel)
        for service in ("", "metarec.v1.Recommender"):
            found = await health.Check(health_pb2.HealthCheckRequest(service=service))
            assert found.status == health_pb2.HealthCheckResponse.SERVING
        stub = reflection_pb2_grpc.ServerReflectionStub(running.channel)
        services, file = [one async for one in stub.ServerReflectionInfo(asked())]
        names = {one.name for one in services.list_services_response.service}
        assert names >= {"metarec.v1.Recommender", "grpc.health.v1.Health"}
        assert b"SimilarItems" in file.file_descriptor_response.file_descriptor_proto[0]

    with_service(trained, test)


def test_a_service_with_a_token_answers_those_who_bear_it(trained: Path, tmp_path: Path) -> None:
    token = "0123456789abcdef"
    file = tmp_path / "token"
    file.write_text(token)
    file.chmod(0o600)

    async def test(running: Running) -> None:
        asked = pb.RecommendRequest()
        headers: list[Any] = [
            (), (bearing(token + "x"),), (bearing(token[:-1]),), (("authorization", token),), (bearing(token),) * 2,
        ]  # fmt: skip
        for given in headers:
            for method in (RECOMMEND, "RecommendBatch"):
                call = running.raw(method, asked.SerializeToString(), metadata=given)
                assert (await refusal(call))[0] is Code.UNAUTHENTICATED
        assert (await running.ask.Recommend(asked, metadata=(bearing(token),))).items
        health = health_pb2_grpc.HealthStub(running.channel)
        assert await health.Check(health_pb2.HealthCheckRequest())

    with_service(trained, test, auth_token_file=file)


def test_a_service_speaks_tls_with_those_who_know_its_authority(trained: Path, tmp_path: Path) -> None:
    authority = Authority.new()
    certificate, key = authority.server(tmp_path / "server")
    key.chmod(0o600)
    trusted = authority.write(tmp_path / "ca.crt").read_bytes()
    strange = Authority.new("strange").write(tmp_path / "strange.crt").read_bytes()

    async def whole() -> None:
        tls = {"tls_cert": certificate, "tls_key": key}
        async with serving(trained, grpc.ssl_channel_credentials(trusted), **tls) as running:
            assert (await running.ask.Recommend(pb.RecommendRequest(), timeout=PATIENCE)).items
            other = grpc.ssl_channel_credentials(strange)
            for channel in (
                grpc.aio.secure_channel(running.service.address, other),
                grpc.aio.insecure_channel(running.service.address),
            ):
                async with channel:
                    call = channel.unary_unary("/metarec.v1.Recommender/Recommend")(b"", timeout=PATIENCE)
                    assert (await refusal(call))[0] is Code.UNAVAILABLE

    asyncio.run(whole())


def test_what_cannot_be_served_is_refused_at_the_start(trained: Path, tmp_path: Path) -> None:
    wrong: list[tuple[dict[str, Any], type[MetaRecError], str]] = [
        ({"model": tmp_path}, CheckpointError, "cannot be read"),
        ({"listen": "127.0.0.1"}, SettingsError, "--listen: got '127.0.0.1', wanted HOST:PORT"),
        ({"listen": "0.0.0.0:0"}, SettingsError, "is not this machine alone"),
        ({"tls_cert": tmp_path / "x"}, SettingsError, "wanted both or neither"),
        ({"auth_token_file": tmp_path / "none"}, TrustError, "cannot be read"),
    ]
    for values, error, said in wrong:
        with pytest.raises(error, match=said):
            Service(ServeSettings(**{"model": trained, **values}))

    async def test(running: Running) -> None:
        second = Service(ServeSettings(model=trained, listen=running.service.address))
        with pytest.raises(ServiceError, match="cannot listen on 127"):
            await second.start()

    with_service(trained, test)


async def ask_until(running: Running, enough: asyncio.Event) -> list[str]:
    """Ask again and again; return which model answered each time."""
    found = []
    while not enough.is_set():
        found.append((await running.ask.Recommend(request(HISTORY, {}))).model)
    return found


def test_a_newer_model_takes_over_and_no_call_fails(folder: Path, trained: Path, other: Path) -> None:
    async def test(running: Running) -> None:
        enough, models = asyncio.Event(), running.service.models
        callers = [asyncio.create_task(ask_until(running, enough)) for _ in range(8)]
        state = (await running.ask.Adapt(pb.AdaptRequest(history=history(*HISTORY)))).state
        for turn, source in enumerate((other, trained, other), start=1):
            replace_model(folder, source)
            while models.reloads < turn:
                await asyncio.sleep(0.01)
        new = await running.ask.Recommend(pb.RecommendRequest(state=state))
        assert listed(new.items) == listed(Recommender.load(other).adapt(HISTORY).recommend())
        enough.set()
        for one in await asyncio.gather(*callers):
            assert set(one) <= {load_served(trained).version, load_served(other).version}
            assert one[-1] == models.served.version
        assert models.failures == 0

    with_service(folder, test, look_every=0.02)


def test_a_corrected_title_is_served(folder: Path) -> None:
    models = Models(folder)
    before = models.served
    path = folder / "catalogue.json"
    path.write_text(path.read_text().replace('"Northern Map"', '"Northern Maps"'))
    assert models.reload()
    assert "Northern Maps" in models.served.recommender.catalogue.titles
    assert models.served.version != before.version


def test_whoever_serves_is_told_of_each_model_that_is(folder: Path, other: Path) -> None:
    told: list[int] = []
    models = Models(folder, loaded=lambda: told.append(len(told)))
    assert not models.reload(), "the same model"
    assert told == [0]
    replace_model(folder, other)
    assert models.reload()
    assert told == [0, 1]


def test_the_collector_looks_no_more_at_what_stays() -> None:
    """A look at all of it takes a fifth of a second under the interpreter's lock."""
    try:
        serve.spare_from_collection()
        assert gc.get_freeze_count() > 100_000  # torch and transformers alone
        assert len(gc.get_objects()) < 10_000
    finally:
        gc.unfreeze()


def test_a_broken_model_changes_nothing_and_is_counted(
    folder: Path, other: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def cut_short() -> None:
        (folder / "model.safetensors").write_bytes((other / "model.safetensors").read_bytes()[:5000])

    def not_finite() -> None:
        tensors, description = load_tensors(other / "model.safetensors")
        tensors["parameters/item_bias"][0] = NAN
        save_tensors(folder / "model.safetensors", tensors, description)

    def not_described() -> None:
        tensors, description = load_tensors(other / "model.safetensors")
        save_tensors(folder / "model.safetensors", tensors, {"format": description["format"]})

    def gone() -> None:
        (folder / "model.safetensors").unlink()

    async def test(running: Running) -> None:
        enough, models = asyncio.Event(), running.service.models
        before = models.served
        caller = asyncio.create_task(ask_until(running, enough))
        for turn, harm in enumerate((cut_short, not_finite, not_described, gone), start=1):
            harm()
            while models.failures < turn:
                await asyncio.sleep(0.01)
        assert models.served is before
        assert 'metarec_service_reloads_total{outcome="refused"} 4.0' in await scraped(running)
        replace_model(folder, other)
        while models.served is before:
            await asyncio.sleep(0.01)
        enough.set()
        assert set(await caller) <= {before.version, models.served.version}
        assert not await running.service.reload()

    with caplog.at_level(logging.INFO):
        with_service(folder, test, look_every=0.02)
    assert "cannot be served" in caplog.text
    assert "its scores are no finite numbers" in caplog.text
    assert "KeyError: 'catalogue'" in caplog.text
    assert "is still" in caplog.text


def test_a_stopping_service_answers_what_it_accepted(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    may, began = threading.Event(), threading.Event()
    whole = answers.scores_of

    def slow(state: Any, profiles: Any) -> Any:
        began.set()
        assert may.wait(PATIENCE)
        return whole(state, profiles)

    async def test() -> None:
        async with serving(trained, linger=0.2) as running:
            monkeypatch.setattr(answers, "scores_of", slow)
            health = health_pb2_grpc.HealthStub(running.channel).Watch(health_pb2.HealthCheckRequest())
            assert (await health.read()).status == health_pb2.HealthCheckResponse.SERVING
            calls = [asyncio.ensure_future(running.ask.Recommend(request([], {}))) for _ in range(10)]
            assert await asyncio.to_thread(began.wait, PATIENCE)
            while running.service.figures.open < 10:
                await asyncio.sleep(0.001)
            stopping = asyncio.create_task(running.service.stop())
            assert (await health.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
            assert (await refusal(running.ask.Recommend(request([], {}))))[0] is Code.UNAVAILABLE
            may.set()
            assert all(answer.items for answer in await asyncio.gather(*calls))
            await asyncio.wait_for(stopping, 10)
            assert running.service.calls.accepted == running.service.calls.answered == 10

    asyncio.run(test())


@contextmanager
def in_background(model: Path, **settings: Any) -> Iterator[str]:
    """Run a service in a thread of its own; return its address."""
    ready, ending = threading.Event(), threading.Event()
    address: list[str] = []

    async def whole() -> None:
        async with serving(model, **settings) as running:
            address.append(running.service.address)
            ready.set()
            await asyncio.to_thread(ending.wait)

    thread = threading.Thread(target=lambda: asyncio.run(whole()))
    thread.start()
    try:
        assert ready.wait(PATIENCE)
        yield address[0]
    finally:
        ending.set()
        thread.join()


def test_the_command_asks_a_service(trained: Path, rec: Recommender, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("0123456789abcdef")
    token.chmod(0o600)
    told = tmp_path / "history.txt"
    told.write_text("b0003\t5\nb0007\n\nnowhere\nNorthern Map\t2\n")
    state = tmp_path / "user.state"
    runner = CliRunner()

    def ask(*arguments: object, code: int = 0, given: str = "") -> Any:
        ran = runner.invoke(client_app, ["--address", address, *map(str, arguments)], input=given)
        assert ran.exit_code == code, (ran.output, ran.exception)
        return ran

    with in_background(trained, auth_token_file=token) as address:
        with_token = ("--token-file", token)
        best = [one.item_id for one in rec.adapt(HISTORY).recommend(3)]
        found = json.loads(
            ask(*with_token, "recommend", "--history", told, "--top-k", 3, "--format", "json").stdout
        )  # fmt: skip
        assert [one["item_id"] for one in found["items"]] == best
        assert found["skipped"] == ["nowhere"]
        table = ask(*with_token, "recommend", "--history", "-", given=told.read_text())
        assert "skipped, not in the catalogue: nowhere" in table.stderr
        assert all(item in table.stdout for item in best)
        ask(*with_token, "adapt", "--history", told, "--out", state)
        assert stat.S_IMODE(state.stat().st_mode) == 0o600
        found = json.loads(ask(*with_token, "recommend", "--state", state, "--format", "json").stdout)
        assert [one["item_id"] for one in found["items"][:3]] == best
        ask(*with_token, "update", "--state", state, "--history", "-", given="b0021\t4\n")
        found = json.loads(ask(*with_token, "recommend", "--state", state, "--format", "json").stdout)
        union = rec.adapt([*HISTORY, ("b0021", 4.0)])
        assert [one["item_id"] for one in found["items"]] == [one.item_id for one in union.recommend()]
        assert str(union.explain("b0001")) in ask(*with_token, "explain", "b0001", "--state", state).stdout
        assert rec.similar_items("b0001")[0].title in ask(*with_token, "similar", "b0001").stdout
        wrong: list[tuple[tuple[object, ...], str, type[MetaRecError], str]] = [
            (("recommend",), "", ServiceError, "UNAUTHENTICATED: authorization: wanted"),
            ((*with_token, "similar", "nowhere"), "", ServiceError, "NOT_FOUND: item: got 'nowhere'"),
            (
                (*with_token, "recommend", "--history", "-"),
                "b0001\tfive\n",
                MetaRecError,
                "line 1: rating must be a num",
            ),
            ((*with_token, "recommend", "--history", "-"), "a\tb\tc\td\n", MetaRecError, "got 4 parts between tabs"),
            ((*with_token, "recommend", "--history", told, "--state", state), "", SettingsError, "wanted one of them"),
            ((*with_token, "recommend", "--state", tmp_path / "none"), "", MetaRecError, "cannot be read"),
            ((*with_token, "recommend", "--top-k", (1 << 32) - 1), "", ServiceError, "k: got 4,294,967,295, wanted"),
            (("--tls-ca", tmp_path / "none", "recommend"), "", TrustError, "cannot be read"),
            (("--address", "example.org:1", *with_token, "recommend"), "", SettingsError, "is another machine"),
        ]
        for arguments, given, error, said in wrong:
            ran = ask(*arguments, code=1, given=given)
            assert isinstance(ran.exception, error)
            assert said in str(ran.exception)


def test_the_documented_example_runs(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = Path(__file__).resolve().parents[2]
    example = (root / "docs" / "service.md").read_text(encoding="utf-8").partition("```python\n")[2].partition("```")[0]
    assert example in (root / "README.md").read_text(encoding="utf-8")
    titles = {"Toy Story (1995)": "b0003", "Heat (1995)": "b0007", "Alien (1979)": "b0021"}
    with in_background(trained) as address:
        for title, item in {**titles, "127.0.0.1:50051": address}.items():
            assert title in example
            example = example.replace(title, item)
        exec(compile(example, "service.md", "exec"), {})
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == "not in the catalogue: []"
    assert len(printed) == 7


def test_the_benchmark_counts_what_callers_see(trained: Path) -> None:
    requests = make_requests(trained)
    assert requests == make_requests(trained)

    async def test(running: Running) -> None:
        found = await load(running.channel, requests, 8, 0.5)
        assert found.failures.total() == 0
        assert found.rate == len(found.latencies) / 0.5
        level = Level.of([found, found])
        assert (level.callers, level.failed, level.rates) == (8, 0, [found.rate] * 2)
        assert 0 < level.p50 <= level.p95 <= level.p99
        soak = await soaked(running.channel, [*requests, b"\xff"], os.getpid(), 0.5)
        assert 0 < soak.before <= soak.most
        refused = await load(running.channel, [b"\xff"], 2, 0.1)
        assert set(refused.failures) == {"INVALID_ARGUMENT"}
        assert not refused.latencies

    with_service(trained, test)
