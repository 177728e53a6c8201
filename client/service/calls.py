"""What every call goes through: its bytes are parsed, its deadline read, its errors are status codes, it is counted.

Nothing of a user is logged. What nobody foresaw ends as INTERNAL, which says nothing of the cause; the log says where
it was raised, not with which values.
"""

import logging
import math
import time
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import grpc
from google.protobuf.message import DecodeError, Message

from client.service.metrics import ServiceCollector
from client.service.refusal import RefusedError, invalid
from metarec_shared.errors import MetaRecError

logger = logging.getLogger(__name__)

LONGEST_MESSAGE = 1_000
"""Characters of an error's text: headers are no place for more."""

ROUNDING, TRANSIT_SECONDS = 0.01, 0.005
"""What gRPC rounds a deadline up by at most on its way here, as a share of it; what a call and its end take."""

STOPPING = (grpc.StatusCode.UNAVAILABLE, "the service is stopping; try again")
"""What a call ends with that comes too late."""

Request = TypeVar("Request", bound=Message)


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """What a method knows of its call beside the request: until when the caller waits, on the monotonic clock."""

    deadline: float


class Calls:
    """Wraps methods as gRPC's handlers.

    Args:
        figures: Where calls are counted.

    Attributes:
        stopping: Whether new calls are refused.
        accepted: Calls that were not.
        answered: Those of them whose callers waited for the answer.
    """

    def __init__(self, figures: ServiceCollector) -> None:
        self._figures = figures
        self.stopping = False
        self.accepted = 0
        self.answered = 0

    def single(
        self, name: str, kind: type[Request], method: Callable[[Request, Call], Awaitable[Message]]
    ) -> "grpc.RpcMethodHandler[Any, Any]":
        """Wrap a method with one answer."""

        async def handle(content: bytes, context: Any) -> bytes:
            if self.stopping:
                await context.abort(*STOPPING)
            with _Counted(self, self._figures, name, context) as counted:
                try:
                    answer = await method(_parsed(kind, content), counted.call)
                    return answer.SerializeToString()
                except Exception as error:
                    counted.code, message = status_of(error)
            return await context.abort(counted.code, message)  # type: ignore[no-any-return]

        return grpc.unary_unary_rpc_method_handler(handle)

    def stream(
        self, name: str, kind: type[Request], method: Callable[[Request, Call], AsyncIterator[Message]]
    ) -> "grpc.RpcMethodHandler[Any, Any]":
        """Wrap a method with a stream of answers."""

        async def handle(content: bytes, context: Any) -> AsyncIterator[bytes]:
            if self.stopping:
                await context.abort(*STOPPING)
            with _Counted(self, self._figures, name, context) as counted:
                try:
                    async for answer in method(_parsed(kind, content), counted.call):
                        yield answer.SerializeToString()
                    return
                except Exception as error:
                    counted.code, message = status_of(error)
            await context.abort(counted.code, message)

        return grpc.unary_stream_rpc_method_handler(handle)


class _Counted:
    """Counts a call, however it ends."""

    def __init__(self, calls: Calls, figures: ServiceCollector, name: str, context: Any) -> None:
        self._calls, self._figures, self._name = calls, figures, name
        remaining = context.time_remaining()
        self._began = time.monotonic()
        self._rounding = 0.0 if remaining is None else ROUNDING * remaining + TRANSIT_SECONDS
        self.call = Call(deadline=math.inf if remaining is None else self._began + remaining)
        self.code = grpc.StatusCode.OK

    def __enter__(self) -> "_Counted":
        self._calls.accepted += 1
        self._figures.open += 1
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        now = time.monotonic()
        if kind is not None:  # the caller has gone: gRPC cancels what it waited for
            late = now >= self.call.deadline - self._rounding
            self.code = grpc.StatusCode.DEADLINE_EXCEEDED if late else grpc.StatusCode.CANCELLED
        else:
            self._calls.answered += 1
        self._figures.open -= 1
        self._figures.answered(self._name, self.code.name, now - self._began)


def status_of(error: Exception) -> tuple[grpc.StatusCode, str]:
    """Return the status code and the text that a caller gets for an error."""
    if isinstance(error, RefusedError):
        return error.code, str(error)[:LONGEST_MESSAGE]
    if isinstance(error, MetaRecError):
        return grpc.StatusCode.INVALID_ARGUMENT, str(error)[:LONGEST_MESSAGE]
    at = traceback.extract_tb(error.__traceback__)[-1:]
    where = f"{at[0].filename}:{at[0].lineno}" if at else "?"
    logger.error("a call failed: %s at %s", type(error).__name__, where)
    return grpc.StatusCode.INTERNAL, "the service failed; its log says where"


def _parsed(kind: type[Request], content: bytes) -> Request:
    try:
        return kind.FromString(content)
    except DecodeError as error:
        raise invalid(f"request: got {len(content):,} bytes that are no {kind.DESCRIPTOR.full_name}") from error
