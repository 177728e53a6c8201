"""A grid that knows where failures are written, so that whoever reads its replies can."""

import logging
import time
from collections.abc import Iterable, Iterator

import httpx
from flwr.app import Error, Message, Metadata, RecordDict
from flwr.app.message.message import make_message
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid
from flwr.supercore.constant import SYSTEM_MESSAGE_TYPE
from flwr.supercore.run import Run

from metarec_shared.errors import MetaRecError
from server.failures import FailureLog, one_line

GONE = (OSError, httpx.HTTPError)
"""What a grid raises that cannot be reached: no reply is to blame."""

MOST_SINGLY = 32
"""Messages whose replies are pulled one by one: each is a request of its own."""

logger = logging.getLogger(__name__)


class RecordedGrid(Grid):
    """Another grid, and the log of its nodes' failures.

    Args:
        grid: Connects the nodes.
        failures: Where their failures are written.

    Attributes:
        failures: The same.
        folds_replies: Whether the other grid folds the replies of several nodes into one.
    """

    def __init__(self, grid: Grid, failures: FailureLog) -> None:
        self._grid = grid
        self.failures = failures
        self.folds_replies = bool(getattr(grid, "folds_replies", False))

    def set_run(self, run: Run) -> None:
        """Set the run."""
        self._grid.set_run(run)

    @property
    def run(self) -> Run:
        """The run."""
        return self._grid.run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """Create a message."""
        return self._grid.create_message(content, message_type, dst_node_id, group_id, ttl)

    def get_node_ids(self) -> Iterable[int]:
        """Return the ids of all nodes."""
        return self._grid.get_node_ids()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Push messages."""
        return self._grid.push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Pull the replies to messages; one that cannot be read is an error of its node, and the others still count.

        Flower's grids read all replies at once, say nothing of which of them they failed at, and have let go of all by
        then. So replies of few nodes, which may be sites that do not trust each other, are pulled one by one.
        """
        if self.folds_replies:
            return self._grid.pull_messages(message_ids)
        identifiers = list(message_ids)
        if len(identifiers) <= MOST_SINGLY:
            return self._pulled_singly(identifiers)
        try:
            return self._grid.pull_messages(identifiers)
        except (*GONE, MetaRecError):
            raise
        except Exception as error:  # whatever reading anybody's bytes may raise
            logger.warning("a reply cannot be read, all are pulled one by one: %s", one_line(repr(error)))
            return self._pulled_singly(identifiers)

    def _pulled_singly(self, identifiers: list[str]) -> Iterator[Message]:
        """Yield replies, an error in place of each that cannot be read; raise where of several none can be."""
        unread: dict[str, Exception] = {}
        for identifier in identifiers:
            try:
                replies = list(self._grid.pull_messages([identifier]))
            except (*GONE, MetaRecError):
                raise
            except Exception as error:
                unread[identifier] = error
                continue
            yield from replies
        if len(unread) == len(identifiers) > 1:
            raise next(iter(unread.values()))
        for identifier, cause in unread.items():
            yield _unreadable(identifier, cause)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Push messages and return their replies."""
        return self._grid.send_and_receive(messages, timeout=timeout)


def _unreadable(identifier: str, error: Exception) -> Message:
    """Return what stands for the reply to a message that could not be read; whose it is, is known by the message."""
    metadata = Metadata(
        run_id=0,
        message_id="",
        src_node_id=0,
        dst_node_id=0,
        message_type=SYSTEM_MESSAGE_TYPE,
        group_id="",
        ttl=0,
        reply_to_message_id=identifier,
        created_at=time.time(),
    )
    reason = f"the reply cannot be read: {one_line(repr(error))}"
    return make_message(metadata=metadata, error=Error(ErrorCode.REPLY_MESSAGE_UNAVAILABLE, reason))
