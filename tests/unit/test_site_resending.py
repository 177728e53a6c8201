"""Replies on their way to a server that fails to take them."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from flwr.supercore.inflatable.inflatable_utils import ObjectPushError
from flwr.supernode import start_client_internal as flower

from client.site.resending import WAITS, repeat_sends

OBJECTS = [f"object {number}" for number in range(12)]


class Server:
    """Takes announcements and objects, but for what ``fails`` says of a call: a status, or that a session is over."""

    def __init__(self, fails: Callable[[str, int], object]) -> None:
        self._fails = fails
        self._calls = {"send": 0, "push": 0}
        self.sessions: list[str] = []
        self.taken: dict[str, str] = {}

    def send(self, message: str, tree: str, runtime: float) -> tuple[set[str], str]:
        self._call("send")
        self.sessions.append(f"session {len(self.sessions)}")
        return set(OBJECTS) - self.taken.keys(), self.sessions[-1]

    def push_object(self, run_id: int, session: str, object_id: str, content: bytes) -> None:
        if self._call("push") or session != self.sessions[-1]:
            raise ObjectPushError(object_id, run_id, session)
        self.taken[object_id] = session

    def _call(self, kind: str) -> bool:
        self._calls[kind] += 1
        found = self._fails(kind, self._calls[kind])
        if isinstance(found, int) and not isinstance(found, bool):
            request = httpx.Request("POST", "https://server/")
            raise httpx.HTTPStatusError("no", request=request, response=httpx.Response(found, request=request))
        return bool(found)


@pytest.fixture
def push(monkeypatch: pytest.MonkeyPatch) -> Callable[[Server], list[float]]:
    """Return a function that sends one reply, its objects by several threads, and returns how long was waited."""

    def as_flower_does(*, send: Any, push_object: Any, state: str) -> None:
        assert state == "as it is"
        missing, session = send("message", "tree", 1.0)
        with ThreadPoolExecutor(3) as pool:
            list(pool.map(lambda one: push_object(7, session, one, b"content"), sorted(missing)))

    monkeypatch.setattr(flower, "_push_messages", as_flower_does)
    waits: list[float] = []
    repeat_sends(waits.append)

    def push_to(server: Server) -> list[float]:
        waits.clear()
        flower._push_messages(send=server.send, push_object=server.push_object, state="as it is")  # type: ignore[call-arg, arg-type]
        return waits

    return push_to


def test_a_server_that_takes_a_reply_gets_it_once(push: Callable[[Server], list[float]]) -> None:
    server = Server(lambda kind, call: None)
    assert push(server) == []
    assert len(server.sessions) == 1
    assert sorted(server.taken) == sorted(OBJECTS)


def test_a_server_that_answers_5xx_is_asked_again(push: Callable[[Server], list[float]]) -> None:
    server = Server(lambda kind, call: 500 if kind == "send" and call <= 3 else 503 if call == 5 else None)
    assert push(server) == [*WAITS[:3], WAITS[0]]
    assert sorted(server.taken) == sorted(OBJECTS)


def test_a_session_that_is_over_is_followed_by_another_for_all_threads(push: Callable[[Server], list[float]]) -> None:
    server = Server(lambda kind, call: kind == "push" and call in (4, 5))
    waits = push(server)
    assert sorted(server.taken) == sorted(OBJECTS)
    assert 2 <= len(server.sessions) == 1 + len(waits), "one more for all threads, each time"


@pytest.mark.parametrize(
    ("failing", "error", "tries"),
    [(500, httpx.HTTPStatusError, len(WAITS)), (404, httpx.HTTPStatusError, 0), (True, ObjectPushError, len(WAITS))],
)
def test_what_stays_wrong_is_given_up(
    push: Callable[[Server], list[float]], failing: object, error: type[Exception], tries: int
) -> None:
    waits: list[float] = []
    kind = "push" if failing is True else "send"
    server = Server(lambda asked, call: failing if asked == kind else None)
    with pytest.raises(error):
        waits = push(server)
    assert waits == []
    assert len(server.sessions) <= 1 + len(OBJECTS) * tries
