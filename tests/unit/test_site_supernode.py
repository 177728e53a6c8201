"""The SuperNode of a site stores and runs no bundle but the approved one, in Flower's own loop."""

import hashlib
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from flwr.app import Error, Message, RecordDict
from flwr.common.constant import ErrorCode
from flwr.proto.message_pb2 import ObjectTree
from flwr.supercore.fab import Fab
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.supercore.run import Run
from flwr.supernode import start_client_internal as flower
from flwr.supernode.nodestate import NodeState, NodeStateFactory

from client.site.supernode import check_bundles, is_approved
from simulations.grid import InProcessGrid  # noqa: F401 - gives this process the identity that Flower asks for
from tests.integration.test_in_process_federation import make_grid
from tests.small import small_settings

BUNDLE, OTHER = b"the approved bundle", b"another bundle"


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


class EndedError(Exception):
    """The fake server has nothing more to say."""


class FakeServer:
    """The SuperLink's side of Flower's loop: runs with bundles, one message a run, and what came back."""

    def __init__(self, runs: list[tuple[str, bytes]]) -> None:
        make_grid(small_settings())
        self._runs = runs
        self._messages = [self._message(number) for number in range(1, len(runs) + 1)]
        self._waiting = list(self._messages)
        self.replies: list[Message] = []

    @staticmethod
    def _message(run: int) -> Message:
        message = Message(RecordDict(), 5, "train")
        message.metadata.__dict__.update(_run_id=run, _src_node_id=1, _dst_node_id=5)
        message.metadata.__dict__["_message_id"] = message.object_id
        return message

    def receive(self) -> tuple[Message, ObjectTree] | None:
        if not self._waiting:
            raise EndedError
        message = self._waiting.pop(0)
        return message, get_object_tree(message)

    def get_run(self, run_id: int) -> Run:
        run = Run.create_empty(run_id)
        run.fab_hash = self._runs[run_id - 1][0]
        return run

    def get_fab(self, fab_hash: str, run_id: int) -> Fab:
        return Fab(fab_hash, self._runs[run_id - 1][1], {})

    def pull_object(self, run_id: int, object_id: str) -> bytes:
        for message in self._messages:
            objects = get_all_nested_objects(message)
            if object_id in objects:
                return objects[object_id].deflate()
        raise KeyError(object_id)

    @contextmanager
    def connection(self, **_: Any) -> Iterator[tuple[Any, ...]]:
        yield (
            5, self.receive, None, self.get_run, self.get_fab, self.pull_object, lambda *_: None, lambda *_: None,
        )  # fmt: skip


@pytest.fixture
def hooks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let Flower's own functions come back after the test, and leave this process's signals alone."""
    for name in ("_pull_and_store_message", "_verify_fab", "_init_connection", "_push_messages"):
        monkeypatch.setattr(flower, name, getattr(flower, name))
    monkeypatch.setattr(flower, "register_signal_handlers", lambda **_: None)
    monkeypatch.setattr(flower, "get_fused_config_from_fab", lambda content, run: {})


def serve(server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> NodeState:
    """Run Flower's own loop until the server has nothing more to say; replies are taken where they would be sent."""

    def keep_replies(*, state: NodeState, **_: Any) -> None:
        server.replies += state.get_messages_legacy(is_reply=True)

    monkeypatch.setattr(flower, "_init_connection", server.connection)
    monkeypatch.setattr(flower, "_push_messages", keep_replies)
    factory = NodeStateFactory(objectstore_factory=ObjectStoreFactory())
    with pytest.raises(EndedError):
        flower.start_client_internal(
            state_factory=factory, server_address="127.0.0.1:1", node_config={}, insecure=True, isolation="process"
        )
    return factory.state()


@pytest.mark.usefixtures("hooks")
def test_a_foreign_bundle_is_refused_before_it_is_kept_and_the_node_goes_on(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(logging.getLogger("flwr"), "propagate", True)
    check_bundles(digest(BUNDLE))
    server = FakeServer([(digest(OTHER), OTHER), (digest(BUNDLE), BUNDLE), (digest(OTHER), OTHER)])
    state = serve(server, monkeypatch)
    assert [state.get_run(run) is not None for run in (1, 2, 3)] == [False, True, False]
    assert state.get_fab(digest(OTHER)) is None
    kept = state.get_fab(digest(BUNDLE))
    assert kept is not None
    assert kept.content == BUNDLE
    assert [task.run_id for task in state.get_tasks()] == [2]
    assert [reply.metadata.run_id for reply in server.replies] == [1, 3]
    for reply in server.replies:
        assert isinstance(reply.error, Error)
        assert reply.error.code == ErrorCode.INVALID_FAB
    assert f"bundle {digest(OTHER)} is refused: this site approved {digest(BUNDLE)}" in caplog.text


@pytest.mark.usefixtures("hooks")
def test_the_approved_hash_on_another_bundle_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    check_bundles(digest(BUNDLE))
    server = FakeServer([(digest(BUNDLE), OTHER), (digest(OTHER), BUNDLE)])
    state = serve(server, monkeypatch)
    assert len(server.replies) == 2
    assert not state.get_tasks()


@pytest.mark.usefixtures("hooks")
def test_without_the_hooks_flower_takes_any_bundle(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the tests above would show nothing."""
    server = FakeServer([(digest(OTHER), OTHER)])
    state = serve(server, monkeypatch)
    assert len(state.get_tasks()) == 1
    assert not server.replies


def test_a_bundle_is_approved_by_its_content_and_by_what_its_run_names() -> None:
    assert is_approved(Fab(digest(BUNDLE), BUNDLE, {}), digest(BUNDLE))
    assert not is_approved(Fab(digest(BUNDLE), OTHER, {}), digest(BUNDLE))
    assert not is_approved(Fab("another", BUNDLE, {}), digest(BUNDLE))
    assert not is_approved(Fab(digest(OTHER), OTHER, {}), digest(BUNDLE))
