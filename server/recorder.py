"""What a run leaves behind round by round: metrics.jsonl and TensorBoard events."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from metarec_shared.errors import CheckpointError
from metarec_shared.files import write_text

METRICS_FILE = "metrics.jsonl"


class Recorder:
    """Append one line a round to ``metrics.jsonl`` and the same figures to TensorBoard events.

    Args:
        run: The run's folder.
        resume_from: Last round that counts; what an interrupted run recorded after it is dropped. 0: start anew.

    Raises:
        CheckpointError: The metrics of the run to resume are damaged.
    """

    def __init__(self, run: Path, resume_from: int = 0) -> None:
        from torch.utils.tensorboard.writer import SummaryWriter  # slow to import, and only a server records

        path, events = run / METRICS_FILE, run / "tensorboard"
        kept = [line for line in read_metrics(path) if line["round"] <= resume_from] if resume_from else []
        write_text(path, "".join(_line(metrics) for metrics in kept))
        self._file = path.open("a", encoding="utf-8")
        purge_step = resume_from + 1 if events.exists() else None
        self._events = SummaryWriter(str(events), purge_step=purge_step, flush_secs=10)

    def record(self, metrics: Mapping[str, float | int]) -> None:
        """Record one round.

        Args:
            metrics: The round's figures, its number under ``round``. A value that is not finite is written as null.
        """
        self._file.write(_line(metrics))
        self._file.flush()
        for key, value in metrics.items():
            if key != "round" and math.isfinite(value):
                self._events.add_scalar(_tag(key), value, int(metrics["round"]))

    def close(self) -> None:
        """Write out what is buffered and close the files."""
        self._file.close()
        self._events.close()

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


def _tag(key: str) -> str:
    group, _, name = key.partition("_")
    return f"{group}/{name}" if name and group in {"train", "validation"} else f"round/{key}"
