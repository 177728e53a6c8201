"""The real command under load, under attack, and told to stop; a minute or two."""

import asyncio
import random
import re
import signal
import socket
import struct
import subprocess
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from client.service.proto.metarec.v1 import recommender_pb2 as pb
from client.service.proto.metarec.v1 import recommender_pb2_grpc
from client.service.served import load_served
from client.service.user_state import Known, pack_state
from tests.e2e.processes import environment, free_ports, started, wait_until
from tests.service import PATIENCE, history, refusal, replace_model, train

pytestmark = pytest.mark.slow

Code = grpc.StatusCode
METHODS = ("Recommend", "RecommendBatch", "Adapt", "Update", "Explain", "SimilarItems")
HOSTILE = 10_000


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tmp_path_factory.mktemp("model") / "run")


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tmp_path_factory.mktemp("model") / "other", seed=1)


@contextmanager
def service(model: Path, folder: Path, *options: object) -> Iterator[tuple[subprocess.Popen[bytes], str, Path]]:
    """Run the command until it listens; return its process, its address and its log."""
    address, log = f"127.0.0.1:{free_ports(1)[0]}", folder / "service.log"
    with started("serve", "--model", model, "--listen", address, *options, env=environment(folder), log=log) as process:
        wait_until(lambda: b"listening on" in log.read_bytes(), "the service listens", process)
        yield process, address, log


@asynccontextmanager
async def channel(address: str) -> Any:
    async with grpc.aio.insecure_channel(address) as one:
        yield one


def test_a_service_that_is_told_to_stop_under_load_loses_no_accepted_call(trained: Path, tmp_path: Path) -> None:
    asked = pb.RecommendRequest(history=history(("b0003", 5.0), "b0007")).SerializeToString()

    async def ask(path: str, address: str, found: Counter[Code]) -> None:
        async with channel(address) as one:
            call = one.unary_unary(f"/metarec.v1.Recommender/{path}")
            while True:
                try:
                    await call(asked if path == "Recommend" else b"", timeout=PATIENCE)
                    found[Code.OK] += 1
                except grpc.aio.AioRpcError as error:
                    found[error.code()] += 1
                    return

    async def load(process: subprocess.Popen[bytes], address: str) -> Counter[Code]:
        found: Counter[Code] = Counter()
        callers = [asyncio.create_task(ask(path, address, found)) for path in ("Recommend", "Adapt") * 24]
        while found[Code.OK] < 2000:
            await asyncio.sleep(0.01)
        process.terminate()
        await asyncio.wait_for(asyncio.gather(*callers), PATIENCE)
        return found

    with service(trained, tmp_path) as (process, address, log):
        found = asyncio.run(load(process, address))
        assert process.wait(PATIENCE) == 0
    assert set(found) == {Code.OK, Code.UNAVAILABLE}
    stopped = re.search(r"stopped: (\d+) calls were accepted, (\d+) answered", log.read_text())
    assert stopped is not None
    assert int(stopped[1]) == int(stopped[2]) == found[Code.OK] >= 2000
    assert "b0003" not in log.read_text()


def test_a_signal_loads_the_model_anew(trained: Path, other: Path, tmp_path: Path) -> None:
    folder = tmp_path / "served"
    folder.mkdir()
    replace_model(folder, trained)

    async def model(address: str) -> str:
        async with channel(address) as one:
            answer = await recommender_pb2_grpc.RecommenderStub(one).Recommend(pb.RecommendRequest(), timeout=PATIENCE)
            return str(answer.model)

    with service(folder, tmp_path, "--log-format", "json") as (process, address, log):
        assert asyncio.run(model(address)) == load_served(trained).version
        replace_model(folder, other)
        process.send_signal(signal.SIGHUP)
        wait_until(lambda: b"it was" in log.read_bytes(), "the newer model is served", process)
        assert asyncio.run(model(address)) == load_served(other).version
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE) == 0


