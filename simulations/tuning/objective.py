"""What a trial is worth: the mean, over seeds, of the validation metric of the recommender that a federation leaves.

A trial meta-trains and does nothing else: no test user is read, no baseline fitted.
"""

import json
import math
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import optuna

from metarec_shared.errors import FederationError
from metarec_shared.settings import Settings
from server.federation import run_federation
from server.result import TRAINING_FILE
from server.run_folder import METRICS_FILE, RESUME_FILE, read_metrics
from server.tracking import TrackedRun
from simulations.engines import in_process_grid


class OutOfTime(Exception):  # noqa: N818 - nothing is wrong
    """The study's time is up; the run under way can be resumed."""


@dataclass(slots=True)
class Watch:
    """Tells a trial what its runs come to, evaluation by evaluation, and ends a run that is not worth going on with.

    An observer of the federation. What is reported at a round is what the trial would be worth if it ended there: the
    mean of the seeds that are done and of the best evaluation of the one under way.

    Attributes:
        trial: Who is told.
        metric: Key of the validation metric in a round's figures.
        before: Values of the seeds that are done.
        offset: Rounds of the trial's earlier runs; the same for every trial, so that trials compare.
        last: Round at which the trial ends anyhow, so that nothing is saved by ending it there.
        deadline: When to stop, on the clock ``time.monotonic``.
        best: The best evaluation of the run under way.
    """

    trial: optuna.Trial
    metric: str
    before: Sequence[float] = ()
    offset: int = 0
    last: int | None = None
    deadline: float = math.inf
    best: float = -math.inf

    def start(self, run: TrackedRun) -> None:
        """Report the evaluations of a run that is resumed."""
        for line in run.recorded:
            self._report(line["round"], line)

    def log(self, round_number: int, figures: Mapping[str, Any]) -> None:
        """Report an evaluation.

        Raises:
            optuna.TrialPruned: The trial is not worth going on with.
            OutOfTime: The deadline has passed.
        """
        ends = round_number == self.last
        if self._report(round_number, figures) and not ends and self.trial.should_prune():
            raise optuna.TrialPruned(f"at round {self.offset + round_number}")
        if time.monotonic() > self.deadline:
            raise OutOfTime

    def finish(self, result: Mapping[str, Any] | None) -> None:
        """Do nothing: the run's value stands in its folder."""

    def _report(self, round_number: int, figures: Mapping[str, Any]) -> bool:
        value = figures.get(self.metric)
        if value is None or not math.isfinite(value):
            return False
        self.best = max(self.best, value)
        self.trial.report(statistics.mean([*self.before, self.best]), self.offset + round_number)
        return True


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """Runs the federations of a trial.

    Attributes:
        settings: What all trials share.
        seeds: Of the runs of a trial.
        longest_run: The most rounds that a run may have.
        folder: Below it, every run has a folder of its own.
    """

    settings: Settings
    seeds: tuple[int, ...]
    longest_run: int
    folder: Path

    @property
    def metric(self) -> str:
        """Key of the validation metric in a round's figures."""
        return f"validation_ndcg@{self.settings.evaluation.k}"

    def __call__(self, trial: optuna.Trial, name: str, deadline: float = math.inf) -> float:
        """Run what is not run yet of a trial and return its value.

        Args:
            trial: With a value for everything that is searched.
            name: Of its folders.
            deadline: When to stop, on the clock ``time.monotonic``.

        Raises:
            optuna.TrialPruned: It is not worth going on.
            OutOfTime: The deadline has passed.
            MetaRecError: A run fails, or has no validation metric.
        """
        settings = self.settings.with_values(trial.params, f"trial {name}")
        values: list[float] = []
        for place, seed in enumerate(self.seeds):
            last = settings.federation.rounds if place == len(self.seeds) - 1 else None
            watch = Watch(trial, self.metric, tuple(values), place * self.longest_run, last, deadline)
            folder = self.folder / f"{name}-seed-{seed}"
            self._run(replace(settings, run=replace(settings.run, seed=seed, out=str(folder))), watch)
            values.append(_value(folder, settings))
        return statistics.mean(values)

    def _run(self, settings: Settings, watch: Watch) -> None:
        folder = Path(settings.run.out)
        if (folder / TRAINING_FILE).exists():  # finished before the trial was interrupted
            watch.start(TrackedRun(folder=folder, settings=settings, recorded=read_metrics(folder / METRICS_FILE)))
            return
        resume = (folder / RESUME_FILE).exists()
        wanted = replace(settings, run=replace(settings.run, resume=resume))
        run_federation(in_process_grid(wanted), wanted, [watch])


def _value(folder: Path, settings: Settings) -> float:
    """Return the validation metric of what a run left: with its task regression where it has one.

    Raises:
        FederationError: There is none, or it is not finite.
    """
    training = json.loads((folder / TRAINING_FILE).read_text(encoding="utf-8"))
    regressions = training["regressions"].get(settings.evaluation.select_by, {})
    judged = regressions.get(str(settings.evaluation.support))
    value = training["best_validation"] if judged is None else judged["validation"]
    if value is None or not math.isfinite(value):
        raise FederationError(f"{folder.name}: no validation user was evaluated, or not to a finite metric")
    return float(value)
