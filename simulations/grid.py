"""The in-process grid: a Flower ``Grid`` whose nodes are answered for by one vectorized computation.

Messages of one push that share their kind and content are answered together: what many ClientApps would each compute
for one node is computed once for all of them, and the replies are folded into one, which says for how many nodes it
stands. A node that fails is answered for by itself, with an error reply, as any engine would.
"""

import logging
from collections.abc import Callable, Iterable, Sequence
from uuid import uuid4

from flwr.app import Error, Message, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from client.app import answer, public_reason
from client.learner import Learner
from client.node import Node

NODE_FAILED = 1
"""Error code of a reply whose node raised, as Flower's other engines give it."""

logger = logging.getLogger(__name__)


class InProcessGrid(Grid):
    """Connects a ServerApp to nodes that live in the same process.

    Args:
        learner: The model that every node shares.
        nodes: Number of nodes; their ids are 1..nodes.
        load_node: Returns a node by its id; called only for nodes that a message goes to.
        fold: Whether to fold the replies of nodes that were sent the same content into one.

    Attributes:
        folds_replies: The same, for the server, which believes no reply of another grid that it stands for many.
    """

    def __init__(self, learner: Learner, nodes: int, load_node: Callable[[int], Node], *, fold: bool = True) -> None:
        self._learner = learner
        self._nodes = nodes
        self._load_node = load_node
        self.folds_replies = fold
        self._replies: dict[str, Message] = {}
        self._run = Run.create_empty(run_id=1)
        _identify_task(self._run.run_id)

    def set_run(self, run: Run) -> None:
        """Set the run."""
        self._run = run

    @property
    def run(self) -> Run:
        """The run."""
        return self._run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """Create a message."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """Return the ids of all nodes: a range, whatever their number."""
        return range(1, self._nodes + 1)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Answer ``messages`` at once and keep the replies until they are pulled."""
        alike: dict[tuple[str, int], list[Message]] = {}
        identifiers = []
        for message in messages:
            message.metadata.__dict__["_message_id"] = str(uuid4())
            identifiers.append(message.metadata.message_id)
            alike.setdefault((message.metadata.message_type, id(message.content)), []).append(message)
        for group in alike.values():
            for part in [group] if self.folds_replies else [[message] for message in group]:
                self._replies.update((reply.metadata.reply_to_message_id, reply) for reply in self._answer(part))
        return identifiers

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the replies to ``message_ids`` that are not pulled yet."""
        return [self._replies.pop(i) for i in list(message_ids) if i in self._replies]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Push messages and return their replies."""
        return self.pull_messages(self.push_messages(messages))

    def _answer(self, messages: Sequence[Message]) -> list[Message]:
        """Answer messages of one content together; if that fails, each by itself, so that failures stay per node."""
        try:
            return [self._reply(messages)]
        except Exception as error:  # whatever a node raises is that node's failure, not the federation's
            if len(messages) == 1:
                return [_error_reply(messages[0], error)]
        return [reply for message in messages for reply in self._answer([message])]

    def _reply(self, messages: Sequence[Message]) -> Message:
        nodes = [self._load_node(message.metadata.dst_node_id) for message in messages]
        reply = Message(answer(self._learner, nodes, messages[0]), reply_to=messages[0])
        reply.metadata.__dict__["_message_id"] = str(uuid4())
        return reply


def _error_reply(message: Message, error: Exception) -> Message:
    reply = Message(Error(code=NODE_FAILED, reason=public_reason(error)), reply_to=message)
    reply.metadata.__dict__["_message_id"] = str(uuid4())
    return reply


def _identify_task(run_id: int) -> None:
    """Give this process the identity that Flower asks of whoever creates a Message."""
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, run_id, 1