class Hostile:
    """Draws requests that nobody should send."""

    def __init__(self, seed: int) -> None:
        self._drawn = random.Random(seed)
        told = history(("b0003", 5.0, 1.0), ("b0007", 2.0, 2.0), ("nowhere", None, 3.0))
        state = pack_state(Known())
        self._valid: dict[str, Any] = {
            "Recommend": pb.RecommendRequest(history=told, k=5, exclude=["b0001"], diversity=0.5),
            "RecommendBatch": pb.RecommendBatchRequest(users=[pb.RecommendRequest(history=told)] * 3),
            "Adapt": pb.AdaptRequest(history=told),
            "Update": pb.UpdateRequest(state=state, interactions=told.interactions),
            "Explain": pb.ExplainRequest(history=told, item="b0001"),
            "SimilarItems": pb.SimilarItemsRequest(item="b0001", k=3),
        }

    def __call__(self, method: str) -> bytes:
        kinds: list[Callable[[str], bytes]] = [self._noise, self._damaged, self._damaged, self._odd, self._odd]
        return self._drawn.choice(kinds)(method)

    def _noise(self, _: str) -> bytes:
        return self._drawn.randbytes(self._drawn.choice([1, 2, 7, 50, 1000]))

    def _damaged(self, method: str) -> bytes:
        content = bytearray(self._valid[method].SerializeToString())
        for _ in range(self._drawn.randint(1, 4)):
            place = self._drawn.randrange(len(content))
            match self._drawn.randrange(4):
                case 0:
                    content[place] ^= 1 << self._drawn.randrange(8)
                case 1:
                    del content[place:]
                    content += b"\x0a"
                case 2:
                    content[place:place] = self._drawn.randbytes(3)
                case _:
                    content += content[place:]
        return bytes(content)

    def _odd(self, method: str) -> bytes:
        number = self._drawn.choice([float("nan"), float("inf"), -float("inf"), 1e308, -1.0, 0.0, 9.0])
        name = self._drawn.choice(["", "nowhere", "b0001", "x" * 600, "\0", "‮☂", "b0001\n", "../../etc/passwd"])
        told = history(*[(name, number, number)] * self._drawn.choice([1, 1, 2, 2, 20, 20, 1000, 1001]))
        k = self._drawn.choice([0, 1, 1000, 1001, 2**31, 2**32 - 1])
        state = self._drawn.choice([b"", b"MRU\x01", pack_state(Known())[:-1], pack_state(Known()), b"x" * 2_000])
        match method:
            case "Recommend":
                one = pb.RecommendRequest(k=k, popularity=number, diversity=number, exclude=[name])
                self._drawn.choice([lambda: one.history.CopyFrom(told), lambda: setattr(one, "state", state)])()
                return one.SerializeToString()
            case "RecommendBatch":
                few = [pb.RecommendRequest(k=k, state=state), pb.RecommendRequest(popularity=number)]
                return pb.RecommendBatchRequest(users=few * self._drawn.choice([1, 1, 20, 501])).SerializeToString()
            case "Adapt":
                told.attributes[name] = "F"
                return pb.AdaptRequest(history=told).SerializeToString()
            case "Update":
                return pb.UpdateRequest(state=state, interactions=told.interactions).SerializeToString()
            case "Explain":
                return pb.ExplainRequest(state=state, item=name).SerializeToString()
            case _:
                return pb.SimilarItemsRequest(item=name, k=k).SerializeToString()


def enormous(method: str) -> bytes:
    """Return a request with a million interactions, as small as they can be."""
    empty = b"\x0a\x00" * 1_000_000
    match method:
        case "Adapt":
            return b"\x0a" + varint(len(empty)) + empty
        case "Update":
            return b"\x12\x00" * 1_000_000
        case _:
            return b"\x12" + varint(len(empty)) + empty


def varint(value: int) -> bytes:
    content = b""
    while value > 127:
        content, value = content + struct.pack("B", value & 127 | 128), value >> 7
    return content + struct.pack("B", value)


def test_ten_thousand_hostile_requests_get_a_proper_status_and_the_service_stays_up(
    trained: Path, tmp_path: Path
) -> None:
    proper = {Code.OK, Code.INVALID_ARGUMENT, Code.NOT_FOUND, Code.RESOURCE_EXHAUSTED}
    fair = pb.RecommendRequest(history=history(("b0003", 5.0), "b0007"))

    async def ended(one: grpc.aio.Channel, method: str, content: bytes) -> Code:
        path = f"/metarec.v1.Recommender/{method}"
        try:
            if method == "RecommendBatch":
                async for _ in one.unary_stream(path)(content, timeout=PATIENCE):
                    pass
            else:
                await one.unary_unary(path)(content, timeout=PATIENCE)
        except grpc.aio.AioRpcError as error:
            return error.code()
        return Code.OK

    async def attack(address: str) -> None:
        hostile, drawn = Hostile(0), random.Random(1)
        found: Counter[Code] = Counter()
        async with channel(address) as one:
            before = await recommender_pb2_grpc.RecommenderStub(one).Recommend(fair, timeout=PATIENCE)

            async def send(count: int) -> None:
                for _ in range(count):
                    method = drawn.choice(METHODS)
                    found[await ended(one, method, hostile(method))] += 1

            await asyncio.gather(*(send(HOSTILE // 25) for _ in range(25)))
            for method in ("Recommend", "Adapt", "Update", "Explain"):
                assert await ended(one, method, enormous(method)) is Code.INVALID_ARGUMENT
                assert await ended(one, method, enormous(method) * 3) is Code.RESOURCE_EXHAUSTED
            large = (("x-large", "x" * 40_000),)
            call: Awaitable[Any] = one.unary_unary("/metarec.v1.Recommender/Adapt")(
                b"", metadata=large, timeout=PATIENCE
            )
            assert (await refusal(call))[0] is Code.RESOURCE_EXHAUSTED
            assert await ended(one, "Nothing", b"") is Code.UNIMPLEMENTED
        host, port = address.split(":")
        for _ in range(50):
            with socket.create_connection((host, int(port)), timeout=PATIENCE) as plain:
                plain.sendall(drawn.randbytes(1000))
        async with channel(address) as one:
            after = await recommender_pb2_grpc.RecommenderStub(one).Recommend(fair, timeout=PATIENCE)
            assert after == before
            health = await health_pb2_grpc.HealthStub(one).Check(health_pb2.HealthCheckRequest(), timeout=PATIENCE)
            assert health.status == health_pb2.HealthCheckResponse.SERVING
        assert sum(found.values()) == HOSTILE
        assert set(found) <= proper, found
        assert found[Code.INVALID_ARGUMENT] > HOSTILE / 2

    with service(trained, tmp_path) as (process, address, log):
        asyncio.run(attack(address))
        process.terminate()
        assert process.wait(PATIENCE) == 0
    assert "a call failed" not in log.read_text()
