"""Send messages to nodes and take replies as they come, so that the server never holds them all."""

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from metarec_shared import wire
from metarec_shared.broadcast import Broadcast
from metarec_shared.errors import FederationError, Refusal, WireError
from metarec_shared.settings import FederationSettings

POLL_SECONDS = 0.1

MOST_IN_FLIGHT = 512
"""Messages that wait for their answers at one time."""

REFILL = 64
"""Messages pushed together."""

PATIENCE = 0.05
"""Share of the timeout after which a message without an answer makes room for another; it is still listened for."""

logger = logging.getLogger(__name__)


AnswerT = TypeVar("AnswerT")

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


def deliver(grid: Grid, messages: Broadcast, timeout: float) -> Iterator[Message]:
    """Yield the replies to ``messages`` one by one until every node answered or ``timeout`` seconds passed.

    A grid that folds takes the broadcast whole. To any other, messages are given as replies make room, so that neither
    questions nor answers pile up anywhere. A node that does not answer keeps its room for a share of the timeout only,
    and a message that the grid could not take is not waited for.
    """
    if not len(messages):
        return
    began = time.monotonic()
    windows: Iterator[Iterable[Message]] = iter([messages]) if folds_replies(grid) else messages.windows(REFILL)
    pushed: dict[str, float] = {}  # when, by identifier, in the order of the questions
    exhausted = False
    while pushed or not exhausted:
        recent = time.monotonic() - PATIENCE * timeout
        while not exhausted and sum(moment >= recent for moment in pushed.values()) <= MOST_IN_FLIGHT - REFILL:
            window = next(windows, None)
            exhausted = window is None
            if window is not None:
                pushed.update((i, time.monotonic()) for i in grid.push_messages(window) if i)
        idle = True
        for reply in grid.pull_messages(list(pushed)):
            idle = False
            pushed.pop(reply.metadata.reply_to_message_id, None)
            yield reply
        if time.monotonic() >= began + timeout:
            return
        if idle:
            time.sleep(POLL_SECONDS)


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
        reason: What the last failure said.
    """

    sent: int = 0
    folds: bool = False
    bytes_down: int = 0
    answered: int = 0
    failures: int = 0
    bytes_up: int = 0
    refused: set[int] = field(default_factory=set)
    reason: str = ""

    def read(self, replies: Iterable[Message], unpack: Callable[[RecordDict], AnswerT]) -> Iterator[AnswerT]:
        """Yield what the replies hold, one at a time; count and log those that are of no use."""
        for reply in replies:
            if reply.has_error():
                self._fail(reply, reply.error.reason or f"error {reply.error.code}")
                continue
            try:
                wire.check_refusal(reply.content)
                answer = unpack(reply.content)
            except Refusal as refusal:
                self.refused.add(reply.metadata.src_node_id)
                self._fail(reply, f"refused ({type(refusal).__name__}): {refusal}")
                continue
            except WireError as error:
                self._fail(reply, str(error))
                continue
            nodes = node_count(reply, folds=self.folds)
            self.answered += nodes
            self.bytes_up += nodes * wire.content_bytes(reply.content)
            yield answer

    def check(self, limits: FederationSettings) -> None:
        """Count the nodes that stayed silent as failures; refuse to go on when there are too many of them.

        A node that refuses is no failure of that kind: it does what it should.

        Raises:
            FederationError: Too many nodes failed, or too few answered.
        """
        silent = self.sent - self.answered - self.failures
        if silent > 0:
            logger.warning("%d of %d nodes did not answer in time", silent, self.sent)
            self.failures += silent
        broken = self.failures - len(self.refused)
        if self.answered < min(limits.min_nodes, self.sent) or broken > limits.max_failures * self.sent:
            said = f"; the last said: {self.reason}" if self.reason else ""
            raise FederationError(
                f"{self.failures} of {self.sent} nodes failed or did not answer within {limits.round_timeout:g} s; "
                f"federation.min-nodes is {limits.min_nodes}, federation.max-failures {limits.max_failures:g}{said}"
            )

    def _fail(self, reply: Message, reason: str) -> None:
        self.failures += node_count(reply, folds=self.folds)
        self.reason = _last_line(reason)
        if self.failures <= LOGGED_FAILURES:
            logger.warning("node %d failed: %s", reply.metadata.src_node_id, self.reason)


def _last_line(reason: str) -> str:
    """Return what went wrong; Flower's engines put a worker's traceback before it, and all in ``<'...'>``."""
    return (reason.splitlines() or [""])[-1].removesuffix("'>")
