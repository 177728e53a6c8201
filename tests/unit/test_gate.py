"""The gate before the SuperLink: other machines reach what nodes need, and nothing else."""

import asyncio
from typing import Any

import pytest

from server.coordinator.flower import environment
from server.coordinator.home import Home
from server.coordinator.superlink import MOST_BYTES, SIGNED, Gate, patient

OPERATORS = ["/v1/control/start-run", "/v1/runtime/pull-task", "/docs", "/health", "/"]
NODES = "/v1/fleet/pull-messages"
OTHERS = ["10.0.0.7", "127.0.0.2", "2001:db8::1", "::ffff:10.0.0.7", "a name", ""]
NODE = {**dict.fromkeys(SIGNED, b"x"), b"content-length": b"10"}
"""Headers of a node's request."""


def status_of(
    path: str, address: str | None, headers: dict[bytes, bytes] | None = None, kind: str = "http"
) -> int | None:
    """Return the status that a request is refused with; 200 where it got through to what stands behind the gate."""
    reached, sent = [], list[dict[str, Any]]()

    async def behind(scope: Any, receive: Any, send: Any) -> None:
        reached.append(scope["path"])

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        raise AssertionError("a refused request's body is not read")

    client = None if address is None else (address, 1)
    scope = {"type": kind, "path": path, "method": "POST", "client": client, "headers": list((headers or {}).items())}
    asyncio.run(Gate(behind)(scope, receive, send))
    if reached:
        return 200
    return sent[0]["status"] if kind == "http" else sent[0]["code"]


@pytest.mark.parametrize("address", ["127.0.0.1", "::1", "::ffff:127.0.0.1"])
def test_this_machine_reaches_everything(address: str) -> None:
    assert {status_of(path, address) for path in OPERATORS} == {200}
    assert status_of(NODES, address, NODE) == 200


@pytest.mark.parametrize("address", [*OTHERS, None])
def test_others_reach_what_nodes_call_and_nothing_else(address: str | None) -> None:
    assert {status_of(path, address, NODE) for path in OPERATORS} == {403}
    assert status_of(NODES, address, NODE) == 200


@pytest.mark.parametrize("header", [b"x-forwarded-for", b"forwarded", b"via", b"x-real-ip"])
def test_what_somebody_passed_on_is_not_from_this_machine(header: bytes) -> None:
    assert {status_of(path, "127.0.0.1", {header: b"127.0.0.1"}) for path in OPERATORS} == {403}


def test_whoever_is_no_node_is_not_read_to_the_end() -> None:
    for name in SIGNED:
        assert status_of(NODES, "10.0.0.7", {key: value for key, value in NODE.items() if key != name}) == 401
    for length, status in ((b"", 411), (b"-1", 411), (b"many", 411), (str(MOST_BYTES + 1).encode(), 413)):
        assert status_of(NODES, "10.0.0.7", NODE | {b"content-length": length}) == status
    assert status_of(NODES, "10.0.0.7", NODE | {b"content-length": str(MOST_BYTES).encode()}) == 200


@pytest.mark.parametrize("path", ["/v1/fleet", "/V1/FLEET/x", "//v1/fleet/x", "/x/v1/fleet/pull-messages", ""])
def test_a_path_that_only_looks_like_a_nodes_is_refused(path: str) -> None:
    assert status_of(path, "10.0.0.7", NODE) == 403


def test_a_web_socket_from_another_machine_is_closed() -> None:
    assert status_of("/v1/control/stream", "10.0.0.7", kind="websocket") == 1008


def test_the_servers_own_start_and_end_pass() -> None:
    assert status_of("", None, kind="lifespan") == 200


def test_a_refused_path_cannot_write_lines_into_the_log(caplog: pytest.LogCaptureFixture) -> None:
    status_of("/x\n2026-01-01 INFO all is well" + "y" * 500, "10.0.0.7")
    (record,) = caplog.records
    assert "\n" not in record.getMessage()
    assert len(record.getMessage()) < 200


def test_the_environment_cannot_move_where_requests_come_from(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORWARDED_ALLOW_IPS", "*")
    monkeypatch.setenv("FLWR_INTERNAL_GRPC_CONTROL_API", "1")
    found = environment(Home(tmp_path))
    assert not [name for name in found if name.startswith(("FORWARDED", "FLWR_INTERNAL"))]


def test_requests_wait_for_the_database_longer_than_flower_has_them() -> None:
    from flwr.supercore.constant import SQLITE_PRAGMAS

    pragmas = dict(patient(SQLITE_PRAGMAS))
    assert pragmas.keys() == dict(SQLITE_PRAGMAS).keys()
    assert int(pragmas.pop("busy_timeout")) > 5 * int(dict(SQLITE_PRAGMAS)["busy_timeout"])
    assert pragmas.items() <= dict(SQLITE_PRAGMAS).items()
