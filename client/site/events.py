"""What a SuperNode's output tells: each line that matters becomes an event."""

import re
from dataclasses import dataclass
from enum import Enum

_COLOURS = re.compile(r"\x1b\[[0-9;]*m")


class Kind(Enum):
    """What happened."""

    CONNECTED = "connected"
    RECONNECTED = "reconnected"
    UNREACHABLE = "unreachable"
    UNTRUSTED = "untrusted"
    NOT_ACTIVATED = "not activated"
    REFUSED_REQUEST = "refused request"
    RUN = "run"
    RECEIVED = "received"
    ANSWERED = "answered"
    NOT_SENT = "not sent"
    FOREIGN_BUNDLE = "foreign bundle"
    REFUSAL = "refusal"
    PORT_TAKEN = "port taken"


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """An event, with up to two words or a sentence of the line.

    Attributes:
        kind: What happened.
        first: A node's id, a run's id, a message's type, or why.
        second: A round, or "".
    """

    kind: Kind
    first: str = ""
    second: str = ""


_PATTERNS = (
    (Kind.CONNECTED, r"SuperNode ID: (\d+)"),
    (Kind.RECONNECTED, r"Connection successful after"),
    (Kind.UNREACHABLE, r"Connection attempt failed, retrying in"),
    (Kind.UNTRUSTED, r"SSL/TLS handshake error detected"),
    (Kind.NOT_ACTIVATED, r"\[code: 2004\]"),
    (Kind.REFUSED_REQUEST, r"(\[code: \d+\].*)"),
    (Kind.RUN, r"\[RUN (\d+)(?:, ROUND ([^\]]+))?\]"),
    (Kind.RECEIVED, r"Receiving: (\S+) message"),
    (Kind.ANSWERED, r"Sent successfully"),
    (Kind.NOT_SENT, r"Failed to send message \S+: (.*)"),
    (Kind.FOREIGN_BUNDLE, r"(bundle [0-9a-f]{64} is refused: .*)"),
    (Kind.REFUSAL, r"refused a message of type \S+: (.*)"),
    (Kind.PORT_TAKEN, r"\[Errno \d+\] error while attempting to bind on address (.*?): address already in use"),
)
_COMPILED = tuple((kind, re.compile(pattern)) for kind, pattern in _PATTERNS)


def plain(line: str) -> str:
    """Return a line without colours and white space around it."""
    return _COLOURS.sub("", line).strip()


def event_of(line: str) -> Event | None:
    """Return the event that a line of output tells, None where it tells none."""
    for kind, pattern in _COMPILED:
        if found := pattern.search(line):
            return Event(kind=kind, first=_group(found, 1), second=_group(found, 2))
    return None


def _group(found: re.Match[str], number: int) -> str:
    return (found[number] or "") if number <= (found.re.groups or 0) else ""
