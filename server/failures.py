"""Which nodes failed, in what and why: failures.jsonl in a run's folder, one line for a node and an exchange.

What nodes say of themselves, their names and the causes of their failures, is cut and stripped of control characters
before anybody reads it in a log; the file is bounded. A name is what a node enrolled with; Flower's id is who it is.
"""

import json
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

FAILURES_FILE = "failures.jsonl"

MOST_LINES = 10_000
"""Lines of a run, with those of the runs that it resumes; the last one says that there were more failures."""

LONGEST_CAUSE = 400

_LONGEST_NAME = 80

_CLASS = re.compile(r"^<class '[^']*'>:<'")
"""What Flower's SuperNode puts before what an error says."""


class FailureLog:
    """Append what failed to ``failures.jsonl``, and know nodes by their names.

    Args:
        folder: Of the run; made when there is something to write.
        resume: Whether to go on with the file that is there instead of starting anew.

    Attributes:
        round_number: The last round that anybody was asked in, 0 before the first.
    """

    def __init__(self, folder: Path, *, resume: bool = False) -> None:
        self._path = folder / FAILURES_FILE
        self._names: dict[int, str] = {}
        self._lines = 0
        self.round_number = 0
        if resume:
            self._lines = _whole_lines(self._path)
        else:
            self._path.unlink(missing_ok=True)

    def enrolled(self, node: int, name: str) -> None:
        """Take in the name that a node enrolled with."""
        self._names[node] = one_line(name, _LONGEST_NAME)

    def name_of(self, node: int) -> str | None:
        """Return the name that a node enrolled with; None where it has not."""
        return self._names.get(node)

    def record(self, kind: str, node: int, cause: str) -> None:
        """Write that a node failed, if there is room.

        Args:
            kind: What it was asked for, the type of the message.
            node: Flower's id.
            cause: What went wrong; cut to one line.
        """
        if self._lines >= MOST_LINES:
            return
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        line: dict[str, Any] = {"time": now, "round": self.round_number}
        if self._lines == MOST_LINES - 1:
            cause = f"more than {self._lines:,} failures: no more are written"
            line |= {"kind": kind, "node": None, "name": None, "cause": cause}
        else:
            line |= {"kind": kind, "node": str(node), "name": self.name_of(node), "cause": one_line(cause)}
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
        self._lines += 1


def one_line(text: str, most: int = LONGEST_CAUSE) -> str:
    """Return the last line of a text as it may stand in a log, without control characters and not too long.

    What went wrong stands last: Flower's engines put a worker's traceback before it, and all in ``<'...'>``.
    """
    last = _CLASS.sub("", (text[-8 * most :].splitlines() or [""])[-1]).removesuffix("'>")
    shown = "".join(character if character.isprintable() else "?" for character in last)
    return shown if len(shown) <= most else shown[: most - 3] + "..."


def _whole_lines(path: Path) -> int:
    """Return how many lines a file has, and end the half line of a killed run."""
    if not path.exists():
        return 0
    content = path.read_bytes()
    if content and not content.endswith(b"\n"):
        with path.open("ab") as file:
            file.write(b"\n")
    return len(content.splitlines())
