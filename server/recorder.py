"""What a run leaves behind round by round: metrics.jsonl, and what its trackers make of the same figures."""

import json
import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

from metarec_shared.errors import CheckpointError
from metarec_shared.files import write_text
from metarec_shared.settings import Settings
from server.tracking import TrackedRun, Tracker

METRICS_FILE = "metrics.jsonl"


class Recorder:
    """Append one line a round to ``metrics.jsonl`` and tell the trackers the same figures.

    Args:
        run: The run's folder.
        settings: The run's settings.
        trackers: Who is told, too.
        resume_from: Last round that counts; what an interrupted run recorded after it is dropped. 0: start anew.

    Raises:
        CheckpointError: The metrics of the run to resume are damaged.
    """

    def __init__(
        self, run: Path, settings: Settings, trackers: Sequence[Tracker] = (), *, resume_from: int = 0
    ) -> None:
        path = run / METRICS_FILE
        kept = [line for line in read_metrics(path) if line["round"] <= resume_from] if resume_from else []
        write_text(path, "".join(_line(metrics) for metrics in kept))
        self._trackers = trackers
        self._result: Mapping[str, Any] | None = None
        with ExitStack() as opened:
            self._file = opened.enter_context(path.open("a", encoding="utf-8"))
            opened.callback(self._finish_trackers)
            for tracker in trackers:
                tracker.start(TrackedRun(folder=run, settings=settings, recorded=kept))
            self._opened = opened.pop_all()

    def record(self, metrics: Mapping[str, float | int]) -> None:
        """Record one round.

        Args:
            metrics: The round's figures, its number under ``round``. A value that is not finite is written as null.
        """
        self._file.write(_line(metrics))
        self._file.flush()
        for tracker in self._trackers:
            tracker.log(int(metrics["round"]), metrics)

    def finish(self, result: Mapping[str, Any]) -> None:
        """Keep what the run came to, which trackers are told when the recorder is closed."""
        self._result = result

    def close(self) -> None:
        """Write out what is buffered, close the files and let the trackers finish."""
        self._opened.close()

    def _finish_trackers(self) -> None:
        with ExitStack() as each:
            for tracker in self._trackers:
                each.callback(tracker.finish, self._result)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Read ``metrics.jsonl``, without the half of a last line that a killed run may have left.

    Args:
        path: The file; a run without one has recorded no round.

    Returns:
        The rounds' figures in the order they were recorded; a figure that was not finite is None.

    Raises:
        CheckpointError: A line other than the last one cannot be read.
    """
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    rounds = []
    for number, line in enumerate(lines, start=1):
        metrics = _parse(line)
        if metrics is not None:
            rounds.append(metrics)
        elif any(following.strip() for following in lines[number:]):
            raise CheckpointError(f"{path} line {number}: wanted a JSON object with a round number, got {line[:40]!r}")
    return rounds


def _parse(line: str) -> dict[str, Any] | None:
    try:
        metrics = json.loads(line)
    except json.JSONDecodeError:
        return None
    return metrics if isinstance(metrics, dict) and isinstance(metrics.get("round"), int) else None


def _line(metrics: Mapping[str, Any]) -> str:
    finite = {key: value if value is not None and math.isfinite(value) else None for key, value in metrics.items()}
    return json.dumps(finite, allow_nan=False) + "\n"
