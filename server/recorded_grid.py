"""A grid that knows where failures are written, so that whoever reads its replies can."""

from collections.abc import Iterable

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.run import Run

from server.failures import FailureLog


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
        """Pull the replies to messages."""
        return self._grid.pull_messages(message_ids)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Push messages and return their replies."""
        return self._grid.send_and_receive(messages, timeout=timeout)
