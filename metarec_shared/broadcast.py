"""One content for many nodes: messages that exist only while somebody looks at them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal

import numpy as np
from flwr.app import Message, RecordDict
from numpy.typing import NDArray

Kind = Literal["query", "query.moments", "train", "evaluate"]

NodeIds = Sequence[int] | NDArray[np.integer[Any]]
"""Flower's ids of nodes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Broadcast:
    """The same content to every one of ``nodes``: a grid may take it whole, or iterate over its messages.

    Attributes:
        content: Shared by all messages, never copied.
        nodes: Flower's ids of the nodes; a range or an array, whatever their number.
        kind: Message type.
        group_id: Group of the messages, the round.
        seconds: How long a message may wait for its node; None: as long as Flower lets it.
    """

    content: RecordDict
    nodes: NodeIds
    kind: Kind
    group_id: str = ""
    seconds: float | None = None

    def __len__(self) -> int:
        return len(self.nodes)

    def __iter__(self) -> Iterator[Message]:
        return (self.message(node) for node in self.nodes)

    def message(self, node: int) -> Message:
        """Return the message to one node."""
        return Message(self.content, int(node), self.kind, ttl=self.seconds, group_id=self.group_id)

    def windows(self, size: int) -> Iterator[list[Message]]:
        """Return the messages a few at a time."""
        messages = iter(self)
        while window := list(islice(messages, size)):
            yield window
