"""Send messages to nodes and take replies as they come, so that the server never holds them all."""

import logging
import time
from collections.abc import Iterable, Iterator

from flwr.app import Message
from flwr.serverapp import Grid

POLL_SECONDS = 0.1

logger = logging.getLogger(__name__)


def node_count(reply: Message) -> int:
    """Return how many nodes a reply stands for: one, unless the engine folded several into it."""
    if reply.has_error() or "numbers" not in reply.content.metric_records:
        return 1
    numbers = reply.content.metric_records["numbers"]
    nodes = numbers.get("nodes", len(ids) if isinstance(ids := numbers.get("node_ids"), list) else 1)
    return int(nodes) if isinstance(nodes, int | float) else 1


def deliver(grid: Grid, messages: Iterable[Message], timeout: float) -> Iterator[Message]:
    """Push ``messages`` and yield the replies one by one until every node answered or ``timeout`` seconds passed."""
    identifiers = set(grid.push_messages(messages))
    waiting = len(identifiers)
    deadline = time.monotonic() + timeout
    while waiting > 0:
        replies = list(grid.pull_messages(identifiers))
        for reply in replies:
            identifiers.discard(reply.metadata.reply_to_message_id)
            waiting -= node_count(reply)
            yield reply
        if time.monotonic() >= deadline:
            return
        if not replies:
            time.sleep(POLL_SECONDS)


def wait_for_nodes(grid: Grid, least: int, timeout: float) -> list[int]:
    """Return the ids of the connected nodes once there are at least ``least`` of them.

    When ``timeout`` seconds have passed, whatever is connected by then is returned.
    """
    deadline = time.monotonic() + timeout
    nodes = list(grid.get_node_ids())
    while len(nodes) < least and time.monotonic() < deadline:
        logger.info("%d of %d nodes connected, waiting", len(nodes), least)
        time.sleep(min(1.0, max(0.0, deadline - time.monotonic())))
        nodes = list(grid.get_node_ids())
    return nodes
