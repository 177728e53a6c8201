"""What a run needs to go on as if it had never stopped: parameters, optimizer state, the best checkpoint so far."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from metarec_shared.checkpoint import load_tensors, save_tensors, tensors_below
from metarec_shared.errors import CheckpointError
from metarec_shared.exchange import Parameters
from metarec_shared.settings import Settings, flatten
from server.run_folder import RESUME_FILE


@dataclass(frozen=True, slots=True, kw_only=True)
class Best:
    """The best meta-initialization so far, judged on validation users.

    Attributes:
        round_number: The round after which it stood.
        value: Its validation metric; None before the first evaluation.
        stale: Evaluations since then.
    """

    round_number: int = 0
    value: float | None = None
    stale: int = 0

    def judged(self, round_number: int, value: float, *, lower_is_better: bool = False) -> "Best":
        """Return the best after one more evaluation."""
        if self.value is None or (value < self.value if lower_is_better else value > self.value):
            return Best(round_number=round_number, value=value)
        return replace(self, stale=self.stale + 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class ResumePoint:
    """The state of a run after a round.

    Attributes:
        round_number: The last finished round.
        parameters: The meta-initialization after it.
        untrained: Parameters that travel but are not trained.
        optimizer: State of the outer optimizer.
        best: The best round so far; its parameters stand in the run's checkpoint.
        roster: Fingerprint of the nodes and their data.
        nodes: How many nodes these are.
        items: Fingerprint of the items and their text vectors.
        settings: The run's settings.
    """

    round_number: int
    parameters: Parameters
    untrained: Parameters
    optimizer: dict[str, Tensor]
    best: Best
    roster: str
    nodes: int
    items: str
    settings: Settings


def save_resume_point(point: ResumePoint, folder: Path) -> None:
    """Write the resume point atomically, over the one before."""
    tensors = {f"parameters/{name}": value for name, value in point.parameters.items()}
    tensors |= {f"untrained/{name}": value for name, value in point.untrained.items()}
    tensors |= {f"optimizer/{name}": value for name, value in point.optimizer.items()}
    description = {
        "round": point.round_number,
        "best": {"round": point.best.round_number, "value": point.best.value, "stale": point.best.stale},
        "roster": point.roster,
        "nodes": point.nodes,
        "items": point.items,
        "settings": json.loads(point.settings.to_json()),
    }
    save_tensors(folder / RESUME_FILE, tensors, description)


def nodes_of_resume_point(folder: Path, settings: Settings) -> int:
    """Return how many nodes a run with these ``settings`` had; 0 where its resume point does not say.

    Raises:
        CheckpointError: There is none, it is damaged, or it was made with other settings.
    """
    path = folder / RESUME_FILE
    _, description = load_tensors(path)
    if "settings" not in description:
        raise CheckpointError(f"{path}: not a point to resume from")
    _check_settings(path, flatten(description["settings"], str(path)), settings)
    return int(description.get("nodes", 0))


def load_resume_point(folder: Path, settings: Settings, roster: str, items: str) -> ResumePoint:
    """Read the resume point of a run with these ``settings`` and this data.

    Raises:
        CheckpointError: There is none, it is damaged, or it was made with other settings or data.
    """
    path = folder / RESUME_FILE
    tensors, description = load_tensors(path)
    if not {"round", "best", "roster", "items", "settings"} <= description.keys():
        raise CheckpointError(f"{path}: not a point to resume from")
    _check_settings(path, flatten(description["settings"], str(path)), settings)
    if description["items"] != items:
        raise CheckpointError(f"{path}: the run was made with other items or another text encoder than these")
    if description["roster"] != roster:
        raise CheckpointError(f"{path}: the run was made with other data or other nodes; --resume needs the same")
    best = description["best"]
    return ResumePoint(
        round_number=description["round"],
        parameters=tensors_below(tensors, "parameters/"),
        untrained=tensors_below(tensors, "untrained/"),
        optimizer=tensors_below(tensors, "optimizer/"),
        best=Best(round_number=best["round"], value=best["value"], stale=best["stale"]),
        roster=roster,
        nodes=description.get("nodes", 0),
        items=items,
        settings=settings,
    )


def _check_settings(path: Path, before: dict[str, Any], settings: Settings) -> None:
    now = settings.flat()
    # Where things lie and run: it changes nothing but rounding, and the data itself is compared.
    free = {
        "run.out", "run.resume", "run.device", "run.memory-gb", "run.trackers", "run.tracking-folder", "data.path",
        "data.catalogue",
    }  # fmt: skip
    changed = [key for key in now if key not in free and before.get(key) != now[key]]
    if changed:
        differences = ", ".join(f"{key} was {before.get(key)!r}, is {now[key]!r}" for key in changed)
        raise CheckpointError(f"{path}: --resume needs the settings the run was made with: {differences}")
