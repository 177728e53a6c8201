"""Send messages to nodes and take replies as they come, so that the server never holds them all."""

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple, TypeVar

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from metarec_shared import wire
from metarec_shared.broadcast import Broadcast
from metarec_shared.errors import AlreadyAnswered, FederationError, Refusal, WireError
from metarec_shared.settings import FederationSettings
from server.failures import FailureLog, one_line

POLL_SECONDS = 0.1

MOST_IN_FLIGHT = 512
"""Messages that wait for their answers at one time."""

REFILL = 64
"""Messages pushed together."""

PATIENCE = 0.05
"""Share of the timeout after which a message without an answer makes room for another; it is still listened for."""

logger = logging.getLogger(__name__)


AnswerT = TypeVar("AnswerT")

CLOCK_SLACK = 600.0
"""Seconds beyond the timeout after which a message is void: a node that comes back later would answer, and be charged,
for nothing. Clocks may differ by minutes, so not at once."""

LOGGED_FAILURES = 5
"""Failures of one exchange that are logged one by one; the rest are counted."""


def folds_replies(grid: Grid) -> bool:
    """Return whether the grid may fold the replies of several nodes into one; only a grid of our own says so."""
    return bool(getattr(grid, "folds_replies", False))


def node_count(reply: Message, *, folds: bool) -> int:
    """Return how many nodes a reply stands for: one, unless the grid folds replies, whatever the reply claims."""
    if not folds or reply.has_error() or "numbers" not in reply.content:
        return 1
    nodes = reply.content.metric_records["numbers"]["nodes"]
    return int(nodes) if isinstance(nodes, int) else 1


def deliver(grid: Grid, messages: Broadcast, timeout: float) -> "Replies":
    """Return the replies to ``messages``, one by one, until every node answered or ``timeout`` seconds passed.

    A grid that folds takes the broadcast whole. To any other, messages are given as replies make room, so that neither
    questions nor answers pile up anywhere. A node that does not answer keeps its room for a share of the timeout only,
    and a message that the grid could not take is not waited for.
    """
    return Replies(grid, messages, timeout)


class Replies(Iterator[Message]):
    """The replies to one broadcast as they come, and which nodes there are none of.

    A reply counts once, and only if it answers a message of this broadcast that none did before: Flower's grids give
    replies by the identifiers of the messages that are asked for, so one that is late is never seen; whatever a grid
    gives beyond that is dropped.

    Attributes:
        messages: What is asked.
        timeout: Seconds that answers are waited for.
        folds: Whether a reply may stand for several nodes; then nothing is known of single nodes.
        failures: Where failures are written; None: nowhere.
        node: Flower's id of the node whose message the last reply answers, whatever the reply says of itself.
    """

    def __init__(self, grid: Grid, messages: Broadcast, timeout: float) -> None:
        self.messages, self.timeout = replace(messages, seconds=timeout + CLOCK_SLACK), timeout
        self.folds = folds_replies(grid)
        self.failures: FailureLog | None = getattr(grid, "failures", None)
        if self.failures is not None and messages.group_id.isdigit():
            self.failures.round_number = int(messages.group_id)
        self.node = 0
        self._grid = grid
        self._open: dict[str, _Question] = {}  # by identifier, in the order of the questions
        self._untaken: list[int] = []
        self._asked = 0
        self._stream = self._replies()

    def __next__(self) -> Message:
        """Return the next reply."""
        return next(self._stream)

    def missing(self) -> Iterator[tuple[int, str]]:
        """Yield the nodes that no reply came from, when all have come, each with the reason; none where replies fold.

        A grid that does not say which messages it took leaves open which nodes these are.
        """
        if self.folds:
            return
        for node in self._untaken:
            yield node, "the message could not be sent"
        for question in self._open.values():
            if question.node is not None:
                yield question.node, f"no answer within {self.timeout:g} s"
        for node in self.messages.nodes[self._asked :]:
            yield int(node), f"not asked: the others took all of the {self.timeout:g} s"

    def _replies(self) -> Iterator[Message]:
        if not len(self.messages):
            return
        began = time.monotonic()
        windows: Iterator[Broadcast | list[Message]] = (
            iter([self.messages]) if self.folds else self.messages.windows(REFILL)
        )
        exhausted = False
        while self._open or not exhausted:
            recent = time.monotonic() - PATIENCE * self.timeout
            while not exhausted and sum(q.asked >= recent for q in self._open.values()) <= MOST_IN_FLIGHT - REFILL:
                window = next(windows, None)
                exhausted = window is None
                if window is not None:
                    self._push(window)
            idle = True
            ours = dict(self._open)
            for reply in self._grid.pull_messages(list(ours)):
                idle = False
                if self._takes(reply, ours):
                    yield reply
            if time.monotonic() >= began + self.timeout:
                return
            if idle:
                time.sleep(POLL_SECONDS)

    def _push(self, window: Broadcast | list[Message]) -> None:
        """Give messages to the grid and remember whose they are."""
        identifiers = list(self._grid.push_messages(window))
        self._asked += len(window)
        nodes: list[int | None] = [None] * len(identifiers)
        if not isinstance(window, Broadcast):
            asked = [message.metadata.dst_node_id for message in window]
            if len(identifiers) == len(asked):
                nodes = list(asked)
                self._untaken += [node for node, one in zip(asked, identifiers, strict=True) if not one]
            elif not identifiers:
                self._untaken += asked
        now = time.monotonic()
        self._open |= {one: _Question(now, node) for one, node in zip(identifiers, nodes, strict=True) if one}

    def _takes(self, reply: Message, ours: Mapping[str, "_Question"]) -> bool:
        """Return whether a reply answers an open question, and note whose; many fold under one question."""
        identifier = reply.metadata.reply_to_message_id
        question = self._open.pop(identifier, None)
        if question is None and not (self.folds and identifier in ours):
            logger.warning("dropped a reply to no open question of this exchange: late, or a second one")
            return False
        node = None if question is None else question.node
        self.node = reply.metadata.src_node_id if node is None else node
        return True


