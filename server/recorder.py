"""What a run leaves behind round by round: metrics.jsonl, and what its trackers make of the same figures."""

import json
import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

from metarec_shared.files import write_text
from metarec_shared.settings import Settings
from server.run_folder import METRICS_FILE, read_metrics
from server.tracking import TrackedRun, Tracker


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


def _line(metrics: Mapping[str, Any]) -> str:
    finite = {key: value if value is not None and math.isfinite(value) else None for key, value in metrics.items()}
    return json.dumps(finite, allow_nan=False) + "\n"
