"""A service in the test's own event loop, and a client of it."""

import asyncio
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from client.service.proto.metarec.v1 import recommender_pb2 as pb
from client.service.proto.metarec.v1 import recommender_pb2_grpc
from client.service.serve import ServeSettings, Service
from tests.integration.test_in_process_federation import run
from tests.small import small_settings

PATIENCE = 30.0
"""Seconds after which a call of a test has failed."""


def train(folder: Path, *, seed: int = 0, **values: object) -> Path:
    """Train a small model that reads ratings."""
    sizes = {"federation__rounds": 10, "generator__users": 120, "evaluation__support": 8, "model__feedback": True}
    run(small_settings(run__out=str(folder), run__seed=seed, **{**sizes, **values}))
    return folder


def replace_model(folder: Path, by: Path) -> None:
    """Put another run's model into a folder, each file by a rename, as a checkpoint is written."""
    for name in ("catalogue.json", "model.safetensors"):
        shutil.copy(by / name, folder / f".{name}")
        (folder / f".{name}").replace(folder / name)


def history(*told: str | tuple[Any, ...]) -> pb.History:
    """Return a history: items, or items with a rating and a time."""
    rows = [(one,) if isinstance(one, str) else one for one in told]
    return pb.History(
        interactions=[pb.Interaction(**dict(zip(("item", "rating", "time"), row, strict=False))) for row in rows]
    )


@dataclass(frozen=True, kw_only=True)
class Running:
    """A service that runs, and who asks it."""

    service: Service
    channel: grpc.aio.Channel
    ask: Any

    async def raw(self, method: str, content: bytes, **options: Any) -> bytes:
        """Send bytes to a method; return the bytes of its answer, or the last of its answers."""
        path = f"/metarec.v1.Recommender/{method}"
        options = {"timeout": PATIENCE, **options}
        if method != "RecommendBatch":
            answer: bytes = await self.channel.unary_unary(path)(content, **options)
            return answer
        answer = b""
        async for one in self.channel.unary_stream(path)(content, **options):
            answer = one
        return answer


@asynccontextmanager
async def serving(
    model: Path, credentials: grpc.ChannelCredentials | None = None, **settings: Any
) -> AsyncIterator[Running]:
    """Run a service on a free port of the loopback interface."""
    service = Service(ServeSettings(**{"model": model, "listen": "127.0.0.1:0", "linger": 0.0, **settings}))
    await service.start(metrics=True)
    try:
        if credentials is None:
            channel = grpc.aio.insecure_channel(service.address)
        else:
            channel = grpc.aio.secure_channel(service.address, credentials)
        async with channel:
            yield Running(service=service, channel=channel, ask=recommender_pb2_grpc.RecommenderStub(channel))
    finally:
        await service.stop()


def with_service(model: Path, test: Callable[[Running], Awaitable[None]], **settings: Any) -> None:
    """Run a test against a service."""

    async def whole() -> None:
        async with serving(model, **settings) as running:
            await asyncio.wait_for(test(running), 2 * PATIENCE)

    asyncio.run(whole())


async def refusal(call: Awaitable[Any]) -> tuple[grpc.StatusCode, str]:
    """Return the status and the text that a call ends with, which it must not answer."""
    try:
        answer = await call
    except grpc.aio.AioRpcError as error:
        return error.code(), error.details() or ""
    raise AssertionError(f"was answered: {answer}")
