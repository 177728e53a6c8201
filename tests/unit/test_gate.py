"""The gate before the SuperLink: other machines reach what nodes need, and nothing else."""

import asyncio
from typing import Any

import pytest

from server.coordinator.superlink import Gate

PATHS = ["/v1/fleet/pull-messages", "/v1/control/start-run", "/v1/runtime/pull-task", "/docs", "/health", "/"]


def answered(path: str, client: tuple[str, int] | None, kind: str = "http") -> bool:
    """Return whether a request got through to what stands behind the gate; if not, how it was refused is checked."""
    reached, sent = [], list[dict[str, Any]]()

    async def behind(scope: Any, receive: Any, send: Any) -> None:
        reached.append(scope["path"])

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        raise AssertionError("a refused request's body is not read")

    scope = {"type": kind, "path": path, "method": "POST", "client": client}
    asyncio.run(Gate(behind)(scope, receive, send))
    if not reached and kind == "http":
        assert sent[0]["status"] == 403
    elif not reached:
        assert sent == [{"type": "websocket.close", "code": 1008}]
    return bool(reached)


@pytest.mark.parametrize("address", ["127.0.0.1", "::1", "::ffff:127.0.0.1"])
def test_this_machine_reaches_everything(address: str) -> None:
    assert [answered(path, (address, 1)) for path in PATHS] == [True] * len(PATHS)


@pytest.mark.parametrize("address", ["10.0.0.7", "127.0.0.2", "2001:db8::1", "::ffff:10.0.0.7", "a name", ""])
def test_others_reach_what_nodes_call_and_nothing_else(address: str) -> None:
    assert [answered(path, (address, 1)) for path in PATHS] == [True, *[False] * (len(PATHS) - 1)]


def test_whoever_has_no_address_is_another_machine() -> None:
    assert [answered(path, None) for path in PATHS] == [True, *[False] * (len(PATHS) - 1)]


@pytest.mark.parametrize("path", ["/v1/fleet", "/V1/FLEET/x", "//v1/fleet/x", "/x/v1/fleet/pull-messages", ""])
def test_a_path_that_only_looks_like_a_nodes_is_refused(path: str) -> None:
    assert not answered(path, ("10.0.0.7", 1))


def test_a_web_socket_from_another_machine_is_closed() -> None:
    assert not answered("/v1/control/stream", ("10.0.0.7", 1), kind="websocket")


def test_the_servers_own_start_and_end_pass() -> None:
    assert answered("", None, kind="lifespan")
