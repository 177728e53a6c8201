"""How a site is doing: written at every event, read by `metarec site status` and by /health."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from metarec_shared.files import write_text

STATUS_FILE = "status.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class LastMessage:
    """The message that came last.

    Attributes:
        kind: Its type.
        run: The run's id.
        round: The round; "" where Flower names none.
        time: When it came, UTC.
    """

    kind: str
    run: str
    round: str
    time: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """How a site is doing.

    Attributes:
        state: ``starting``, ``connected``, ``unreachable``, ``refused``, ``waiting`` (before a restart) or ``stopped``.
        since: Since when, UTC.
        pid: The supervisor's process.
        node: Flower's id of the node; "" before the first connection.
        restarts: How often the SuperNode was started again.
        messages: How many messages of each type came.
        last_message: The last of them.
        error: What went wrong last, "" where nothing did.
    """

    state: str = "starting"
    since: str = ""
    pid: int = 0
    node: str = ""
    restarts: int = 0
    messages: Mapping[str, int] = field(default_factory=dict)
    last_message: LastMessage | None = None
    error: str = ""

    def now(self, state: str, **changes: Any) -> "Status":
        """Return the status with another state; the time is noted where the state is another one."""
        since = self.since if state == self.state and self.since else utc()
        return replace(self, state=state, since=since, **changes)

    def received(self, kind: str, run: str, round_number: str) -> "Status":
        """Return the status after a message came."""
        counts = {**self.messages, kind: self.messages.get(kind, 0) + 1}
        last = LastMessage(kind=kind, run=run, round=round_number, time=utc())
        return replace(self, messages=counts, last_message=last)


def utc() -> str:
    """Return the time as a status writes it."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def write_status(state: Path, status: Status) -> None:
    """Write the status, for the owner alone."""
    write_text(state / STATUS_FILE, json.dumps(asdict(status), indent=2) + "\n", mode=0o600)


def read_status(state: Path) -> Status | None:
    """Return the status that was written last; None where none can be read."""
    try:
        values = json.loads((state / STATUS_FILE).read_text(encoding="utf-8"))
        last = values.pop("last_message")
        return Status(**values, last_message=None if last is None else LastMessage(**last))
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None
