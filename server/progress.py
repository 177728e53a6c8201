"""Show how a run is getting on: a live display in a terminal, log lines at evaluation rounds elsewhere."""

import logging
import math
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

_log = logging.getLogger(__name__)

_METRICS = {"validation_ndcg": ("nDCG", 1), "validation_mae": ("MAE", -1)}
"""Beginnings of the metrics that checkpoints are selected by, their names, and 1 where higher is better."""

_WINDOW = 50  # rounds the speed is averaged over: enough for some evaluation rounds, which are slower


class Progress:
    """Progress of a run, on stderr; may be told of rounds from any thread.

    Args:
        total_rounds: Rounds the run will have when it is done.
        first_round: The first round that will be reported; above 1 for a resumed run.
        enabled: True for the live display, False for log lines, None to choose by whether stderr is a terminal.
        best: Round and validation metric of the best checkpoint so far, for a resumed run.
        console: Where the live display goes; stderr by default.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        total_rounds: int,
        first_round: int = 1,
        enabled: bool | None = None,
        *,
        best: tuple[int, float] | None = None,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        console = console or Console(stderr=True)
        live = sys.stderr.isatty() and not console.is_dumb_terminal if enabled is None else enabled
        self._total, self._done = total_rounds, first_round - 1
        self._best, self._latest, self._metric = best, None if best is None else best[1], "nDCG"
        self._failures = 0
        self._recent: deque[tuple[float, float]] = deque(maxlen=_WINDOW)  # (seconds, users) of the last rounds
        self._clock, self._last = clock, clock()
        self._lock = threading.Lock()
        self._live = Live(console=console, get_renderable=self._render, refresh_per_second=4) if live else None

    def __enter__(self) -> Self:
        self._last = self._clock()
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def round_done(self, metrics: Mapping[str, float | int]) -> None:
        """Take in one round's figures, those that go to metrics.jsonl."""
        with self._lock:
            now = self._clock()
            self._recent.append((now - self._last, metrics.get("users", metrics.get("weight", 0))))
            self._last, self._done = now, int(metrics["round"])
            self._failures += int(metrics.get("failures", 0))
            evaluated = self._take_validation(metrics)
        if evaluated and self._live is None:
            loss = f"loss {metrics['train_loss']:.4f}, " if "train_loss" in metrics else ""
            _log.info("round %d/%d: %s%s, %s left", self._done, self._total, loss, self._status(), self._time_left())

    def _take_validation(self, metrics: Mapping[str, float | int]) -> bool:
        key = next((key for key in metrics if key.startswith(tuple(_METRICS))), None)
        if key is None:
            return False
        start, (name, sign) = next((start, metric) for start, metric in _METRICS.items() if key.startswith(start))
        self._latest, self._metric = float(metrics[key]), name + key.removeprefix(start)
        if math.isfinite(self._latest) and (self._best is None or sign * self._latest > sign * self._best[1]):
            self._best = (self._done, self._latest)
        return True

    def _render(self) -> RenderableType:
        with self._lock:
            bar = Table.grid(padding=(0, 1), expand=True)
            bar.add_column(no_wrap=True)
            bar.add_column(ratio=1)
            bar.add_column(no_wrap=True)
            bar.add_row(
                f"round {self._done}/{self._total}",
                ProgressBar(total=max(self._total, 1), completed=self._done),
                f"{self._time_left()} left",
            )
            return Group(bar, Text(self._status(), style="dim"))

    def _status(self) -> str:
        seconds, users = (sum(column) for column in zip(*self._recent, strict=True)) if self._recent else (0.0, 0.0)
        parts = []
        if self._latest is not None:
            best = "" if self._best is None else f" (best {self._best[1]:.4f} at round {self._best[0]})"
            parts.append(f"validation {self._metric} {self._latest:.4f}{best}")
        if seconds > 0:
            parts.append(f"{users / seconds:,.0f} users/s")
        parts.append(f"{self._failures} failure{'' if self._failures == 1 else 's'}")
        return ", ".join(parts)

    def _time_left(self) -> str:
        if not self._recent:
            return "-:--"
        mean = sum(seconds for seconds, _ in self._recent) / len(self._recent)
        return _clock_face(mean * max(self._total - self._done, 0))


def _clock_face(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
