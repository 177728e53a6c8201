"""The in-process grid: a Flower ``Grid`` whose nodes are answered for by one vectorized computation.

A broadcast is answered as a whole: what many ClientApps would each compute for one node is computed once for all of
them, and the replies are folded into one, which says for how many nodes it stands. A node that fails is answered for by
itself, with an error reply, as any engine would. Nodes cost nothing until a message goes to them.
"""

from collections.abc import Callable, Iterable, Iterator
from uuid import uuid4

import numpy as np
from flwr.app import Error, Message, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity
from numpy.typing import NDArray

from client.app import answer, public_reason
from client.learner import Learner
from client.node import Nodes
from client.rating_learner import RatingLearner
from metarec_shared import wire
from metarec_shared.broadcast import Broadcast
from metarec_shared.errors import Refusal

NODE_FAILED = 1
"""Error code of a reply whose node raised, as Flower's other engines give it."""

UNROUNDED = 32
"""Bits of a meta-update's numbers that no rounding takes from."""

LoadNodes = Callable[[NDArray[np.int64]], Nodes]
"""Returns nodes by Flower's ids."""


class InProcessGrid(Grid):
    """Connects a ServerApp to nodes that live in the same process.

    Questions wait until their answers are pulled, and an answer is computed when it is its turn, so that no more than
    one is held at a time.

    Args:
        learner: The model that every node shares.
        nodes: Number of nodes; their ids are 1..nodes.
        load_nodes: Returns nodes by their ids; called only for nodes that a message goes to.
        fold: Whether to answer a broadcast for all its nodes at once. Where updates are rounded, each node rounds its
            own, so there is nothing to fold.

    Attributes:
        folds_replies: The same, for the server, which believes no reply of another grid that it stands for many.
    """

    def __init__(
        self, learner: Learner | RatingLearner, nodes: int, load_nodes: LoadNodes, *, fold: bool = True
    ) -> None:
        self._learner = learner
        self._nodes = nodes
        self._load_nodes = load_nodes
        self.folds_replies = fold and learner.settings.traffic.update_bits == UNROUNDED
        self._waiting: dict[str, Broadcast | Message] = {}
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
        """Keep ``messages`` until their answers are pulled; a broadcast is kept whole, under one identifier."""
        identifiers = []
        for question in [messages] if isinstance(messages, Broadcast) and self.folds_replies else messages:
            identifiers.append(str(uuid4()))
            self._waiting[identifiers[-1]] = question
        return identifiers

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Answer those of ``message_ids`` that are not answered yet, one by one."""
        for identifier in message_ids:
            question = self._waiting.pop(identifier, None)
            if isinstance(question, Broadcast):
                yield from self._answer_all(identifier, question)
            elif question is not None:
                yield self._answer_one(identifier, question)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Push messages and return their replies."""
        return self.pull_messages(self.push_messages(messages))

    def _answer_all(self, identifier: str, broadcast: Broadcast) -> Iterator[Message]:
        """Answer for all nodes together; if that fails, for each by itself, so that failures stay per node."""
        if not len(broadcast):
            return
        question = broadcast.message(broadcast.nodes[0])
        try:
            content = self._content(np.asarray(broadcast.nodes, dtype=np.int64), question)
        except Exception:  # whatever a node raises is that node's failure, not the federation's
            yield from (self._answer_one(identifier, message) for message in broadcast)
        else:
            yield _reply(identifier, question, content)

    def _answer_one(self, identifier: str, question: Message) -> Message:
        try:
            content: RecordDict | Error = self._content(np.array([question.metadata.dst_node_id]), question)
        except Refusal as refusal:
            content = wire.pack_refusal(refusal)
        except Exception as error:  # whatever a node raises is that node's failure, not the federation's
            content = Error(code=NODE_FAILED, reason=public_reason(error))
        return _reply(identifier, question, content)

    def _content(self, node_ids: NDArray[np.int64], question: Message) -> RecordDict:
        return answer(self._learner, self._load_nodes(node_ids), question.content, question.metadata.message_type)


def _reply(identifier: str, question: Message, content: RecordDict | Error) -> Message:
    question.metadata.__dict__["_message_id"] = identifier
    reply = Message(content, reply_to=question)
    reply.metadata.__dict__["_message_id"] = str(uuid4())
    return reply


def _identify_task(run_id: int) -> None:
    """Give this process the identity that Flower asks of whoever creates a Message."""
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, run_id, 1
