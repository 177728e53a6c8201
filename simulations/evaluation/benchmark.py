"""Run methods by a protocol over seeds: figures cached by cell, one table in Markdown and JSON, charts in a page."""

import hashlib
import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from metarec_shared.errors import CheckpointError, SettingsError
from metarec_shared.files import write_json, write_text
from metarec_shared.fingerprint import data_fingerprint
from metarec_shared.settings import Settings
from simulations.evaluation.protocol import EvaluationProtocol, Figures, Say, Trial

TABLE_FILE = "table.json"
ABOUT_FILE = "benchmark.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Figures of every method and seed.

    Attributes:
        protocol: How they were found.
        dataset: Names of the data.
        seeds: One column of ``figures`` each.
        figures: By method, one a seed.
    """

    protocol: EvaluationProtocol
    dataset: str
    seeds: tuple[int, ...]
    figures: dict[str, list[Figures]]

    @property
    def cells(self) -> list[str]:
        """Cells in the order in which they first appear."""
        return list(dict.fromkeys(cell for seeds in self.figures.values() for one in seeds for cell in one))

    def summary(self, method: str, cell: str, metric: str) -> tuple[float, float | None] | None:
        """Return mean and standard error over seeds, None for one seed's; None where the method has no such figure."""
        values = [one[cell][metric] for one in self.figures[method] if metric in one.get(cell, {})]
        if not values:
            return None
        error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
        return statistics.mean(values), error

    def to_dict(self) -> dict[str, dict[str, dict[str, float | None]]]:
        """Return ``{method: {cell: {metric: mean, metric + "_se": standard error}}}``."""
        found: dict[str, dict[str, dict[str, float | None]]] = {}
        for method, seeds in self.figures.items():
            found[method] = {}
            for cell in self.cells:
                metrics = dict.fromkeys(metric for one in seeds for metric in one.get(cell, {}))
                for metric in metrics:
                    figure = self.summary(method, cell, metric)
                    assert figure is not None
                    found[method].setdefault(cell, {}).update({metric: figure[0], f"{metric}_se": figure[1]})
        return found


def run_benchmark(
    protocol: EvaluationProtocol, settings: Settings, seeds: Sequence[int], methods: Sequence[str], out: Path, say: Say
) -> Table:
    """Judge every method with every seed; what is judged already is read, an interrupted run goes on.

    Args:
        protocol: How to judge.
        settings: Of our own model's runs.
        seeds: Of split, draws and training.
        methods: Names of the protocol's methods; empty: all.
        out: Folder of the table, the cells and whatever is trained.
        say: Told, in a line each, what happens next.

    Raises:
        SettingsError: A method is unknown, or there is no seed.
        CheckpointError: The folder is of another benchmark, other data or other settings.
        MetaRecError: A method cannot be judged.
    """
    known = [method.name for method in protocol.methods]
    wanted = [name for name in known if not methods or name in methods]
    if unknown := sorted(set(methods) - set(known)):
        raise SettingsError(f"--methods: {protocol.name} has no {', '.join(unknown)}; it has {', '.join(known)}")
    if not seeds:
        raise SettingsError("a benchmark needs a seed")
    datasets = protocol.datasets(settings)
    _claim(protocol, settings, "-".join(data_fingerprint(dataset) for dataset in datasets), out)
    figures: dict[str, list[Figures]] = {name: [] for name in wanted}
    for number, seed in enumerate(seeds):
        trial: Trial | None = None
        for place, name in enumerate(wanted):
            path = out / "cells" / name / f"seed-{seed}.json"
            if not path.exists():
                say(f"{number * len(wanted) + place + 1} of {len(seeds) * len(wanted)}: {name}, seed {seed}")
                trial = trial or protocol.open(_seeded(settings, seed), out / f"seed-{seed}", say)
                path.parent.mkdir(parents=True, exist_ok=True)
                write_json(path, _checked(trial.figures(name), name))
            figures[name].append(json.loads(path.read_text(encoding="utf-8")))
    table = Table(
        protocol=protocol,
        dataset=" and ".join(dataset.name for dataset in datasets),
        seeds=tuple(seeds),
        figures=figures,
    )
    write_json(out / TABLE_FILE, table.to_dict())
    return table


def parse_seeds(text: str) -> list[int]:
    """Return the seeds in ``7``, ``0,3`` or ``0-4``, or in several such parts.

    Raises:
        SettingsError: It is none of these, or a seed appears twice.
    """
    seeds: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()) or (dash and int(last) < int(first)):
            raise SettingsError(f"--seeds must be like 7, 0,3 or 0-4, got {text!r}")
        seeds += range(int(first), int(last if dash else first) + 1)
    if len(set(seeds)) < len(seeds):
        raise SettingsError(f"--seeds names a seed twice: {text!r}")
    return seeds


def _seeded(settings: Settings, seed: int) -> Settings:
    return replace(settings, run=replace(settings.run, seed=seed, out="", resume=False))


def _claim(protocol: EvaluationProtocol, settings: Settings, fingerprint: str, out: Path) -> None:
    """Write what the folder is for, or compare with what it says."""
    asked = hashlib.blake2b(_seeded(settings, 0).to_json().encode(), digest_size=16).hexdigest()
    about: dict[str, Any] = {"protocol": protocol.name, "data": fingerprint, "settings": asked}
    path = out / ABOUT_FILE
    if path.exists():
        before = json.loads(path.read_text(encoding="utf-8"))
        if different := [key for key, value in about.items() if before.get(key) != value]:
            raise CheckpointError(f"{out}: made with other {' and other '.join(different)}; give another --out")
        return
    out.mkdir(parents=True, exist_ok=True)
    write_text(out / "settings.json", _seeded(settings, 0).to_json())
    write_json(path, about)


def _checked(figures: Figures, method: str) -> Figures:
    """Return the figures if every one is a finite number.

    Raises:
        CheckpointError: One is not.
    """
    for cell, metrics in figures.items():
        for metric, value in metrics.items():
            if not math.isfinite(value):
                raise CheckpointError(f"{method}: {metric} of {cell} is {value}")
    return figures