class _Question(NamedTuple):
    """A message that waits for its answer: when it was pushed, and to which node, where that is known."""

    asked: float
    node: int | None


def wait_for_nodes(grid: Grid, least: int, timeout: float) -> Sequence[int]:
    """Return the ids of the connected nodes once there are at least ``least`` of them.

    When ``timeout`` seconds have passed, whatever is connected by then is returned. Ids that come as a range stay one.
    """
    deadline = time.monotonic() + timeout
    nodes = _connected(grid)
    while len(nodes) < least and time.monotonic() < deadline:
        logger.info("%d of %d nodes connected, waiting", len(nodes), least)
        time.sleep(min(1.0, max(0.0, deadline - time.monotonic())))
        nodes = _connected(grid)
    return nodes


def _connected(grid: Grid) -> Sequence[int]:
    nodes = grid.get_node_ids()
    return nodes if isinstance(nodes, range) else list(nodes)


@dataclass(slots=True, kw_only=True)
class Tally:
    """What came back in one exchange.

    Attributes:
        sent: Nodes asked.
        folds: Whether a reply may stand for several nodes.
        bytes_down: Bytes sent to them.
        answered: Nodes whose answer could be used.
        failures: Nodes that failed, answered what cannot be used, or stayed silent.
        bytes_up: Bytes of the answers that could be used.
        refused: Flower's ids of the nodes that refused, for their users' privacy; they count as failures too.
        silent: What the first nodes without an answer are called, where the grid says which these are.
        reason: What the last failure said.
    """

    sent: int = 0
    folds: bool = False
    bytes_down: int = 0
    answered: int = 0
    failures: int = 0
    bytes_up: int = 0
    refused: set[int] = field(default_factory=set)
    silent: list[str] = field(default_factory=list)
    reason: str = ""

    def read(self, replies: Iterable[Message], unpack: Callable[[RecordDict], AnswerT]) -> Iterator[AnswerT]:
        """Yield what the replies hold, one at a time; count, log and record those that are of no use, or missing."""
        return self.read_of(replies, lambda content, _: unpack(content))

    def read_of(self, replies: Iterable[Message], unpack: Callable[[RecordDict, int], AnswerT]) -> Iterator[AnswerT]:
        """Yield what the replies hold, unpacked by their content and Flower's id of the node that was asked."""
        for reply in replies:
            node = replies.node if isinstance(replies, Replies) else reply.metadata.src_node_id
            if reply.has_error():
                self._fail(reply, node, reply.error.reason or f"error {reply.error.code}", replies)
                continue
            try:
                wire.check_refusal(reply.content)
                answer = unpack(reply.content, node)
            except Refusal as refusal:
                if not isinstance(refusal, AlreadyAnswered):  # of this round alone: it may be asked in the next
                    self.refused.add(node)
                self._fail(reply, node, f"refused ({type(refusal).__name__}): {refusal}", replies)
                continue
            except WireError as error:
                self._fail(reply, node, str(error), replies)
                continue
            nodes = node_count(reply, folds=self.folds)
            self.answered += nodes
            self.bytes_up += nodes * wire.content_bytes(reply.content)
            yield answer
        for node, cause in replies.missing() if isinstance(replies, Replies) else ():
            if len(self.silent) < LOGGED_FAILURES:
                self.silent.append(_called(node, replies))
            self._record(node, cause, replies)

    def check(self, limits: FederationSettings) -> None:
        """Count the nodes that stayed silent as failures; refuse to go on when there are too many of them.

        A node that refuses is no failure of that kind: it does what it should.

        Raises:
            FederationError: Too many nodes failed, or too few answered.
        """
        silent = self.sent - self.answered - self.failures
        if silent > 0:
            names = f": {', '.join(self.silent)}{', ...' * (silent > len(self.silent))}" if self.silent else ""
            logger.warning("%d of %d nodes did not answer in time%s", silent, self.sent, names)
            self.failures += silent
        broken = self.failures - len(self.refused)
        if self.answered < min(limits.min_nodes, self.sent) or broken > limits.max_failures * self.sent:
            said = f"; the last said: {self.reason}" if self.reason else ""
            raise FederationError(
                f"{self.failures} of {self.sent} nodes failed or did not answer within {limits.round_timeout:g} s; "
                f"federation.min-nodes is {limits.min_nodes}, federation.max-failures {limits.max_failures:g}{said}"
            )

    def _fail(self, reply: Message, node: int, reason: str, replies: Iterable[Message]) -> None:
        self.failures += node_count(reply, folds=self.folds)
        self.reason = one_line(reason)
        self._record(node, self.reason, replies)
        if self.failures <= LOGGED_FAILURES:
            logger.warning("node %s failed: %s", _called(node, replies), self.reason)

    def _record(self, node: int, cause: str, replies: Iterable[Message]) -> None:
        """Write a failure down; nothing of single nodes where replies fold, of which there may be millions."""
        if isinstance(replies, Replies) and replies.failures is not None and not replies.folds:
            replies.failures.record(replies.messages.kind, node, cause)


def _called(node: int, replies: Iterable[Message]) -> str:
    """Return a node's name and id, or where it has not enrolled the id alone."""
    log = replies.failures if isinstance(replies, Replies) else None
    name = None if log is None else log.name_of(node)
    return str(node) if name is None else f"{name} ({node})"
