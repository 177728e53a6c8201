"""What every tracker is told: a run's settings, the figures of each round, what the run came to.

These are what the server records in metrics.jsonl, settings.json and training.json, never more: figures over users, no
interaction, and under privacy only what the nodes released.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from metarec_shared.settings import Scalar, Settings

PROJECT = "metarec"
"""What runs are filed under where a tracker keeps several."""

_PLACES = (
    "run.out", "run.init", "run.tracking-folder", "data.path", "data.catalogue", "data.item-vectors", "evaluation.onto",
)  # fmt: skip
_PHASES = ("train", "validation")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrackedRun:
    """A run, as its trackers see it.

    Attributes:
        folder: The run's own folder.
        settings: Its settings.
        recorded: The rounds that are done already, as metrics.jsonl has them; none unless the run is resumed.
    """

    folder: Path
    settings: Settings
    recorded: Sequence[Mapping[str, Any]] = ()

    @property
    def name(self) -> str:
        """The run's name for people."""
        return self.folder.absolute().name

    @property
    def tracking_folder(self) -> Path:
        """Where trackers that keep several runs write."""
        return Path(self.settings.run.tracking_folder or self.folder).absolute()

    def described(self) -> dict[str, Scalar]:
        """Return the settings that may be shown to others: without the places of this machine's files."""
        shown = {key: value for key, value in self.settings.flat().items() if key not in _PLACES}
        if Path(self.settings.text.encoder).is_dir():
            shown["text.encoder"] = Path(self.settings.text.encoder).absolute().name
        return shown


class Tracker(Protocol):
    """Is told of one run, in this order: ``start``, ``log`` once a round, ``finish``.

    What ``start`` or ``log`` raises ends the run, which can be resumed.
    """

    def start(self, run: TrackedRun) -> None:
        """Begin a run, or go on with one that is resumed: rounds after ``run.recorded`` do not count."""

    def log(self, round_number: int, figures: Mapping[str, Any]) -> None:
        """Take in one round.

        Args:
            round_number: Counted from 1.
            figures: A line of metrics.jsonl; a figure may be None or not finite.
        """

    def finish(self, result: Mapping[str, Any] | None) -> None:
        """End the run.

        Args:
            result: What the run came to, the content of training.json; None where it was interrupted or failed.
        """


def tagged(figures: Mapping[str, Any]) -> dict[str, float]:
    """Return the finite figures of a round by the names that trackers group them by, ``train/loss`` say."""
    return {
        _tag(key): float(value)
        for key, value in figures.items()
        if key != "round" and value is not None and math.isfinite(value)
    }


def numbers(result: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """Return the finite numbers of a result, those of nested tables as ``table/name``."""
    found: dict[str, float] = {}
    for key, value in result.items():
        if isinstance(value, Mapping):
            found |= numbers(value, f"{prefix}{key}/")
        elif isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            found[prefix + key] = float(value)
    return found


def _tag(key: str) -> str:
    phase, _, name = key.partition("_")
    return f"{phase}/{name}" if name and phase in _PHASES else f"round/{key}"
