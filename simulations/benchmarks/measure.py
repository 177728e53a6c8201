"""How benchmarks measure: works take turns in one run, so that whatever else the machine does touches all of them.

What is reported is a ratio of times of the same turn, its median over turns and how far it spreads, never a time alone.
"""

import contextlib
import math
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from metarec_shared.files import write_json

Work = Callable[[], object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ratio:
    """A ratio measured in several turns.

    Attributes:
        median: Over turns.
        low: Lowest.
        high: Highest.
    """

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.3g} ({self.low:.3g}-{self.high:.3g})"


def take_turns(works: Mapping[str, Work], turns: int, device: torch.device | None = None) -> dict[str, list[float]]:
    """Run every work once to warm up, then ``turns`` times in turn; return seconds by name, a number a turn."""
    seconds: dict[str, list[float]] = {name: [] for name in works}
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("measuring", total=(turns + 1) * len(works))
        for turn in range(turns + 1):
            for name, work in works.items():
                elapsed = timed(work, device)
                progress.advance(task)
                if turn:
                    seconds[name].append(elapsed)
    return seconds


def timed(work: Work, device: torch.device | None = None) -> float:
    """Return the seconds that ``work`` takes, a GPU's queue included."""
    _finish(device)
    began = time.perf_counter()
    work()
    _finish(device)
    return time.perf_counter() - began


def ratio(slow: Sequence[float], fast: Sequence[float], scale: float = 1.0) -> Ratio:
    """Return how many times longer ``slow`` took, turn by turn, times ``scale``."""
    values = [scale * a / b for a, b in zip(slow, fast, strict=True)]
    return Ratio(median=statistics.median(values), low=min(values), high=max(values))


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean and its standard error, which is 0 of a single value."""
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0
    return statistics.fmean(values), error


def shown(values: Sequence[float], digits: int = 4) -> str:
    """Return the mean and its standard error as tables have them."""
    mean, error = mean_and_error(values)
    return f"{mean:.{digits}f} ± {error:.{digits}f}"


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]], note: str = "") -> None:
    """Print rows as a table, numbers to three digits."""
    table = Table(title=title, title_justify="left", caption=note, caption_justify="left")
    for position, column in enumerate(columns):
        table.add_column(column, justify="left" if position == 0 else "right")
    for row in rows:
        table.add_row(*(f"{cell:,.4g}" if isinstance(cell, float) else str(cell) for cell in row))
    Console(width=max(Console().width, 110)).print(table)


def write_figures(path: Path | None, figures: Mapping[str, Any]) -> None:
    """Write figures as JSON, where somebody asked for them, atomically."""
    if path is not None:
        write_json(path, figures)


def machine() -> str:
    """Return what the figures were measured on, in a line."""
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return f"{platform.machine()}, {torch.get_num_threads()} threads{gpu}, torch {torch.__version__}"


def resident_megabytes(pids: Iterable[int]) -> float:
    """Return the resident memory of processes in MB; of those that have ended none."""
    total = 0.0
    for pid in pids:
        with contextlib.suppress(OSError, StopIteration):
            lines = (Path("/proc") / str(pid) / "status").read_text().splitlines()
            total += float(next(line for line in lines if line.startswith("VmRSS")).split()[1]) / 1024
    return total


def _finish(device: torch.device | None) -> None:
    if device is not None and device.type == "cuda":
        torch.cuda.synchronize(device)
