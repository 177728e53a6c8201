"""Many messages and replies: none exists before its turn, none is kept after it."""

import json
import time
import weakref
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from client.data_source import load_learner
from client.node import Nodes
from metarec_shared import wire
from metarec_shared.broadcast import Broadcast
from metarec_shared.errors import AlreadyAnswered, FederationError, Refusal
from metarec_shared.exchange import TrainRequest
from metarec_shared.sources import load_item_features
from server.delivery import CLOCK_SLACK, MOST_IN_FLIGHT, REFILL, Tally, deliver
from server.failures import FAILURES_FILE, FailureLog
from server.recorded_grid import RecordedGrid
from simulations.engines import nodes_by_id
from simulations.grid import InProcessGrid
from tests.small import small_settings


class CountingGrid(InProcessGrid):
    """Answers half of what is open at every pull, and remembers the most that was open."""

    def __init__(self) -> None:
        learner = load_learner(small_settings())
        super().__init__(learner, 60, lambda ids: nodes_by_id(learner.settings, 60, ids), fold=False)
        self.open, self.most, self.pushed = 0, 0, 0

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        identifiers = list(super().push_messages(messages))
        self.pushed = max(self.pushed, len(identifiers))
        self.open += len(identifiers)
        self.most = max(self.most, self.open)
        return identifiers

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        identifiers = list(message_ids)
        for reply in super().pull_messages(identifiers[: max(1, len(identifiers) // 2)]):
            self.open -= 1
            yield reply


def a_question(**values: object) -> RecordDict:
    settings = small_settings(**values)
    learner = load_learner(settings)
    request = TrainRequest(round_number=1, sampling_rate=1.0, rating_scale=None, catalogue=learner.catalogue)
    parameters = {name: value.detach() for name, value in learner.model.named_parameters()}
    return wire.pack_request(request, wire.pack_parameters(parameters))


def test_messages_of_a_broadcast_share_their_content_and_are_made_one_by_one() -> None:
    InProcessGrid(load_learner(small_settings()), 60, lambda ids: nodes_by_id(small_settings(), 60, ids))
    content = a_question()
    broadcast = Broadcast(content=content, nodes=range(1, 10**9), kind="train", group_id="3")
    assert len(broadcast) == 10**9 - 1
    messages = iter(broadcast)
    first, second = next(messages), next(messages)
    assert first.content is second.content is content
    assert (first.metadata.dst_node_id, second.metadata.dst_node_id, second.metadata.group_id) == (1, 2, "3")
    assert [len(window) for window in Broadcast(content=content, nodes=range(7), kind="train").windows(3)] == [3, 3, 1]


def test_questions_are_pushed_as_replies_make_room() -> None:
    grid = CountingGrid()
    nodes = np.tile(np.arange(1, 61), 12)
    replies = deliver(grid, Broadcast(content=a_question(), nodes=nodes, kind="train"), timeout=100.0)
    assert sum(1 for _ in replies) == 720
    assert grid.most <= MOST_IN_FLIGHT < 720
    assert grid.pushed == REFILL


def test_the_server_holds_one_reply_at_a_time() -> None:
    learner = load_learner(small_settings())
    grid = InProcessGrid(learner, 60, lambda ids: nodes_by_id(learner.settings, 60, ids), fold=False)
    living: list[weakref.ref[Message]] = []
    most = 0
    for reply in deliver(grid, Broadcast(content=a_question(), nodes=range(1, 61), kind="train"), timeout=100.0):
        living.append(weakref.ref(reply))
        most = max(most, sum(reference() is not None for reference in living))
    assert len(living) == 60
    assert most <= 2  # the one at hand, and the one before it until the loop's name moves on


def test_only_nodes_that_a_message_goes_to_are_loaded() -> None:
    settings, loaded = small_settings(), []

    def load(node_ids: np.ndarray) -> Nodes:
        loaded.extend(node_ids.tolist())
        return nodes_by_id(settings, 60, node_ids)

    grid = InProcessGrid(load_learner(settings), 10**9, load)
    assert grid.get_node_ids() == range(1, 10**9 + 1)
    broadcast = Broadcast(content=a_question(), nodes=np.array([3, 7]), kind="train")
    (reply,) = deliver(grid, broadcast, timeout=10.0)
    assert reply.content.metric_records["numbers"]["nodes"] == 2
    assert loaded == [3, 7]


def test_a_broadcast_to_nobody_has_no_reply() -> None:
    grid = InProcessGrid(load_learner(small_settings()), 60, lambda ids: nodes_by_id(small_settings(), 60, ids))
    assert list(deliver(grid, Broadcast(content=RecordDict(), nodes=(), kind="evaluate"), timeout=1.0)) == []


class SilentGrid(CountingGrid):
    """Never answers."""

    def pull_messages(self, message_ids: Iterable[str]) -> Iterator[Message]:
        return iter(())


def test_nobody_is_waited_for_longer_than_the_timeout() -> None:
    grid: Grid = SilentGrid()
    assert list(deliver(grid, Broadcast(content=a_question(), nodes=range(1, 61), kind="train"), timeout=0.3)) == []


@pytest.mark.parametrize("bits", [8, 16])
def test_rounded_updates_are_never_folded(bits: int) -> None:
    settings = small_settings(traffic__update_bits=bits)
    grid = InProcessGrid(load_learner(settings), 60, lambda ids: nodes_by_id(settings, 60, ids))
    assert not grid.folds_replies
    assert load_item_features(settings).fingerprint


class HangingGrid(CountingGrid):
    """Never answers for the first questions, at once for the others."""

    hung = MOST_IN_FLIGHT

    def __init__(self) -> None:
        super().__init__()
        self._hung_ids: set[str] = set()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        identifiers = list(super().push_messages(messages))
        self._hung_ids.update(identifiers[: max(0, self.hung - len(self._hung_ids))])
        return identifiers

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        return super().pull_messages([i for i in message_ids if i not in self._hung_ids])


class Clock:
    """Time that passes only while somebody sleeps."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def test_nodes_that_hang_keep_nobody_else_from_being_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.delivery.time", Clock())
    nodes = np.tile(np.arange(1, 61), 12)
    replies = deliver(HangingGrid(), Broadcast(content=a_question(), nodes=nodes, kind="train"), timeout=12.0)
    assert sum(1 for _ in replies) == len(nodes) - MOST_IN_FLIGHT


class LosingGrid(CountingGrid):
    """Loses one push in ten: the message has no identifier, or none that is one."""

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        identifiers = list(super().push_messages(messages))
        return [*identifiers[2:], None]  # type: ignore[list-item]


def test_a_lost_question_is_not_waited_for() -> None:
    began = time.monotonic()
    broadcast = Broadcast(content=a_question(), nodes=range(1, 61), kind="train")
    assert sum(1 for _ in deliver(LosingGrid(), broadcast, timeout=100.0)) == 58
    assert time.monotonic() - began < 50


def test_replies_come_in_the_order_of_the_questions() -> None:
    learner = load_learner(small_settings())
    grid = InProcessGrid(learner, 60, lambda ids: nodes_by_id(learner.settings, 60, ids), fold=False)
    replies = deliver(grid, Broadcast(content=a_question(), nodes=range(1, 61), kind="train"), timeout=100.0)
    assert [reply.metadata.src_node_id for reply in replies] == list(range(1, 61))


def test_nobody_to_ask_is_nobody_to_wait_for() -> None:
    learner = load_learner(small_settings())
    grid = InProcessGrid(learner, 60, lambda ids: nodes_by_id(learner.settings, 60, ids))
    began = time.monotonic()
    assert not list(deliver(grid, Broadcast(content=a_question(), nodes=[], kind="train"), timeout=100.0))
    assert time.monotonic() - began < 50


def a_grid(kind: type[InProcessGrid] = InProcessGrid, nodes: int = 60) -> InProcessGrid:
    settings = small_settings()
    return kind(load_learner(settings), nodes, lambda ids: nodes_by_id(settings, 60, ids), fold=False)


class RepeatingGrid(InProcessGrid):
    """Gives every reply twice, and again at the next pull; and replies to messages that nobody asked."""

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        replies = list(super().pull_messages(message_ids))
        for reply in replies:
            stray = Message(reply.content, reply_to=asked(reply, "never asked"))
            yield from (stray, reply, reply)
        late, self.late = getattr(self, "late", []), replies
        yield from late


def asked(reply: Message, identifier: str) -> Message:
    """Return the question of a reply, under another identifier."""
    question = Message(RecordDict(), reply.metadata.src_node_id, reply.metadata.message_type)
    question.metadata.__dict__["_message_id"] = identifier
    return question


def test_a_reply_counts_once_and_only_if_it_was_asked_for(caplog: pytest.LogCaptureFixture) -> None:
    grid = a_grid(RepeatingGrid)
    for exchange in (1, 2):  # in the second one, replies to the first come too, late
        replies = deliver(grid, Broadcast(content=a_question(), nodes=range(1, 11), kind="train"), timeout=100.0)
        assert [reply.metadata.src_node_id for reply in replies] == list(range(1, 11)), exchange
        assert not list(replies.missing())
    assert "dropped a reply to no open question of this exchange: late, or a second one" in caplog.text


def test_a_tally_counts_no_reply_twice() -> None:
    tally = Tally(sent=10)
    replies = deliver(
        a_grid(RepeatingGrid), Broadcast(content=a_question(), nodes=range(1, 11), kind="train"), timeout=9.0
    )
    assert len(list(tally.read(replies, lambda content: content))) == 10
    assert (tally.answered, tally.failures) == (10, 0)


class LateGrid(InProcessGrid):
    """Node 2 answers no message of its first exchange before the second has begun."""

    def __init__(self, *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self._held: list[str] = []
        self.pulled: list[str] = []

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        messages = list(messages)
        identifiers = list(super().push_messages(messages))
        if not self._held:
            self._held = [i for i, m in zip(identifiers, messages, strict=True) if m.metadata.dst_node_id == 2]
        return identifiers

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        wanted = list(message_ids)
        self.pulled += [identifier for identifier in wanted if identifier in self._held]
        return super().pull_messages([identifier for identifier in wanted if identifier not in self._held])


def test_nobody_asks_for_the_replies_of_an_exchange_that_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.delivery.time", Clock())
    grid = a_grid(LateGrid)
    assert isinstance(grid, LateGrid)
    broadcast = Broadcast(content=a_question(), nodes=[1, 2, 3], kind="train", group_id="1")
    first = deliver(grid, broadcast, timeout=2.0)
    assert [reply.metadata.src_node_id for reply in first] == [1, 3]
    assert list(first.missing()) == [(2, "no answer within 2 s")]
    asked_for = len(grid.pulled)
    second = deliver(grid, broadcast, timeout=2.0)
    assert [reply.metadata.src_node_id for reply in second] == [1, 2, 3]
    assert len(grid.pulled) == asked_for > 1


class LyingGrid(InProcessGrid):
    """Its replies claim to come from node 7, and refuse."""

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        for reply in super().pull_messages(message_ids):
            reply.metadata.__dict__["_src_node_id"] = 7
            reply.content = wire.pack_refusal(Refusal("no"))
            yield reply


def test_a_reply_is_that_of_the_node_that_was_asked_whatever_it_claims() -> None:
    tally = Tally(sent=2)
    replies = deliver(a_grid(LyingGrid), Broadcast(content=a_question(), nodes=[3, 4], kind="train"), timeout=9.0)
    assert not list(tally.read(replies, lambda content: content))
    assert tally.refused == {3, 4}


class FullGrid(InProcessGrid):
    """Takes no message, as Flower's grid does where one is too large; or says of which it could not take."""

    lost: Sequence[str | None] = ()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        return list(self.lost)  # type: ignore[arg-type]


@pytest.mark.parametrize("lost", [(), (None, None)])
def test_a_message_that_could_not_be_sent_is_said_to_be_so(lost: Sequence[str | None]) -> None:
    grid = a_grid(FullGrid)
    grid.lost = lost  # type: ignore[attr-defined]
    replies = deliver(grid, Broadcast(content=a_question(), nodes=[3, 4], kind="train"), timeout=9.0)
    assert not list(replies)
    assert list(replies.missing()) == [(3, "the message could not be sent"), (4, "the message could not be sent")]


def test_nodes_that_there_was_no_time_to_ask_are_said_to_be_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.delivery.time", Clock())
    broadcast = Broadcast(content=a_question(), nodes=np.arange(1, 1001), kind="train")
    replies = deliver(SilentGrid(), broadcast, timeout=0.0)
    assert not list(replies)
    missing = dict(replies.missing())
    assert len(missing) == 1000
    assert (missing[1], missing[1000]) == ("no answer within 0 s", "not asked: the others took all of the 0 s")


def test_who_answered_already_is_not_let_go_as_who_refuses_is() -> None:
    content = wire.pack_refusal(AlreadyAnswered("round 1 of run 7 was answered already"))
    reply = Message(content, reply_to=Message(RecordDict(), 5, "train"))
    tally = Tally(sent=1)
    assert not list(tally.read([reply], lambda content: content))
    assert (tally.refused, tally.failures) == (set(), 1)
    assert tally.reason == "refused (AlreadyAnswered): round 1 of run 7 was answered already"


def test_failures_are_recorded_by_name_but_none_where_replies_fold(tmp_path: Path) -> None:
    for fold, name in ((False, "each"), (True, "folded")):
        learner = load_learner(small_settings())
        failing = InProcessGrid(learner, 60, _unreadable, fold=fold)
        log = FailureLog(tmp_path / name)
        log.enrolled(3, "site-3")
        question = Broadcast(content=a_question(), nodes=[3, 4], kind="train", group_id="8")
        tally = Tally(sent=2, folds=fold)
        assert not list(tally.read(deliver(RecordedGrid(failing, log), question, timeout=9.0), lambda content: content))
        assert tally.failures == 2
    assert not (tmp_path / "folded").exists()
    written = [json.loads(line) for line in (tmp_path / "each" / FAILURES_FILE).read_text().splitlines()]
    assert [(one["round"], one["kind"], one["node"], one["name"]) for one in written] == [
        (8, "train", "3", "site-3"), (8, "train", "4", None)
    ]  # fmt: skip
    assert {one["cause"] for one in written} == {"OSError, see the node's log"}


def _unreadable(node_ids: np.ndarray) -> Nodes:
    raise OSError("unreadable")


class KeepingGrid(SilentGrid):
    """Never answers, and keeps what it was given."""

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        self.kept = list(messages)
        return super().push_messages(self.kept)


def test_a_message_is_void_some_time_after_nobody_waits_for_its_answer() -> None:
    grid = KeepingGrid()
    list(deliver(grid, Broadcast(content=RecordDict(), nodes=[7], kind="train"), timeout=0.05))
    assert [message.metadata.ttl for message in grid.kept] == [0.05 + CLOCK_SLACK]


class UnreadableGrid(InProcessGrid):
    """Reads all replies at once, as Flower's grids do, and raises where one is of a node whose replies are no message.

    What it has read before stays, so that nothing is lost by a second pull.
    """

    broken: Sequence[int] = ()
    error: Exception = ValueError("no such object")

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        identifiers = list(message_ids)
        for identifier in identifiers:
            question = self._waiting.get(identifier)
            if isinstance(question, Message) and question.metadata.dst_node_id in self.broken:
                raise self.error
        return list(super().pull_messages(identifiers))


def test_a_reply_that_cannot_be_read_is_its_nodes_failure_and_the_others_count(tmp_path: Path) -> None:
    grid = a_grid(UnreadableGrid, nodes=7)
    grid.broken = [3]  # type: ignore[attr-defined]
    recorded = RecordedGrid(grid, FailureLog(tmp_path))
    tally = Tally(sent=7)
    replies = deliver(recorded, Broadcast(content=a_question(), nodes=range(1, 8), kind="train"), timeout=9.0)
    assert len(list(tally.read(replies, lambda content: content))) == 6
    assert (tally.answered, tally.failures) == (6, 1)
    (line,) = (tmp_path / FAILURES_FILE).read_text().splitlines()
    assert json.loads(line)["node"] == "3"
    assert json.loads(line)["cause"] == "the reply cannot be read: ValueError('no such object')"


def test_the_only_reply_that_is_left_may_be_one_that_cannot_be_read(tmp_path: Path) -> None:
    grid = a_grid(UnreadableGrid)
    grid.broken = [3]  # type: ignore[attr-defined]
    recorded = RecordedGrid(grid, FailureLog(tmp_path))
    (reply,) = deliver(recorded, Broadcast(content=a_question(), nodes=[3], kind="train"), timeout=9.0)
    assert reply.has_error()


@pytest.mark.parametrize(
    ("broken", "error"),
    [
        ([1, 2, 3], ValueError("closed")),
        ([2], ConnectionRefusedError("nobody listens")),
        ([2], httpx.ConnectError("nobody listens")),
        ([2], FederationError("enough")),
    ],
)
def test_a_grid_that_is_gone_is_no_nodes_failure(tmp_path: Path, broken: Sequence[int], error: Exception) -> None:
    grid = a_grid(UnreadableGrid)
    grid.broken, grid.error = broken, error  # type: ignore[attr-defined]
    recorded = RecordedGrid(grid, FailureLog(tmp_path))
    with pytest.raises(type(error), match=str(error)):
        list(deliver(recorded, Broadcast(content=a_question(), nodes=[1, 2, 3], kind="train"), timeout=9.0))
