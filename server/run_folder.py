"""A run's folder: what its files are called, and what may be done with it; light to import."""

import json
from pathlib import Path
from typing import Any

from metarec_shared.errors import CheckpointError

SETTINGS_FILE = "settings.json"
METRICS_FILE = "metrics.jsonl"
RESUME_FILE = "resume.safetensors"


def check_folder(folder: Path, *, resume: bool) -> None:
    """Refuse to write over a run, and to resume one that is not there.

    Raises:
        CheckpointError: One or the other was asked for.
    """
    there = (folder / RESUME_FILE).exists()
    if there and not resume:
        raise CheckpointError(f"{folder} already holds a run; go on with --resume or give another --out")
    if resume and not there:
        raise CheckpointError(f"{folder} holds no run to resume: {RESUME_FILE} is missing")
    if folder.exists() and not folder.is_dir():
        raise CheckpointError(f"{folder}: wanted a folder for the run, got a file")


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
